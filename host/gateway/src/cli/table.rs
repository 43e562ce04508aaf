//! Tables for people: columns as wide as their contents, control characters made visible.

use std::io::IsTerminal;

use serde_json::Value;

pub struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(head: &[&'static str]) -> Self {
        Table {
            head: head.to_vec(),
            rows: Vec::new(),
        }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows
            .push(cells.into_iter().map(|c| clean(&c)).collect());
    }

    /// The table with its head, or `empty` where there is no row.
    pub fn render(&self, empty: &str) -> String {
        if self.rows.is_empty() {
            return format!("{empty}\n");
        }
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .chain([self.head[column].len()])
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let mut text = String::new();
        let head: Vec<String> = self.head.iter().map(|h| (*h).to_owned()).collect();
        for row in std::iter::once(&head).chain(&self.rows) {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let padding = width.saturating_sub(cell.chars().count()) + 2;
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', padding));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// To standard output; the head is bold where that is a terminal, unless NO_COLOR is set.
    pub fn print(&self, empty: &str) {
        let text = self.render(empty);
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        match text.split_once('\n') {
            Some((head, rest)) if colours && !self.rows.is_empty() => {
                super::out(&format!("\x1b[1m{head}\x1b[0m\n{rest}"));
            }
            _ => super::out(&text),
        }
    }
}

/// Without characters that a terminal would act on, or that turn text around: what is shown
/// may come from a stranger.
pub fn clean(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                '\u{fffd}'
            }
            '\n' | '\t' => ' ',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// A JSON value as a cell: texts without quotes, lists joined, nothing for null.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// A table of the named members of a list of objects.
pub fn of(list: &Value, columns: &[(&'static str, &str)]) -> Table {
    let heads: Vec<&'static str> = columns.iter().map(|(head, _)| *head).collect();
    let mut table = Table::new(&heads);
    for item in list.as_array().into_iter().flatten() {
        table.row(columns.iter().map(|(_, member)| cell(&item[*member])));
    }
    table
}

/// The beginning of a digest, enough to tell revisions apart.
pub fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

/// `2026-11-24 03:05:00Z`.
pub fn time(at: tidegate_mail::Timestamp) -> String {
    let text = at.rfc3339();
    match (text.get(..10), text.get(11..19)) {
        (Some(date), Some(time)) => format!("{date} {time}Z"),
        _ => text,
    }
}

/// A member that is an instant, in the form of [`time`].
pub fn time_of(value: &Value) -> String {
    value
        .as_i64()
        .map(|millis| time(tidegate_mail::Timestamp::from_millis(millis)))
        .unwrap_or_default()
}

/// `3d 4h`, `48h`, `12m 5s`: the two largest units.
pub fn duration(secs: u64) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let mut rest = secs;
    let mut parts = Vec::new();
    for (size, unit) in units {
        if size == 86_400 && rest <= 48 * 3600 {
            // People say 48 hours.
            continue;
        }
        if rest >= size {
            parts.push(format!("{}{unit}", rest / size));
            rest %= size;
        }
        if parts.len() == 2 {
            break;
        }
    }
    if parts.is_empty() {
        "0s".to_owned()
    } else {
        parts.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let list = serde_json::json!([
            {"id": "acme", "domains": ["a.example", "b.example"], "suspended": false},
            {"id": "b", "domains": [], "suspended": true},
        ]);
        let table = of(
            &list,
            &[
                ("TENANT", "id"),
                ("DOMAINS", "domains"),
                ("SUSPENDED", "suspended"),
            ],
        );
        assert_eq!(
            table.render("none"),
            "TENANT  DOMAINS               SUSPENDED\n\
             acme    a.example, b.example  no\n\
             b                             yes\n"
        );
        assert_eq!(
            of(&serde_json::json!([]), &[("A", "a")]).render("nothing"),
            "nothing\n"
        );
    }

    #[test]
    fn strangers_do_not_steer_the_terminal() {
        assert_eq!(clean("a\x1b[31mb\nc\u{202e}d"), "a\u{fffd}[31mb c\u{fffd}d");
    }

    #[test]
    fn durations_for_people() {
        for (secs, text) in [
            (0, "0s"),
            (65, "1m 5s"),
            (48 * 3600, "48h"),
            (4 * 3600 + 60, "4h 1m"),
            (8 * 86_400, "8d"),
        ] {
            assert_eq!(duration(secs), text);
        }
    }
}
