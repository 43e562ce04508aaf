//! The parameters of MAIL and RCPT: RFC 1870, 3461, 4954, 6152, 6531, 8689.

use tidegate_mail::{BodyType, Enhanced, Notify, OriginalRecipient, Reply, Ret, xtext};

/// What the parameters of MAIL said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct MailParams {
    pub size: Option<u64>,
    pub body: BodyType,
    pub smtputf8: bool,
    pub requiretls: bool,
    pub ret: Option<Ret>,
    pub envid: Option<String>,
}

/// What the parameters of RCPT said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct RcptParams {
    pub notify: Notify,
    pub original: Option<OriginalRecipient>,
}

fn bad(text: impl Into<String>) -> Reply {
    Reply::new(501, Enhanced::new(5, 5, 4), text)
}

fn unknown(command: &str, keyword: &str) -> Reply {
    Reply::new(
        555,
        Enhanced::new(5, 5, 4),
        format!("{command} parameter {keyword} is not offered here; leave it out"),
    )
}

/// Walks `KEYWORD[=value]` pairs separated by spaces; a keyword may come once.
fn each<'a>(
    text: &'a str,
    mut take: impl FnMut(&str, Option<&'a str>) -> Result<(), Reply>,
) -> Result<(), Reply> {
    // Each keyword known is a few bytes and the line is bounded, so a list is enough.
    let mut seen: Vec<String> = Vec::new();
    for pair in text.split(' ').filter(|p| !p.is_empty()) {
        let (keyword, value) = match pair.split_once('=') {
            Some((k, v)) => (k, Some(v)),
            None => (pair, None),
        };
        let mut bytes = keyword.bytes();
        let well_formed = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
            && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !well_formed || keyword.len() > 40 {
            return Err(bad(
                "a parameter is not of the form KEYWORD or KEYWORD=value",
            ));
        }
        let keyword = keyword.to_ascii_uppercase();
        if value.is_some_and(|v| v.is_empty() || v.contains('=')) {
            return Err(bad(format!("the value of {keyword} is empty or has a '='")));
        }
        if seen.contains(&keyword) {
            return Err(bad(format!("{keyword} is given twice")));
        }
        take(&keyword, value)?;
        seen.push(keyword);
    }
    Ok(())
}

pub(crate) fn mail(text: &str, requiretls: bool) -> Result<MailParams, Reply> {
    let mut params = MailParams::default();
    each(text, |keyword, value| {
        match (keyword, value) {
            ("SIZE", Some(v)) => {
                if v.len() > 20 || !v.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(bad("SIZE is not a number of bytes (up to 20 digits)"));
                }
                // Twenty digits may exceed 64 bits: larger than any limit all the same.
                params.size = Some(v.parse().unwrap_or(u64::MAX));
            }
            ("BODY", Some(v)) if v.eq_ignore_ascii_case("7BIT") => params.body = BodyType::SevenBit,
            ("BODY", Some(v)) if v.eq_ignore_ascii_case("8BITMIME") => {
                params.body = BodyType::EightBitMime;
            }
            ("BODY", _) => return Err(bad("BODY must be 7BIT or 8BITMIME")),
            ("SMTPUTF8", None) => params.smtputf8 = true,
            ("REQUIRETLS", None) if requiretls => params.requiretls = true,
            ("RET", Some(v)) if v.eq_ignore_ascii_case("FULL") => params.ret = Some(Ret::Full),
            ("RET", Some(v)) if v.eq_ignore_ascii_case("HDRS") => params.ret = Some(Ret::Hdrs),
            ("RET", _) => return Err(bad("RET must be FULL or HDRS")),
            ("ENVID", Some(v)) => {
                params.envid =
                    Some(xtext::parse_envid(v).map_err(|e| bad(format!("ENVID: {e} (RFC 3461)")))?);
            }
            // RFC 4954 s. 5: who submitted it first. The login says who does now.
            ("AUTH", Some(v)) => {
                if v != "<>" && xtext::decode(v).is_err() {
                    return Err(bad("AUTH is not <> or xtext (RFC 4954)"));
                }
            }
            ("SIZE" | "ENVID" | "AUTH", None) => {
                return Err(bad(format!("{keyword} needs a value")));
            }
            ("SMTPUTF8", Some(_)) => return Err(bad("SMTPUTF8 takes no value")),
            _ => return Err(unknown("MAIL", keyword)),
        }
        Ok(())
    })?;
    Ok(params)
}

pub(crate) fn rcpt(text: &str, smtputf8: bool) -> Result<RcptParams, Reply> {
    let mut params = RcptParams::default();
    each(text, |keyword, value| {
        match (keyword, value) {
            ("NOTIFY", Some(v)) => params.notify = notify(v)?,
            ("ORCPT", Some(v)) => params.original = Some(orcpt(v, smtputf8)?),
            ("NOTIFY" | "ORCPT", None) => {
                return Err(bad(format!("{keyword} needs a value")));
            }
            _ => return Err(unknown("RCPT", keyword)),
        }
        Ok(())
    })?;
    Ok(params)
}

fn notify(value: &str) -> Result<Notify, Reply> {
    let wrong = || bad("NOTIFY must be NEVER, or a list of SUCCESS, FAILURE and DELAY");
    if value.eq_ignore_ascii_case("NEVER") {
        return Ok(Notify::Never);
    }
    let (mut success, mut failure, mut delay) = (false, false, false);
    for word in value.split(',') {
        let flag = if word.eq_ignore_ascii_case("SUCCESS") {
            &mut success
        } else if word.eq_ignore_ascii_case("FAILURE") {
            &mut failure
        } else if word.eq_ignore_ascii_case("DELAY") {
            &mut delay
        } else {
            return Err(wrong());
        };
        if *flag {
            return Err(wrong());
        }
        *flag = true;
    }
    Ok(Notify::On {
        success,
        failure,
        delay,
    })
}

fn orcpt(value: &str, smtputf8: bool) -> Result<OriginalRecipient, Reply> {
    if !value.is_ascii() && !smtputf8 {
        return Err(bad(
            "ORCPT is not ASCII; MAIL did not say SMTPUTF8 (RFC 6533)",
        ));
    }
    OriginalRecipient::parse_orcpt(value).map_err(|e| bad(format!("ORCPT: {e} (RFC 3461)")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mail_parameters() {
        let got = mail(
            " SIZE=1000 BODY=8bitmime  SMTPUTF8 RET=HDRS ENVID=QQ+2B1 AUTH=<>",
            false,
        )
        .unwrap();
        assert_eq!(
            got,
            MailParams {
                size: Some(1000),
                body: BodyType::EightBitMime,
                smtputf8: true,
                requiretls: false,
                ret: Some(Ret::Hdrs),
                envid: Some("QQ+1".into()),
            }
        );
        assert!(mail("REQUIRETLS", true).unwrap().requiretls);
        assert_eq!(
            mail("SIZE=99999999999999999999", false).unwrap().size,
            Some(u64::MAX)
        );
    }

    #[test]
    fn refused_mail_parameters() {
        let cases = [
            ("SIZE", 501),
            ("SIZE=", 501),
            ("SIZE=12a", 501),
            ("SIZE=-1", 501),
            ("SIZE=1 SIZE=1", 501),
            ("BODY=BINARYMIME", 501),
            ("BODY", 501),
            ("SMTPUTF8=1", 501),
            ("RET=ALL", 501),
            ("ENVID=a+0D+0Ab", 501),
            ("ENVID=a+0", 501),
            ("ENVID=a+0g", 501),
            ("ENVID=a=b", 501),
            ("AUTH=a+", 501),
            ("=1", 501),
            ("-A=1", 501),
            ("REQUIRETLS", 555),
            ("HOLDFOR=10", 555),
            ("NOTIFY=NEVER", 555),
        ];
        for (text, code) in cases {
            assert_eq!(mail(text, false).map_err(|r| r.code), Err(code), "{text}");
        }
    }

    #[test]
    fn rcpt_parameters() {
        let got = rcpt("NOTIFY=SUCCESS,delay ORCPT=rfc822;Bob+2Bx@b.c", false).unwrap();
        assert_eq!(
            got.notify,
            Notify::On {
                success: true,
                failure: false,
                delay: true
            }
        );
        assert_eq!(
            got.original,
            Some(OriginalRecipient {
                kind: "rfc822".into(),
                address: "Bob+x@b.c".into()
            })
        );
        let got = rcpt("ORCPT=utf-8;j\\x{F6}rg@b.c", false).unwrap();
        assert_eq!(got.original.unwrap().address, "jörg@b.c");
        let got = rcpt("ORCPT=utf-8;jörg@b.c", true).unwrap();
        assert_eq!(got.original.unwrap().address, "jörg@b.c");
    }

    #[test]
    fn refused_rcpt_parameters() {
        for (text, code) in [
            ("NOTIFY=NEVER,DELAY", 501),
            ("NOTIFY=DELAY,DELAY", 501),
            ("NOTIFY=", 501),
            ("NOTIFY=,", 501),
            ("ORCPT=rfc822", 501),
            ("ORCPT=rfc822;", 501),
            ("ORCPT=;a@b", 501),
            ("ORCPT=rf c;a@b", 501),
            ("ORCPT=rfc822;a+0D+0Ab@c", 501),
            ("ORCPT=utf-8;a\\x{D}b", 501),
            ("ORCPT=utf-8;a\\x{0D}b", 501),
            ("ORCPT=utf-8;a\\x{D800}b", 501),
            ("ORCPT=utf-8;jörg@b.c", 501),
            ("SIZE=1", 555),
        ] {
            assert_eq!(rcpt(text, false).map_err(|r| r.code), Err(code), "{text}");
        }
    }
}
