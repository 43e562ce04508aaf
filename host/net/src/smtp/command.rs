//! Commands as bytes, written straight into the buffer that goes out.
//!
//! Nothing an address or a parameter contains can end a command: see [`is_safe`] and the
//! encodings of RFC 3461 s. 4 and RFC 6533 s. 3.

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tidegate_mail::{Address, BodyType, Notify, Recipient, Ret, xtext};

use super::capabilities::Capabilities;

/// Whether an address can stand in a command. The parser lets no others through; this is
/// the last line of defence before the peer.
pub fn is_safe(address: &Address) -> bool {
    !address.as_str().bytes().any(|b| b < 0x20 || b == 0x7f)
}

/// The parameters of MAIL that the message needs and the peer announced.
#[derive(Clone, Copy, Debug, Default)]
pub struct MailParameters<'a> {
    pub size: Option<u64>,
    pub body: Option<BodyType>,
    pub smtputf8: bool,
    pub requiretls: bool,
    pub ret: Option<Ret>,
    pub envid: Option<&'a str>,
}

pub fn mail(out: &mut Vec<u8>, reverse_path: Option<&Address>, parameters: MailParameters<'_>) {
    out.extend_from_slice(b"MAIL FROM:<");
    out.extend_from_slice(reverse_path.map_or("", Address::as_str).as_bytes());
    out.push(b'>');
    if let Some(size) = parameters.size {
        // Writing to a Vec can't fail.
        let _ = write!(out, " SIZE={size}");
    }
    match parameters.body {
        Some(BodyType::SevenBit) => out.extend_from_slice(b" BODY=7BIT"),
        Some(BodyType::EightBitMime) => out.extend_from_slice(b" BODY=8BITMIME"),
        None => {}
    }
    if parameters.smtputf8 {
        out.extend_from_slice(b" SMTPUTF8");
    }
    if parameters.requiretls {
        out.extend_from_slice(b" REQUIRETLS");
    }
    match parameters.ret {
        Some(Ret::Full) => out.extend_from_slice(b" RET=FULL"),
        Some(Ret::Hdrs) => out.extend_from_slice(b" RET=HDRS"),
        None => {}
    }
    if let Some(envid) = parameters.envid.filter(|e| !e.is_empty()) {
        out.extend_from_slice(b" ENVID=");
        out.extend_from_slice(xtext::encode(envid).as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

pub fn rcpt(out: &mut Vec<u8>, recipient: &Recipient, caps: &Capabilities) {
    out.extend_from_slice(b"RCPT TO:<");
    out.extend_from_slice(recipient.address.as_str().as_bytes());
    out.push(b'>');
    if caps.dsn {
        notify(out, recipient.notify);
        if let Some(original) = &recipient.original {
            // Left out where the type is not an atom: it came from a client.
            if is_atom(&original.kind) {
                out.extend_from_slice(b" ORCPT=");
                out.extend_from_slice(original.to_orcpt(false).as_bytes());
            }
        }
    }
    out.extend_from_slice(b"\r\n");
}

fn notify(out: &mut Vec<u8>, notify: Notify) {
    match notify {
        Notify::Absent => {}
        Notify::Never
        | Notify::On {
            success: false,
            failure: false,
            delay: false,
        } => out.extend_from_slice(b" NOTIFY=NEVER"),
        Notify::On {
            success,
            failure,
            delay,
        } => {
            let mut before: &[u8] = b" NOTIFY=";
            for (wanted, word) in [
                (success, &b"SUCCESS"[..]),
                (failure, b"FAILURE"),
                (delay, b"DELAY"),
            ] {
                if wanted {
                    out.extend_from_slice(before);
                    out.extend_from_slice(word);
                    before = b",";
                }
            }
        }
    }
}

fn is_atom(text: &str) -> bool {
    let atext = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*-/?^_`{|}~".contains(&b);
    !text.is_empty() && text.bytes().all(atext)
}

/// AUTH PLAIN with the initial response (RFC 4616).
pub fn auth_plain(out: &mut Vec<u8>, user: &str, password: &str) {
    out.extend_from_slice(b"AUTH PLAIN ");
    base64_into(out, format!("\0{user}\0{password}").as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// One answer of AUTH LOGIN.
pub fn base64_line(out: &mut Vec<u8>, secret: &str) {
    base64_into(out, secret.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn base64_into(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(STANDARD.encode(bytes).as_bytes());
}

#[cfg(test)]
mod tests {
    use tidegate_mail::OriginalRecipient;

    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn mail_with_and_without_parameters() {
        assert_eq!(
            text(|o| mail(o, None, MailParameters::default())),
            "MAIL FROM:<>\r\n"
        );
        let from = Address::parse("a@example.com").unwrap();
        let all = MailParameters {
            size: Some(12),
            body: Some(BodyType::EightBitMime),
            smtputf8: true,
            requiretls: true,
            ret: Some(Ret::Hdrs),
            envid: Some("id+1=2 \r\nRSET"),
        };
        assert_eq!(
            text(|o| mail(o, Some(&from), all)),
            "MAIL FROM:<a@example.com> SIZE=12 BODY=8BITMIME SMTPUTF8 REQUIRETLS RET=HDRS \
             ENVID=id+2B1+3D2+20+0D+0ARSET\r\n"
        );
    }

    #[test]
    fn rcpt_has_dsn_parameters_only_where_announced() {
        let recipient = Recipient {
            address: Address::parse("b@example.org").unwrap(),
            notify: Notify::On {
                success: true,
                failure: false,
                delay: true,
            },
            original: Some(OriginalRecipient {
                kind: "utf-8".to_owned(),
                address: "bé+x\\@example.org".to_owned(),
            }),
        };
        let with = Capabilities {
            dsn: true,
            ..Capabilities::default()
        };
        assert_eq!(
            text(|o| rcpt(o, &recipient, &with)),
            "RCPT TO:<b@example.org> NOTIFY=SUCCESS,DELAY \
             ORCPT=utf-8;b\\x{E9}\\x{2B}x\\x{5C}@example.org\r\n"
        );
        assert_eq!(
            text(|o| rcpt(o, &recipient, &Capabilities::default())),
            "RCPT TO:<b@example.org>\r\n"
        );
        let odd = Recipient {
            original: Some(OriginalRecipient {
                kind: "x y".to_owned(),
                address: "z".to_owned(),
            }),
            notify: Notify::Never,
            ..recipient
        };
        assert_eq!(
            text(|o| rcpt(o, &odd, &with)),
            "RCPT TO:<b@example.org> NOTIFY=NEVER\r\n"
        );
    }

    #[test]
    fn credentials() {
        assert_eq!(
            text(|o| auth_plain(o, "tim", "tanstaaftanstaaf")),
            "AUTH PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm\r\n"
        );
        assert_eq!(text(|o| base64_line(o, "tim")), "dGlt\r\n");
    }
}
