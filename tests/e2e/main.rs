//! The real binary, over real sockets, against real servers: what a CRM, a tenant, an operator and
//! a destination see of the gateway.

mod delivery;
mod durability;
mod export;
mod faults;
mod notices;
mod operator;
mod passthrough;
mod policies;
mod postgres;
mod rollout;
mod shaping;
mod submission;
mod transport;

use std::path::Path;
use std::time::Duration;

use tidegate_tests::client::Crm;
use tidegate_tests::gateway::{Gateway, Options};
use tidegate_tests::internet::Internet;
use tidegate_tests::mail::Mail;
use tidegate_tests::raw::Raw;
use tidegate_tests::sink::{Behaviour, Delivered, Destination};

/// Longer than anything here should take, even on a busy machine.
const SOON: Duration = Duration::from_secs(30);

const USER: &str = "crm@acme";
const PASSWORD: &str = "a password of the CRM";
const SENDER: &str = "sales@acme.test";

/// A local internet, a running gateway with one tenant, and the tenant's own inbox, where
/// notices go.
struct World {
    gateway: Gateway,
    inbox: Destination,
    internet: Internet,
}

impl World {
    fn start() -> World {
        World::with(|options| options)
    }

    fn with(change: impl FnOnce(Options) -> Options) -> World {
        World::on(Internet::start().unwrap(), change)
    }

    fn on(internet: Internet, change: impl FnOnce(Options) -> Options) -> World {
        World::prepared(internet, change, |_| {})
    }

    /// With files put into the gateway's directory before it starts.
    fn prepared(
        mut internet: Internet,
        change: impl FnOnce(Options) -> Options,
        prepare: impl FnOnce(&Path),
    ) -> World {
        let inbox = internet
            .destination("acme.test", Behaviour::accept())
            .unwrap();
        let options = change(Options::new(&internet).unwrap());
        let mut gateway = Gateway::new(options).unwrap();
        prepare(gateway.directory());
        gateway.start().unwrap();
        gateway.tenant("acme", &["acme.test"]).unwrap();
        gateway.credential("acme", USER, PASSWORD).unwrap();
        World {
            gateway,
            inbox,
            internet,
        }
    }

    fn destination(&mut self, domain: &str, behaviour: Behaviour) -> Destination {
        self.internet.destination(domain, behaviour).unwrap()
    }

    fn crm(&self) -> Crm {
        self.gateway.crm(USER, PASSWORD).unwrap()
    }

    fn raw(&self) -> Raw {
        self.gateway.raw(USER, PASSWORD).unwrap()
    }

    /// Submits a mail to these recipients; its queue id.
    fn send(&self, to: &[&str], subject: &str) -> String {
        let mail = Mail::new(SENDER, to, subject);
        let answer = self.crm().send(&mail).unwrap();
        answer.id().unwrap()
    }

    /// The notice about a recipient that reaches the tenant's inbox.
    fn notice(&self, action: &str, recipient: &str) -> Notice {
        let action_line = format!("Action: {action}");
        let recipient_line = format!("Final-Recipient: rfc822;{recipient}");
        let mail = self
            .inbox
            .wait_until(&format!("{action} notice on {recipient}"), SOON, |mail| {
                let text = mail.text().replace("; ", ";");
                text.contains(&action_line) && text.contains(&recipient_line)
            })
            .unwrap_or_else(|error| panic!("{error:#}\n{}", self.gateway.said()));
        Notice { mail }
    }

    /// Waits until nothing is queued.
    fn wait_empty(&self) {
        tidegate_tests::eventually("empty queue", SOON, || {
            let list = self.gateway.json(&["queue", "list"]).ok()?;
            list.as_array().is_some_and(Vec::is_empty).then_some(())
        })
        .unwrap();
    }
}

/// A delivery status notification, as it reached the sender.
struct Notice {
    mail: Delivered,
}

impl Notice {
    /// Every notice must hold to this (RFC 3461, 3464, 3834).
    fn check_form(&self, original: &str) {
        let mail = &self.mail;
        assert_eq!(mail.from, "", "null reverse-path");
        assert_eq!(mail.to, [SENDER]);
        let field = |name: &str| mail.field(name).unwrap_or_default();
        assert!(field("From").contains("MAILER-DAEMON"), "{}", mail.text());
        assert!(field("To").contains(SENDER));
        assert!(field("Content-Type").starts_with("multipart/report"));
        assert!(field("Content-Type").contains("delivery-status"));
        assert!(field("Auto-Submitted").starts_with("auto-"));
        assert_eq!(field("In-Reply-To"), original);
        assert!(field("References").contains(original));
        assert_ne!(field("Message-ID"), original);
        assert!(!field("Message-ID").is_empty() && !field("Date").is_empty());
        let parsed = mail_parser::MessageParser::default()
            .parse(&mail.content)
            .unwrap();
        assert_eq!(
            parsed.parts.len(),
            4,
            "text, status, original\n{}",
            mail.text()
        );
        let status = self.status();
        assert!(status.contains("Reporting-MTA: dns;"), "{status}");
        assert!(status.contains("Arrival-Date:"), "{status}");
    }

    /// The machine-readable part.
    fn status(&self) -> String {
        let text = self.mail.text();
        let from = text.find("Reporting-MTA").unwrap_or_default();
        let part = text[from..].split("\r\n--").next().unwrap_or_default();
        part.replace("; ", ";")
    }

    fn says(&self, what: &str) {
        let status = self.status();
        assert!(status.contains(what), "no {what:?} in\n{status}");
    }
}
