//! Reads delivery reports and prints what they say, a line of JSON for each file:
//!
//! ```sh
//! cargo run --release -p tidegate-mail --example dsn_read -- FILE...
//! ```

use serde_json::json;
use tidegate_mail::dsn::{self, Form};

fn main() {
    for path in std::env::args().skip(1) {
        let report = match std::fs::read(&path) {
            Ok(bytes) => dsn::parse(&bytes),
            Err(error) => {
                eprintln!("{path}: {error}");
                std::process::exit(1);
            }
        };
        let recipients: Vec<_> = report
            .iter()
            .flat_map(|r| &r.recipients)
            .map(|r| {
                let address = |a: &Option<dsn::TypedAddress>| a.as_ref().map(|a| a.address.clone());
                json!({
                    "address": address(&r.address),
                    "original": address(&r.original),
                    "action": format!("{:?}", r.action).to_lowercase(),
                    "status": r.status.map(|s| s.to_string()),
                    "cause": r.cause().map(|s| s.to_string()),
                    "diagnostic": r.diagnostic.as_ref().map(|d| &d.text),
                })
            })
            .collect();
        let form = report.as_ref().map(|r| match r.form {
            Form::Fields => "fields",
            Form::Text => "text",
        });
        println!(
            "{}",
            json!({
                "file": path,
                "form": form,
                "message_id": report.and_then(|r| r.message_id),
                "recipients": recipients,
            })
        );
    }
}
