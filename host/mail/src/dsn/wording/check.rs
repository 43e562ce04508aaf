//! What a wording must keep to before it is taken into use.

use icu_locale_core::Locale;

use super::{KindText, Reasons, Texts, Wording};

/// Characters of all texts together.
const MAX_ALL: usize = 12 * 1024;

/// Why a wording is not acceptable: the field, what is wrong with it, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct BadWording {
    /// As in `texts.failure.opening`.
    pub field: String,
    pub problem: String,
    pub remedy: String,
}

/// What a text may be.
#[derive(Clone, Copy)]
struct Form {
    /// Characters.
    max: usize,
    lines: usize,
    may_be_empty: bool,
    placeholders: &'static [&'static str],
}

const LABEL: Form = Form {
    max: 60,
    lines: 1,
    may_be_empty: false,
    placeholders: &[],
};
const SUBJECT: Form = Form { max: 120, ..LABEL };
const SENTENCE: Form = Form { max: 400, ..LABEL };
const PARAGRAPH: Form = Form {
    max: 2000,
    lines: 30,
    may_be_empty: false,
    placeholders: &["subject", "arrived", "until", "id", "contact"],
};
const CLOSING: Form = Form {
    may_be_empty: true,
    ..PARAGRAPH
};
const OF_RECIPIENT: Form = Form {
    placeholders: &["until", "host"],
    ..SENTENCE
};

impl Wording {
    /// Whether every text has a form in which a notice can carry it.
    ///
    /// # Errors
    /// The first text that has not.
    pub fn check(&self) -> Result<(), BadWording> {
        if self.language.len() > 35 || Locale::try_from_str(&self.language).is_err() {
            return Err(BadWording {
                field: "language".to_owned(),
                problem: format!("{:?} is no language tag", cut(&self.language)),
                remedy: "give a tag of BCP 47, such as de or pt-BR".to_owned(),
            });
        }
        let mut all = 0;
        for (field, text, form) in self.fields() {
            form.check(field, text)?;
            all += text.chars().count();
        }
        if all > MAX_ALL {
            return Err(BadWording {
                field: "texts".to_owned(),
                problem: format!("all texts together have {all} characters"),
                remedy: format!("use at most {MAX_ALL}"),
            });
        }
        Ok(())
    }

    fn fields(&self) -> Vec<(&'static str, &str, Form)> {
        let Wording {
            language: _,
            from_name,
            contact,
            texts,
        } = self;
        let Texts {
            failure,
            delay,
            success,
            subject_label,
            arrived_label,
            id_label,
            server_said,
            remote_said,
            expired,
            retried,
            relayed,
            contact: contact_text,
            reasons,
        } = texts;
        let mut fields = vec![
            ("from_name", &**from_name, LABEL),
            ("texts.subject_label", subject_label, LABEL),
            ("texts.arrived_label", arrived_label, LABEL),
            ("texts.id_label", id_label, LABEL),
            ("texts.server_said", server_said, OF_RECIPIENT),
            ("texts.remote_said", remote_said, OF_RECIPIENT),
            ("texts.expired", expired, OF_RECIPIENT),
            ("texts.retried", retried, OF_RECIPIENT),
            ("texts.relayed", relayed, OF_RECIPIENT),
            ("texts.contact", contact_text, PARAGRAPH),
        ];
        if let Some(contact) = contact {
            fields.push(("contact", contact, Form { max: 200, ..LABEL }));
        }
        let names = [
            [
                "failure",
                "texts.failure.subject",
                "texts.failure.opening",
                "texts.failure.closing",
            ],
            [
                "delay",
                "texts.delay.subject",
                "texts.delay.opening",
                "texts.delay.closing",
            ],
            [
                "success",
                "texts.success.subject",
                "texts.success.opening",
                "texts.success.closing",
            ],
        ];
        for ([_, s, o, c], kind) in names.into_iter().zip([failure, delay, success]) {
            let KindText {
                subject,
                opening,
                closing,
            } = kind;
            fields.push((s, subject, SUBJECT));
            fields.push((o, opening, PARAGRAPH));
            fields.push((c, closing, CLOSING));
        }
        fields.extend(reasons_of(reasons).map(|(field, text)| (field, text, SENTENCE)));
        fields
    }
}

fn reasons_of(reasons: &Reasons) -> [(&'static str, &str); 15] {
    let Reasons {
        mailbox_unknown,
        mailbox_full,
        mailbox_disabled,
        domain_unknown,
        domain_without_mail,
        unreachable,
        system,
        routing,
        too_large,
        content,
        international,
        encryption,
        rejected,
        not_tried,
        other,
    } = reasons;
    [
        ("texts.reasons.mailbox_unknown", mailbox_unknown),
        ("texts.reasons.mailbox_full", mailbox_full),
        ("texts.reasons.mailbox_disabled", mailbox_disabled),
        ("texts.reasons.domain_unknown", domain_unknown),
        ("texts.reasons.domain_without_mail", domain_without_mail),
        ("texts.reasons.unreachable", unreachable),
        ("texts.reasons.system", system),
        ("texts.reasons.routing", routing),
        ("texts.reasons.too_large", too_large),
        ("texts.reasons.content", content),
        ("texts.reasons.international", international),
        ("texts.reasons.encryption", encryption),
        ("texts.reasons.rejected", rejected),
        ("texts.reasons.not_tried", not_tried),
        ("texts.reasons.other", other),
    ]
}

impl Form {
    fn check(self, field: &str, text: &str) -> Result<(), BadWording> {
        let bad = |problem: String, remedy: String| {
            Err(BadWording {
                field: field.to_owned(),
                problem,
                remedy,
            })
        };
        if text.trim().is_empty() && !self.may_be_empty {
            return bad(
                "the text is empty".to_owned(),
                "write something, or leave the field out for the default".to_owned(),
            );
        }
        let length = text.chars().count();
        if length > self.max {
            return bad(
                format!("the text has {length} characters"),
                format!("use at most {}", self.max),
            );
        }
        let lines = text.lines().count();
        if lines > self.lines {
            return bad(
                format!("the text has {lines} lines"),
                format!("use at most {}", self.lines),
            );
        }
        let forbidden = |c: char| {
            (c.is_control() && !(c == '\n' && self.lines > 1))
                || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        };
        if let Some(c) = text.chars().find(|c| forbidden(*c)) {
            return bad(
                format!("the text has the control character U+{:04X}", u32::from(c)),
                if self.lines > 1 {
                    "remove it; lines end with a line feed alone".to_owned()
                } else {
                    "remove it, and write the text in one line".to_owned()
                },
            );
        }
        if let Some(unknown) = placeholders(text).find(|p| !self.placeholders.contains(p)) {
            let known: Vec<String> = self
                .placeholders
                .iter()
                .map(|p| format!("{{{p}}}"))
                .collect();
            return bad(
                format!(
                    "the text does not know the placeholder {{{}}}",
                    cut(unknown)
                ),
                if known.is_empty() {
                    "write it without placeholders".to_owned()
                } else {
                    format!("use only {}", known.join(", "))
                },
            );
        }
        Ok(())
    }
}

/// The names between braces. A brace with anything else behind it is a brace.
fn placeholders(text: &str) -> impl Iterator<Item = &str> {
    text.split('{').skip(1).filter_map(|rest| {
        let (name, _) = rest.split_once('}')?;
        let fits = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
        (!name.is_empty() && name.chars().all(fits)).then_some(name)
    })
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(60)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(change: impl FnOnce(&mut Wording), field: &str, problem: &str) {
        let mut wording = Wording::default();
        change(&mut wording);
        let bad = wording.check().expect_err("refused");
        assert_eq!(bad.field, field);
        assert!(bad.problem.contains(problem), "{bad}");
        assert!(!bad.remedy.is_empty());
    }

    #[test]
    fn the_default_is_acceptable() {
        assert_eq!(Wording::default().check(), Ok(()));
    }

    #[test]
    fn each_mistake_names_its_field_and_a_remedy() {
        refused(
            |w| w.language = "german!".into(),
            "language",
            "no language tag",
        );
        refused(|w| w.language = "".into(), "language", "no language tag");
        refused(
            |w| w.language = "de\r\nBcc: x".into(),
            "language",
            "no language tag",
        );
        refused(|w| w.from_name = " ".into(), "from_name", "empty");
        refused(
            |w| w.from_name = "a\r\nBcc: x@y".into(),
            "from_name",
            "lines",
        );
        refused(|w| w.contact = Some("a\nb".into()), "contact", "lines");
        refused(
            |w| w.contact = Some("x".repeat(201)),
            "contact",
            "201 characters",
        );
        let texts = |change: fn(&mut Texts)| move |w: &mut Wording| change(&mut w.texts);
        refused(
            texts(|t| t.failure.opening = "{recipient} is unknown".into()),
            "texts.failure.opening",
            "{recipient}",
        );
        refused(
            texts(|t| t.delay.subject = "{subject}".into()),
            "texts.delay.subject",
            "{subject}",
        );
        refused(
            texts(|t| t.success.closing = "a\0".into()),
            "texts.success.closing",
            "U+0000",
        );
        refused(
            texts(|t| t.failure.closing = "a\r\nb".into()),
            "texts.failure.closing",
            "U+000D",
        );
        refused(
            texts(|t| t.expired = "\u{202e}x".into()),
            "texts.expired",
            "U+202E",
        );
        refused(
            texts(|t| t.server_said = "{until} {id}".into()),
            "texts.server_said",
            "{id}",
        );
        refused(
            texts(|t| t.reasons.other = "x".repeat(401).into()),
            "texts.reasons.other",
            "401 characters",
        );
        refused(
            texts(|t| t.failure.opening = "x\n".repeat(31).into()),
            "texts.failure.opening",
            "31 lines",
        );
        refused(
            |w| {
                for kind in [
                    &mut w.texts.failure,
                    &mut w.texts.delay,
                    &mut w.texts.success,
                ] {
                    kind.opening = "x".repeat(2000).into();
                    kind.closing = "x".repeat(2000).into();
                }
                for text in [&mut w.texts.contact, &mut w.texts.failure.closing] {
                    *text = "y".repeat(2000).into();
                }
                for reason in [
                    &mut w.texts.reasons.system,
                    &mut w.texts.reasons.routing,
                    &mut w.texts.reasons.content,
                ] {
                    *reason = "z".repeat(400).into();
                }
            },
            "texts",
            "together",
        );
    }

    #[test]
    fn every_text_is_checked() {
        // As many as the fields that hold a text, less the language.
        let json = serde_json::to_value(Wording::default()).unwrap();
        fn texts(value: &serde_json::Value) -> usize {
            match value {
                serde_json::Value::Object(map) => map.values().map(texts).sum(),
                serde_json::Value::String(_) => 1,
                _ => 0,
            }
        }
        assert_eq!(Wording::default().fields().len(), texts(&json) - 1);
    }

    #[test]
    fn braces_that_are_no_placeholder_stay() {
        let mut wording = Wording::default();
        wording.texts.failure.closing = "{ } {a b} {} } {contact}".into();
        assert_eq!(wording.check(), Ok(()));
    }
}
