//! Reading the file: every mistake is told with its place, its key and its remedy.

use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::Config;
use super::rules::Check;

/// A configuration with the paths made absolute.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// The file it came from.
    pub path: PathBuf,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// From 1; `None` where the key is not in the file.
    pub at: Option<(usize, usize)>,
    /// `delivery.lifetime`; empty where no key is concerned.
    pub key: String,
    pub message: String,
    pub remedy: String,
}

/// Everything that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub path: PathBuf,
    pub problems: Vec<Problem>,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}", self.path.display())?;
            if let Some((line, column)) = problem.at {
                write!(f, ":{line}:{column}")?;
            }
            if !problem.key.is_empty() {
                write!(f, ": {}", problem.key)?;
            }
            write!(f, ": {}", problem.message)?;
            if !problem.remedy.is_empty() {
                write!(f, "\n  remedy: {}", problem.remedy)?;
            }
        }
        Ok(())
    }
}

/// Replaces the key `database`, for one with a password.
const DATABASE: &str = "TIDEGATE_DATABASE";

/// Reads, checks and completes the file.
///
/// # Errors
/// All mistakes found; a file that is not TOML has one.
pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|e| ConfigError {
        path: path.to_owned(),
        problems: vec![Problem {
            at: None,
            key: String::new(),
            message: format!("the configuration can't be read: {e}"),
            remedy: if e.kind() == std::io::ErrorKind::NotFound {
                "make one with: tidegate init, or name another with --config FILE".to_owned()
            } else {
                "make the file readable for the user that runs tidegate".to_owned()
            },
        }],
    })?;
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let database = std::env::var(DATABASE).ok();
    let mut config = parse_with(&text, database).map_err(|problems| ConfigError {
        path: path.clone(),
        problems,
    })?;
    let base = path.parent().unwrap_or(Path::new("/"));
    absolute(&mut config, base);
    Ok(Loaded { config, path })
}

/// Makes every path count from the file's directory.
fn absolute(config: &mut Config, base: &Path) {
    for path in [
        &mut config.data_dir,
        &mut config.master_key_file,
        &mut config.tls.certificate,
        &mut config.tls.key,
        &mut config.admin.token_file,
    ] {
        *path = base.join(&*path);
    }
    if let Some(path) = &mut config.delivery.dnssec_anchors {
        *path = base.join(&*path);
    }
    if let Some(path) = &mut config.delivery.trust_anchors {
        *path = base.join(&*path);
    }
    for export in config.export.values_mut() {
        let paths = [
            &mut export.dir,
            &mut export.secret_file,
            &mut export.signing_key_file,
            &mut export.trust_anchors,
        ];
        for path in paths.into_iter().flatten() {
            *path = base.join(&*path);
        }
    }
}

/// From text to a configuration whose values make sense.
///
/// # Errors
/// All mistakes found.
pub fn parse(text: &str) -> Result<Config, Vec<Problem>> {
    parse_with(text, None)
}

/// The same, with what replaces the key `database`.
fn parse_with(text: &str, database: Option<String>) -> Result<Config, Vec<Problem>> {
    let mut config: Config = toml::from_str(text).map_err(|error| vec![explain(text, &error)])?;
    let replaced = database.is_some();
    if let Some(database) = database {
        config.database = database;
    }
    let mut problems = Check::run(text, &config);
    for problem in problems.iter_mut().filter(|p| p.key == "database") {
        if replaced {
            problem.at = None;
            problem.key = format!("the environment variable {DATABASE}");
        }
    }
    if problems.is_empty() {
        Ok(config)
    } else {
        Err(problems)
    }
}

/// Line and column, both from 1, the column in characters.
fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(offset.min(text.len()))];
    let line_start = before.rfind('\n').map_or(0, |n| n + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}

/// Turns the parser's words into a problem with a key and a remedy.
fn explain(text: &str, error: &toml::de::Error) -> Problem {
    let span = error.span();
    let key = span
        .as_ref()
        .and_then(|span| key_at(text, span.start))
        .unwrap_or_default();
    let raw = error.message();
    let quoted: Vec<&str> = raw.split('`').skip(1).step_by(2).collect();
    let (message, remedy) = if let Some(rest) = raw.strip_prefix("unknown field ") {
        let unknown = quoted.first().copied().unwrap_or(rest);
        let known = &quoted[1.min(quoted.len())..];
        let near = known
            .iter()
            .map(|k| (distance(unknown, k), *k))
            .filter(|(d, _)| *d <= 2 + unknown.len() / 4)
            .min()
            .map(|(_, k)| format!("did you mean `{k}`? "))
            .unwrap_or_default();
        (
            format!("there is no key `{unknown}` here"),
            format!("{near}the keys here are: {}", known.join(", ")),
        )
    } else if let Some((what, how)) = raw.split_once(": write ") {
        (what.to_owned(), format!("write {how}"))
    } else if raw.starts_with("unknown variant") {
        (
            format!(
                "{:?} is not one of the choices",
                quoted.first().unwrap_or(&"")
            ),
            format!(
                "choose one of: {}",
                quoted.get(1..).unwrap_or_default().join(", ")
            ),
        )
    } else if raw.contains("socket address") {
        (
            "not an address with a port".to_owned(),
            "write it like \"127.0.0.1:587\" or \"[::]:587\"".to_owned(),
        )
    } else if raw.starts_with("invalid type") || raw.starts_with("invalid value") {
        (
            raw.trim().to_owned(),
            "see the key's entry in the operator's manual: tidegate docs".to_owned(),
        )
    } else {
        (
            raw.trim().replace('\n', ", "),
            "see https://toml.io for the syntax".to_owned(),
        )
    };
    Problem {
        at: span.map(|span| line_and_column(text, span.start)),
        key,
        message,
        remedy,
    }
}

/// Edits between two words, for "did you mean".
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let cost = usize::from(ca != *cb);
            let next = (diagonal + cost).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.len()]
}

/// The dotted key whose name or value covers the offset.
fn key_at(text: &str, offset: usize) -> Option<String> {
    fn in_table(table: &DeTable<'_>, offset: usize, path: &str) -> Option<String> {
        for (key, value) in table {
            let here = if path.is_empty() {
                key.get_ref().to_string()
            } else {
                format!("{path}.{}", key.get_ref())
            };
            if key.span().contains(&offset) {
                return Some(here);
            }
            if let Some(found) = in_value(value.get_ref(), offset, &here) {
                return Some(found);
            }
            if value.span().contains(&offset) {
                return Some(here);
            }
        }
        None
    }
    fn in_value(value: &DeValue<'_>, offset: usize, path: &str) -> Option<String> {
        match value {
            DeValue::Table(table) => in_table(table, offset, path),
            DeValue::Array(items) => items.iter().find_map(|item| {
                in_value(item.get_ref(), offset, path)
                    .or_else(|| item.span().contains(&offset).then(|| path.to_owned()))
            }),
            _ => None,
        }
    }
    let table = DeTable::parse(text).ok()?;
    in_table(table.get_ref(), offset, "")
}

/// Where the value of a dotted key stands; array positions are numbers.
pub(super) fn place_of(text: &str, key: &str) -> Option<(usize, usize)> {
    let root = DeTable::parse(text).ok()?;
    let mut place = None;
    let mut table = Some(root.get_ref());
    let mut array: Option<&toml::de::DeArray<'_>> = None;
    for part in key.split('.') {
        let value = if let Ok(index) = part.parse::<usize>() {
            array?.get(index)?
        } else {
            let (_, value) = table?.iter().find(|(k, _)| k.get_ref() == part)?;
            value
        };
        place = Some(value.span().start);
        table = match value.get_ref() {
            DeValue::Table(t) => Some(t),
            _ => None,
        };
        array = match value.get_ref() {
            DeValue::Array(a) => Some(a),
            _ => None,
        };
    }
    place.map(|offset| line_and_column(text, offset))
}

#[cfg(test)]
mod tests {
    use super::super::Span;
    use super::*;

    /// The problems of a text as `line:column key`.
    fn problems(text: &str) -> Vec<String> {
        match parse(text) {
            Ok(_) => Vec::new(),
            Err(problems) => problems
                .iter()
                .map(|p| {
                    assert!(!p.message.is_empty() && !p.remedy.is_empty(), "{p:?}");
                    match p.at {
                        Some((line, column)) => format!("{line}:{column} {}", p.key),
                        None => format!("- {}", p.key),
                    }
                })
                .collect(),
        }
    }

    #[test]
    fn an_empty_file_is_valid() {
        let config = parse("").unwrap();
        assert_eq!(config.delivery.lifetime, Span::hours(48));
        assert_eq!(config.delivery.delay_notice_after, Span::hours(4));
        assert_eq!(config.log.retention, Span::days(7));
    }

    #[test]
    fn mistakes_are_placed() {
        for (text, expected) in [
            ("hostnam = \"a\"\n", "1:1 hostnam"),
            ("[delivery]\nlifetime = \"48\"\n", "2:12 delivery.lifetime"),
            ("[delivery]\nlifetime = 48\n", "2:12 delivery.lifetime"),
            ("\n[log]\n  retention = \"3d\"\n", "3:15 log.retention"),
            ("[tls]\ncert = \"x\"\n", "2:1 tls.cert"),
            (
                "[delivery]\nretry = [\"1m\", \"0s\"]\n",
                "2:9 delivery.retry",
            ),
            (
                "[delivery]\nretry = [\"1m\", \"soon\"]\n",
                "2:16 delivery.retry",
            ),
            ("[admin]\naddress = \"0.0.0.0:80\"\n", "2:11 admin.address"),
            ("[admin]\naddress = \"here\"\n", "2:11 admin.address"),
            (
                "[[submission.listener]]\naddress = \"[::]:25\"\nallow_plain_auth = true\n",
                "3:20 submission.listener.0.allow_plain_auth",
            ),
            (
                "[[submission.listener]]\ntls = \"ssl\"\n",
                "2:7 submission.listener.tls",
            ),
            ("[export.\"A b\"]\n", "1:1 export.A b"),
            ("[export.a]\nkind = \"http\"\n", "1:1 export.a.url"),
            (
                "[export.a]\nkind = \"http\"\nurl = \"crm.example\"\n",
                "3:7 export.a.url",
            ),
            (
                "[export.a]\nkind = \"http\"\nurl = \"http://crm.example/\"\n",
                "3:7 export.a.url",
            ),
            (
                "[export.a]\nurl = \"https://crm.example/\"\n",
                "2:7 export.a.url",
            ),
            (
                "[export.a]\nkind = \"http\"\nurl = \"https://crm.example/\"\nheaders = [\"A: b\", \"Host: c\"]\n",
                "4:20 export.a.headers.1",
            ),
            (
                "[export.a]\nkind = \"http\"\nurl = \"https://crm.example/\"\ntimeout = \"1ms\"\n",
                "4:11 export.a.timeout",
            ),
            (
                "[export.a]\nkind = \"http\"\nurl = \"https://crm.example/\"\nauth = \"bearer\"\n",
                "4:8 export.a.auth",
            ),
            (
                "[delivery]\nresolvers = [\"dns\"]\n",
                "2:14 delivery.resolvers.0",
            ),
            (
                "[export.a]\nheaders = [\"A: b\"]\n",
                "2:11 export.a.headers",
            ),
            ("[export.a]\nauth = \"basic\"\n", "2:8 export.a.auth"),
            (
                "[export.a]\nkind = \"http\"\nurl = \"https://crm.example/\"\ndir = \"x\"\n",
                "4:7 export.a.dir",
            ),
            (
                "[export.a]\nkind = \"http\"\nurl = \"https://crm.example/\"\nauth_header = \"X-Key\"\n",
                "4:15 export.a.auth_header",
            ),
            (
                "[policy]\nkeep_revisions = 0\n",
                "2:18 policy.keep_revisions",
            ),
            (
                "[delivery]\nmta_sts_port = 0\n",
                "2:16 delivery.mta_sts_port",
            ),
            (
                "[delivery]\nbulk_recipients = 0\n",
                "2:19 delivery.bulk_recipients",
            ),
            (
                "[delivery]\ncampaign_header = \"X Campaign\"\n",
                "2:19 delivery.campaign_header",
            ),
            (
                "[delivery]\nlifetime = \"2h\"\ndelay_notice_after = \"2h\"\n",
                "3:22 delivery.delay_notice_after",
            ),
            ("[log]\nlevel = \"inof\"\n", "2:9 log.level"),
            ("[log]\nlevel = \"info,tidegate_net\"\n", "2:9 log.level"),
            ("[log]\nlevel = \"\"\n", "2:9 log.level"),
            ("hostname = \n", "1:12 "),
        ] {
            assert_eq!(problems(text), [expected], "{text}");
        }
    }

    #[test]
    fn levels_and_filters_of_the_log_are_taken() {
        for level in [
            "warn",
            "OFF",
            "info,tidegate_net=debug",
            "tidegate_net=trace",
            "info,policy[call{slot=a}]=debug",
        ] {
            let text = format!("[log]\nlevel = {level:?}\n");
            assert_eq!(problems(&text), Vec::<String>::new(), "{level}");
        }
    }

    #[test]
    fn a_lifetime_below_the_default_of_the_delay_notice_is_none_of_its_business() {
        let config = parse("[delivery]\nlifetime = \"1h\"\n").unwrap();
        assert_eq!(config.delivery.delay_notice_after, Span::hours(4));
    }

    #[test]
    fn what_replaces_the_database_is_checked_and_not_repeated() {
        let replaced = |database: &str| parse_with("", Some(database.to_owned()));
        assert_eq!(
            replaced("postgres://u@db/x").unwrap().database,
            "postgres://u@db/x"
        );
        let found = replaced("host=db password=s3cret").unwrap_err();
        assert!(found[0].key.contains("TIDEGATE_DATABASE"), "{found:?}");
        assert!(!format!("{found:?}").contains("s3cret"), "{found:?}");
    }

    #[test]
    fn all_mistakes_of_a_readable_file_are_told_at_once() {
        let text = "database = \"mysql\"\n[log]\nretention = \"1d\"\n[delivery]\njitter = 80\n";
        assert_eq!(
            problems(text),
            [
                "1:12 database",
                "5:10 delivery.jitter",
                "3:13 log.retention"
            ]
        );
    }

    #[test]
    fn a_near_miss_is_named() {
        let found = parse("[submission]\nmax_mesage_size = \"1MiB\"\n").unwrap_err();
        assert!(
            found[0].remedy.contains("did you mean `max_message_size`?"),
            "{}",
            found[0].remedy
        );
    }

    #[test]
    fn passwords_are_not_shown() {
        for (database, shown) in [
            ("postgres://u:s3cret@db/tide", "postgres://u@db/tide"),
            ("postgres://db:5432/tide", "postgres://db:5432/tide"),
            (
                "postgres://u@[::1]:5432/tide",
                "postgres://u@[::1]:5432/tide",
            ),
            ("postgres:///db?user=u&password=s3cret", "postgres:///db"),
            ("postgres:///db?password=s3cret&user=u@x", "postgres://..."),
            ("postgres://u:s3?cret@db/tide", "postgres://..."),
            ("postgres://u:s3/cret@db/tide", "postgres://..."),
            ("postgres://u:12#s3cret@db/tide", "postgres://..."),
            ("host=db password=s3cret", "..."),
        ] {
            let config = Config {
                database: database.to_owned(),
                ..Config::default()
            };
            assert_eq!(config.shown_database(), shown, "{database}");
        }
        let found = parse("database = \"mysql://u:s3cret@db/x\"\n").unwrap_err();
        assert!(!format!("{found:?}").contains("s3cret"));
    }

    #[test]
    fn what_opens_a_webhook_is_not_shown() {
        let text = "[export.a]\nkind = \"http\"\nurl = \"https://crm.example:8443/hooks/s3cret?key=s3cret\"\nheaders = [\"X-Key: s3cret\"]\n";
        let shown = parse(text).unwrap().shown();
        assert_eq!(
            shown.export["a"].url.as_deref(),
            Some("https://crm.example:8443/...")
        );
        assert_eq!(shown.export["a"].headers, ["X-Key: ..."]);
    }

    #[test]
    fn paths_count_from_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tidegate.toml");
        std::fs::write(
            &path,
            "data_dir = \"data\"\n[export.json]\ndir = \"/srv/x\"\n",
        )
        .unwrap();
        let loaded = load(&path).unwrap();
        assert_eq!(loaded.config.data_dir, dir.path().join("data"));
        assert_eq!(loaded.config.tls.key, dir.path().join("tls/key.pem"));
        assert_eq!(
            loaded.config.export["json"].dir.as_deref(),
            Some(Path::new("/srv/x"))
        );
    }

    #[test]
    fn a_missing_file_has_a_remedy() {
        let error = load(Path::new("/nonexistent/tidegate.toml")).unwrap_err();
        assert!(error.to_string().contains("tidegate init"), "{error}");
    }
}
