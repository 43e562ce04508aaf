//! What lets a receiver know a request: an idempotency key, and a signature as Standard Webhooks
//! (standardwebhooks.com) has it, for which there are libraries in every language.

use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tidegate_queue::ports::{ExportBatch, Payload};

/// How a symmetric key begins where it is written in base64.
const PREFIX: &str = "whsec_";

/// The key of a request: the same when the same events come again with the same body.
pub(super) fn key(batch: &ExportBatch, payload: &Payload) -> String {
    let digest = digest::digest(&digest::SHA256, &payload.body);
    let hex: String = digest.as_ref()[..16]
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("{}-{}-{}-{hex}", batch.exporter, batch.first, batch.last)
}

/// The value of `webhook-signature`: one signature for each key, of which there is one a line, so
/// that a receiver may change from one to the next.
///
/// # Errors
/// For people, where there is no key.
pub(super) fn signature(keys: &str, id: &str, seconds: i64, body: &[u8]) -> Result<String, String> {
    let mut signatures = Vec::new();
    for line in keys.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let bytes = match line.strip_prefix(PREFIX) {
            Some(text) => STANDARD
                .decode(text)
                .map_err(|_| format!("what follows {PREFIX} in the key is not base64"))?,
            None => line.as_bytes().to_vec(),
        };
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &bytes));
        context.update(format!("{id}.{seconds}.").as_bytes());
        context.update(body);
        signatures.push(format!("v1,{}", STANDARD.encode(context.sign())));
    }
    if signatures.is_empty() {
        return Err("there is no key in it".to_owned());
    }
    Ok(signatures.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_the_standard() {
        // The example of the specification's own libraries.
        let key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let body = br#"{"test": 2432232314}"#;
        let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
        assert_eq!(
            signature(key, id, 1_614_265_330, body).unwrap(),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
        let two = signature(&format!("{key}\nother\n"), id, 1_614_265_330, body).unwrap();
        assert!(two.starts_with("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE= v1,"));
        assert!(signature(" \n", id, 1, body).is_err());
        assert!(signature("whsec_!", id, 1, body).is_err());
    }

    #[test]
    fn a_key_is_of_the_events_and_the_body() {
        let payload = |body: &'static str| Payload {
            body: body.into(),
            content_type: "text/plain".into(),
        };
        let batch = ExportBatch {
            exporter: "crm".into(),
            first: 3,
            last: 9,
            payloads: vec![],
        };
        let key = |body| super::key(&batch, &payload(body));
        assert!(key("a").starts_with("crm-3-9-"));
        assert_eq!(key("a"), key("a"));
        assert_ne!(key("a"), key("b"));
    }
}
