//! `docs/semantics.md` names a test for each of its rows; each of them has to be there.

use std::path::Path;

/// `` `host/net/tests/smtp/replies.rs::name` ``: path and function.
fn named_tests(text: &str) -> Vec<(&str, &str)> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|code| code.split_once(".rs::"))
        .collect()
}

/// The names of the test functions in a source: of those with an attribute `test`, and of
/// those inside `proptest!`, which carry it too.
fn tests_of(source: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut marked = false;
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            marked = true;
        } else if marked
            && let Some(rest) = line
                .strip_prefix("async fn ")
                .or_else(|| line.strip_prefix("fn "))
        {
            let end = rest.find(['(', '<']).unwrap_or(rest.len());
            found.push(&rest[..end]);
            marked = false;
        }
    }
    found
}

fn root() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests/ lies in the repository")
}

#[test]
fn every_test_that_the_semantics_name_exists() {
    let text = std::fs::read_to_string(root().join("docs/semantics.md")).expect("the document");
    let named = named_tests(&text);
    assert!(named.len() > 80, "only {} tests are named", named.len());
    let missing: Vec<String> = named
        .iter()
        .filter(|(path, name)| {
            let source = std::fs::read_to_string(root().join(format!("{path}.rs")));
            !source.is_ok_and(|source| tests_of(&source).contains(name))
        })
        .map(|(path, name)| format!("{path}.rs::{name}"))
        .collect();
    assert!(missing.is_empty(), "not there: {missing:#?}");
}

#[test]
fn every_row_of_the_semantics_names_a_test() {
    let text = std::fs::read_to_string(root().join("docs/semantics.md")).expect("the document");
    let (shown, _) = text
        .split_once("\n## Not in this version")
        .expect("the section on what is missing");
    let mut rows = 0;
    for line in shown.lines().filter(|l| l.starts_with("| ")) {
        // A heading; the line of dashes below it begins otherwise.
        if line.ends_with("| shown by |") {
            continue;
        }
        rows += 1;
        assert!(!named_tests(line).is_empty(), "no test is named: {line}");
    }
    assert!(rows > 60, "only {rows} rows");
}
