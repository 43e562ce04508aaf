//! The name of a receiving site: domains with the same set of MX hosts share it.

use std::fmt::Write;

/// A readable name that is the same for the same set of names, whatever their order or
/// preferences, and differs for different sets: the host's name if there is one, else the
/// labels all have in common and a hash of the set, as `aspmx.l.google.com~1f0c4a9e`.
pub fn site_name<'a>(hosts: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = hosts.collect();
    names.sort_unstable();
    names.dedup();
    let [first, rest @ ..] = names.as_slice() else {
        return String::new();
    };
    if rest.is_empty() {
        return (*first).to_owned();
    }
    let common = rest.iter().fold(*first, |c, name| common_labels(c, name));
    // A lone top-level label says nothing; the first name does.
    let shown = if common.contains('.') { common } else { first };
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, names.join(",").as_bytes());
    let mut site = format!("{shown}~");
    for byte in &digest.as_ref()[..4] {
        // Writing to a String can't fail.
        let _ = write!(site, "{byte:02x}");
    }
    site
}

/// The longest common suffix of whole labels.
fn common_labels<'a>(a: &'a str, b: &str) -> &'a str {
    let mut start = a.len();
    let (mut left, mut right) = (a.rsplit('.'), b.rsplit('.'));
    while let (Some(x), Some(y)) = (left.next(), right.next()) {
        if x != y {
            break;
        }
        // One for the dot before it, which the first label of `a` does not have.
        start = start.saturating_sub(x.len() + usize::from(start != a.len()));
    }
    &a[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_set_same_name() {
        let a = site_name(["mx2.example.net", "mx1.example.net"].into_iter());
        let b = site_name(["mx1.example.net", "mx2.example.net", "mx1.example.net"].into_iter());
        assert_eq!(a, b);
        assert!(a.starts_with("example.net~"), "{a}");
        let c = site_name(["mx1.example.net", "mx3.example.net"].into_iter());
        assert_ne!(a, c);
        assert_eq!(site_name(["mx.example.net"].into_iter()), "mx.example.net");
        let apart = site_name(["a.example.net", "b.example.org"].into_iter());
        assert!(apart.starts_with("a.example.net~"), "{apart}");
    }

    #[test]
    fn whole_labels_only() {
        assert_eq!(common_labels("mx.example.com", "mx.anexample.com"), "com");
        assert_eq!(
            common_labels("example.com", "mx.example.com"),
            "example.com"
        );
        assert_eq!(common_labels("a.org", "a.com"), "");
        assert_eq!(
            common_labels("l.google.com", "alt1.l.google.com"),
            "l.google.com"
        );
    }
}
