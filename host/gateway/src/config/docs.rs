//! The operator's manual of the configuration, from the keys' own comments.

use std::fmt::Write;

use serde_json::Value;

use super::sections;

/// What stands before the reference in `docs/operator.md`.
const INTRODUCTION: &str = include_str!("../../../../docs/operator.intro.md");

/// The whole of `docs/operator.md`.
pub fn markdown() -> String {
    let mut text = String::with_capacity(32 * 1024);
    text.push_str(INTRODUCTION);
    text.push_str(
        "\n## Configuration reference\n\n\
         <!-- From the comments in host/gateway/src/config.rs by `tidegate docs`; edit there. -->\n\n\
         Durations and sizes are texts with a unit: `250ms`, `30s`, `15m`, `48h`, `7d`; `512KiB`, \
         `10MiB`. Unknown keys are errors. `tidegate check` tells every mistake with its line, \
         and `tidegate check --json` prints the configuration in effect.\n",
    );
    for section in sections() {
        let defaults = (section.defaults)();
        if section.heading.is_empty() {
            text.push_str("\n### Top level\n\n");
        } else {
            // Writing to a String can't fail, here and below.
            let _ = write!(text, "\n### `{}`\n\n", section.heading);
        }
        paragraph(&mut text, section.doc);
        for field in section.fields {
            let default = &defaults[field.name];
            if default.is_object() {
                // Sub-tables have a section of their own.
                continue;
            }
            let _ = write!(
                text,
                "\n- **`{}`** — default {}.  \n",
                field.name,
                shown(default)
            );
            for line in field.doc {
                let _ = writeln!(text, "  {}", line.trim());
            }
        }
    }
    text
}

fn paragraph(text: &mut String, lines: &[&str]) {
    for line in lines {
        text.push_str(line.trim());
        text.push('\n');
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(Value::to_string).collect();
            format!("`[{}]`", items.join(", "))
        }
        other => format!("`{other}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operator.md");
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == markdown(),
            "docs/operator.md differs from the code; run: cargo run -p tidegate-gateway -- docs > docs/operator.md"
        );
    }

    #[test]
    fn every_key_is_explained() {
        for section in sections() {
            assert!(!section.doc.is_empty(), "{}", section.heading);
            for field in section.fields {
                assert!(!field.doc.is_empty(), "{} {}", section.heading, field.name);
            }
        }
    }
}
