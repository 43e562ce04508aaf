//! Reports that are written for people only: who is concerned, what happened, and why.
//!
//! One way through a text, by the tables of [`super::rules`]. The lines before the returned
//! original are looked at; the first of these that names anyone names the recipients:
//!
//! 1. an X-Failed-Recipients field,
//! 2. lines that begin with an address, below an opening such as "the following addresses",
//! 3. labels such as "Recipient:", and the RCPT commands of a transcript,
//! 4. lines that begin with an address, anywhere,
//! 5. a line that ends with a colon and an address, or one with a reply code and an address,
//! 6. the returned original's own To.
//!
//! Why is said from there to the next empty line, or else somewhere in the text.

use std::borrow::Cow;

use super::parts::Part;
use super::rules::{self, Place};
use super::{Action, Diagnostic, Form, MAX_RECIPIENTS, Report, ReportRecipient, TypedAddress};
use crate::Enhanced;
use crate::header::HeaderBlock;

/// Octets of a text that are looked at, and lines.
const MAX_TEXT: usize = 64 * 1024;
const MAX_LINES: usize = 2000;
/// Characters of a diagnosis that are kept.
const MAX_DIAGNOSIS: usize = 1000;

pub(super) fn read(header: &HeaderBlock, parts: &[Part<'_>]) -> Option<Report> {
    if !rules::is_report(header) || parts.iter().any(|p| p.kind == "message/feedback-report") {
        return None;
    }
    let text = gather(parts);
    let lines: Vec<Line<'_>> = text.lines().take(MAX_LINES).map(Line::of).collect();
    let end = lines
        .iter()
        .position(|l| rules::ends(&l.words))
        .unwrap_or(lines.len());
    let (said, below) = lines.split_at(end);
    let original = original(parts, below);
    let named = recipients(header, said, original.as_ref());
    if named.is_empty() {
        return None;
    }
    let whole = diagnosis(said, 0, &[]);
    let delayed = said.iter().any(|l| rules::is_delay(&l.words))
        || header
            .get("subject")
            .is_some_and(|s| rules::is_delay(&s.to_ascii_lowercase()));
    let alone = named.len() == 1;
    let recipients = named
        .iter()
        .map(|(address, at)| {
            let own = at.map(|at| diagnosis(said, at, &named)).unwrap_or_default();
            // What is said of others is no reason for this one.
            let rest = if alone || own.is_empty() {
                whole.as_str()
            } else {
                ""
            };
            let (text, status) = reason(own, said, rest);
            ReportRecipient {
                original: None,
                address: Some(TypedAddress {
                    kind: "rfc822".to_owned(),
                    address: address.clone(),
                }),
                action: if delayed {
                    Action::Delayed
                } else {
                    Action::Failed
                },
                status,
                remote_mta: None,
                diagnostic: (!text.is_empty()).then(|| Diagnostic {
                    kind: String::new(),
                    text: cut(&text).to_owned(),
                }),
                last_attempt: None,
                will_retry_until: None,
            }
        })
        .collect();
    Some(Report {
        form: Form::Text,
        message_id: original.and_then(|o| o.message_id().map(str::to_owned)),
        recipients,
        ..Report::default()
    })
}

/// Gives recipients whose fields do not say why the words of the text about them.
pub(super) fn explain(parts: &[Part<'_>], recipients: &mut [ReportRecipient]) {
    if recipients.iter().all(|r| r.diagnostic.is_some()) {
        return;
    }
    let text = gather(parts);
    let lines: Vec<Line<'_>> = text.lines().take(MAX_LINES).map(Line::of).collect();
    let mut named = Named::new();
    leading(&mut named, &lines, 0);
    for recipient in recipients.iter_mut().filter(|r| r.diagnostic.is_none()) {
        let concerned = |address: &str| {
            [&recipient.address, &recipient.original]
                .into_iter()
                .flatten()
                .any(|a| a.address.eq_ignore_ascii_case(address))
        };
        let line = named.iter().find(|(a, _)| concerned(a)).and_then(|n| n.1);
        let words = line
            .map(|at| diagnosis(&lines, at, &named))
            .unwrap_or_default();
        if !words.is_empty() {
            recipient.diagnostic = Some(Diagnostic {
                kind: String::new(),
                text: cut(&words).to_owned(),
            });
        }
    }
}

/// A line without control characters, and its words in lower case from the first letter or
/// digit on: what the rules are compared with.
struct Line<'a> {
    text: Cow<'a, str>,
    words: String,
    indent: usize,
}

impl<'a> Line<'a> {
    fn of(raw: &'a str) -> Self {
        let text = if raw.contains(|c: char| c.is_control()) {
            Cow::Owned(raw.replace(|c: char| c.is_control(), " "))
        } else {
            Cow::Borrowed(raw)
        };
        let indent = text.len() - text.trim_start().len();
        let words = text
            .trim_start_matches(|c: char| !c.is_alphanumeric())
            .to_ascii_lowercase();
        Line {
            text,
            words,
            indent,
        }
    }

    fn is_empty(&self) -> bool {
        self.text.trim().is_empty()
    }
}

/// The text for people: the plain parts, or what is left of an HTML part without its tags.
fn gather(parts: &[Part<'_>]) -> String {
    // A multipart without parts is a text.
    let plain = |p: &&Part<'_>| {
        p.kind == "text/plain" || p.kind.is_empty() || p.kind.starts_with("multipart/")
    };
    let html = |p: &&Part<'_>| p.kind == "text/html";
    let mut text = String::new();
    let mut add = |part: &Part<'_>| {
        let room = MAX_TEXT.saturating_sub(text.len());
        let body = part.decoded();
        let body = String::from_utf8_lossy(&body[..body.len().min(room)]);
        if part.kind == "text/html" {
            text.push_str(&without_tags(&body));
        } else {
            text.push_str(&body);
        }
        text.push('\n');
    };
    // What stands behind the returned original is no part of the report.
    let own = || parts.iter().take_while(|p| !p.is_original());
    if own().any(|p| plain(&p)) {
        own().filter(plain).for_each(&mut add);
    } else {
        own().filter(html).for_each(&mut add);
    }
    text
}

/// The words of an HTML text, a line for each block.
fn without_tags(html: &str) -> String {
    let mut out = String::with_capacity(html.len() / 2);
    let mut rest = html;
    while let Some(open) = rest.find('<') {
        out.push_str(&rest[..open]);
        rest = &rest[open..];
        let Some(close) = rest.find('>') else { break };
        let tag = rest[1..close].to_ascii_lowercase();
        rest = &rest[close + 1..];
        if tag.starts_with("style") || tag.starts_with("script") {
            rest = rest.find("</").map_or("", |at| &rest[at..]);
        } else if tag.contains('@') && address_at(&tag).is_some() {
            // Someone forgot to escape an address.
            out.push_str(&format!("<{tag}>"));
        } else if rules::BLOCK_TAGS
            .iter()
            .any(|t| tag.trim_start_matches('/').starts_with(t))
        {
            out.push('\n');
        }
    }
    for (entity, char) in [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&nbsp;", " "),
        ("&amp;", "&"),
    ] {
        if out.contains(entity) {
            out = out.replace(entity, char);
        }
    }
    out
}

/// The returned original's header: a part of its own, or what stands below the report.
fn original(parts: &[Part<'_>], below: &[Line<'_>]) -> Option<HeaderBlock> {
    if let Some(part) = parts.iter().find(|p| p.is_original()) {
        return Some(HeaderBlock::parse(&part.decoded()));
    }
    let from = below.iter().position(|l| {
        rules::ORIGINAL_FIELDS
            .iter()
            .any(|f| l.words.starts_with(f))
    })?;
    let mut text = String::new();
    // Some systems indent it, or put an empty line in its middle.
    let margin = below[from].indent;
    for line in &below[from..] {
        if !line.is_empty() {
            // Blanks may be of several octets, and another kind in each line.
            let own = line.text.get(margin.min(line.indent)..);
            text.push_str(own.unwrap_or_else(|| line.text.trim_start()));
            text.push('\n');
        }
    }
    Some(HeaderBlock::parse(text.as_bytes()))
}

/// Addresses, each with the line that it was found in.
type Named = Vec<(String, Option<usize>)>;

fn add(named: &mut Named, address: &str, line: Option<usize>) {
    let known = named
        .iter()
        .position(|(a, _)| a.eq_ignore_ascii_case(address));
    match known {
        Some(n) => named[n].1 = named[n].1.or(line),
        None if named.len() < MAX_RECIPIENTS => named.push((address.to_owned(), line)),
        None => {}
    }
}

fn recipients(header: &HeaderBlock, said: &[Line<'_>], original: Option<&HeaderBlock>) -> Named {
    let mut named = Named::new();
    for list in header.all("x-failed-recipients") {
        for address in list.split(',').filter_map(|a| any_address(a)) {
            add(&mut named, address, None);
        }
    }
    if !named.is_empty() {
        // The text says why, for each of them.
        for (address, at) in &mut named {
            *at = said
                .iter()
                .position(|l| leading_address(l).is_some_and(|a| a.eq_ignore_ascii_case(address)));
        }
        return named;
    }
    let opening = said.iter().position(|l| rules::opens(&l.words).is_some());
    if let Some(at) = opening {
        let after = rules::opens(&said[at].words).unwrap_or(0);
        let tail = tail(&said[at], after);
        if let Some(address) = any_address(tail) {
            add(&mut named, address, Some(at));
        }
        leading(&mut named, said, at + 1);
    }
    if named.is_empty() {
        let told = header.get("to").and_then(any_address).unwrap_or("");
        labelled(&mut named, said, told);
    }
    if named.is_empty() {
        leading(&mut named, said, 0);
    }
    let ways: [for<'l> fn(&'l Line<'_>) -> Option<&'l str>; 2] = [line_end, beside_code];
    for naming in ways {
        if named.is_empty() {
            for (at, line) in said.iter().enumerate() {
                if let Some(address) = naming(line) {
                    add(&mut named, address, Some(at));
                }
            }
        }
    }
    if named.is_empty()
        && let Some(original) = original
    {
        for name in rules::ORIGINAL_RECIPIENT {
            let to = original.get(name).unwrap_or("");
            for address in to.split(',').filter_map(|a| any_address(a)) {
                add(&mut named, address, None);
            }
            if !named.is_empty() {
                break;
            }
        }
    }
    named
}

/// Lines that begin with an address and stand no further right than the first of them:
/// what is indented below an address belongs to its diagnosis.
fn leading(named: &mut Named, said: &[Line<'_>], from: usize) {
    let mut margin = None;
    for (at, line) in said.iter().enumerate().skip(from) {
        let Some(address) = leading_address(line) else {
            continue;
        };
        if line.indent > *margin.get_or_insert(line.indent) {
            continue;
        }
        add(named, address, Some(at));
    }
}

fn labelled(named: &mut Named, said: &[Line<'_>], told: &str) {
    for place in [Place::Label, Place::Command] {
        for (at, line) in said.iter().enumerate() {
            let behind =
                rules::label(&line.words, place).map(|after| any_address(tail(line, after)));
            let found = match place {
                Place::Command => behind.or_else(|| Some(begun_reply(line))),
                Place::Label => behind,
            };
            if let Some(address) = found.flatten() {
                add(named, address, Some(at));
            }
        }
        if !named.is_empty() {
            break;
        }
    }
    // A transcript has the sender in it too.
    if named.len() > 1 {
        named.retain(|(address, _)| !address.eq_ignore_ascii_case(told));
    }
}

/// `words: <address>`, unless the words name the sender.
fn line_end<'l>(line: &'l Line<'_>) -> Option<&'l str> {
    let (label, value) = line.text.rsplit_once(": ")?;
    let address = address_at(value.trim_start_matches('<'))?;
    let rest = value.trim_matches(|c: char| c.is_whitespace() || "<>.".contains(c));
    (rest == address && !rules::names_sender(&label.to_ascii_lowercase())).then_some(address)
}

/// `550 <address>... text`, as in a transcript.
fn begun_reply<'l>(line: &'l Line<'_>) -> Option<&'l str> {
    let code = line.words.get(..4)?;
    let replied = matches!(
        code.as_bytes(),
        [b'4' | b'5', b'0'..=b'9', b'0'..=b'9', b' ' | b'-']
    );
    address_at(tail(line, 4).trim_start().strip_prefix('<')?).filter(|_| replied)
}

/// An address in a line with a reply code.
fn beside_code<'l>(line: &'l Line<'_>) -> Option<&'l str> {
    code_in(&line.text).and_then(|_| any_address(&line.text))
}

/// The text behind so many bytes of the line's words.
fn tail<'l>(line: &'l Line<'_>, after: usize) -> &'l str {
    let skipped = line.text.len() - line.words.len();
    line.text.get(skipped + after..).unwrap_or("")
}

/// The address that a line begins with, behind brackets and bullets.
fn leading_address<'l>(line: &'l Line<'_>) -> Option<&'l str> {
    let text = line
        .text
        .trim_start_matches(|c: char| c.is_whitespace() || "<>\"'*-(\u{2022}\u{b7}".contains(c));
    address_at(text)
}

/// The first address in a text.
fn any_address(text: &str) -> Option<&str> {
    let mut from = 0;
    while let Some(at) = text[from..].find('@') {
        let at = from + at;
        let start = text[..at].rfind(|c: char| !is_local(c)).map_or(0, |i| {
            i + text[i..].chars().next().map_or(1, char::len_utf8)
        });
        if let Some(address) = address_at(&text[start..]) {
            return Some(address);
        }
        from = at + 1;
    }
    None
}

fn is_local(c: char) -> bool {
    !c.is_whitespace() && !c.is_control() && !"<>()[]\",;:@\\".contains(c)
}

/// The address at the beginning of a text, up to what can't belong to it.
fn address_at(text: &str) -> Option<&str> {
    let at = text.find(|c: char| !is_local(c))?;
    let domain = text[at..].strip_prefix('@')?;
    let end = domain
        .find(|c: char| !(c.is_alphanumeric() || c == '.' || c == '-' || c == '_'))
        .unwrap_or(domain.len());
    let domain = domain[..end].trim_end_matches(['.', '-']);
    let found = &text[..at + 1 + domain.len()];
    let fits = at > 0 && !domain.is_empty() && found.len() <= 320;
    // A second @ makes it something else.
    let goes_on = text[found.len()..].starts_with('@');
    (fits && !goes_on).then_some(found)
}

/// What is said of the recipient in this line: from there to an empty line behind a word, or
/// to the next recipient.
fn diagnosis(said: &[Line<'_>], at: usize, named: &[(String, Option<usize>)]) -> String {
    let mut out = String::new();
    for (n, line) in said.iter().enumerate().skip(at) {
        let next = n > at && named.iter().any(|(_, l)| *l == Some(n));
        if next || out.len() > 4 * MAX_DIAGNOSIS {
            break;
        }
        if !named.is_empty() && line.is_empty() {
            if code_in(&out).is_some() || n > at + 3 {
                break;
            }
            continue;
        }
        let mut text = line.text.trim();
        if n == at && !named.is_empty() {
            // The recipient itself is no reason.
            if let Some(address) = leading_address(line) {
                let after = text.find(address).map_or(0, |i| i + address.len());
                text = text[after..].trim_start_matches(['>', '"', '\'', ':', ' ', ')']);
            }
        }
        if !out.is_empty() && !text.is_empty() {
            out.push(' ');
        }
        out.push_str(text);
    }
    out
}

/// The words that say why, and the status they amount to: those about the recipient, unless
/// only the rest of the text is more precise.
fn reason(own: String, said: &[Line<'_>], whole: &str) -> (String, Option<Enhanced>) {
    for read in [enhanced_in, coded, phrased] {
        if let Some(status) = read(&own) {
            return (own, Some(status));
        }
        if let Some(status) = read(whole) {
            let line = said.iter().find(|l| read(&l.text).is_some());
            let text = line.map_or_else(|| whole.to_owned(), |l| l.text.trim().to_owned());
            return (text, Some(status));
        }
    }
    (
        if own.is_empty() {
            whole.to_owned()
        } else {
            own
        },
        None,
    )
}

/// The status that the words of a server amount to.
pub(super) fn status_of(text: &str) -> Option<Enhanced> {
    enhanced_in(text).or_else(|| coded(text))
}

/// The class of a reply code, with the subject that a known phrase gives it.
fn coded(text: &str) -> Option<Enhanced> {
    let class = (code_in(text)? / 100) as u8;
    Some(
        phrased(text).map_or(Enhanced::new(class, 0, 0), |cause| Enhanced {
            class,
            ..cause
        }),
    )
}

fn phrased(text: &str) -> Option<Enhanced> {
    rules::cause(&text.to_ascii_lowercase())
}

/// The first enhanced code for a failure in a text: `5.1.1`, not part of a longer number.
pub(super) fn enhanced_in(text: &str) -> Option<Enhanced> {
    numbers(text).find_map(|word| {
        let status: Enhanced = word.parse().ok()?;
        (status.class != 2).then_some(status)
    })
}

/// The first reply code for a failure in a text.
fn code_in(text: &str) -> Option<u16> {
    numbers(text).find_map(|word| {
        let code: u16 = word.parse().ok()?;
        (word.len() == 3 && (400..600).contains(&code)).then_some(code)
    })
}

/// Runs of digits and dots that no letter or digit touches.
fn numbers(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '.' || c == '@'))
        .map(|word| word.trim_matches('.'))
        .filter(|word| word.bytes().all(|b| b.is_ascii_digit() || b == b'.') && !word.is_empty())
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_DIAGNOSIS)]
}
