//! The parts of the demonstration: the small internet, the gateway, and the CRM's sessions.

use std::path::{Path, PathBuf};

use anyhow::Context;
use tidegate_tests::client::{Answer, Crm, Protection};
use tidegate_tests::gateway::{self, Gateway, Options};
use tidegate_tests::internet::Internet;
use tidegate_tests::mail::Mail;
use tidegate_tests::sink::{Behaviour, Destination};
use tidegate_tests::tls::Identity;

use super::Story;

const USER: &str = "crm@acme";
const NEWS_USER: &str = "news@acme";
const PASSWORD: &str = "for the demonstration";
const SENDER: &str = "sales@acme.example";

/// A submission and its answer.
pub struct Sent {
    pub answer: Answer,
    pub message_id: String,
}

/// Everything that runs.
pub struct Scene {
    pub gateway: Gateway,
    /// Where notices to acme's senders arrive.
    pub inbox: Destination,
    pub customer: Destination,
    pub slow: Destination,
    pub gone: Destination,
    pub partner: Destination,
    pub news: Destination,
    pub blocked: Destination,
    /// Acme's own server, which takes mail for its partners.
    pub office: Destination,
    internet: Internet,
    place: PathBuf,
}

impl Scene {
    pub fn start(place: &Path, story: &Story) -> anyhow::Result<Scene> {
        let mut internet = Internet::start()?;
        let identity = Identity::new(&["mx.customer.example"])?;
        let inbox = internet.destination("acme.example", Behaviour::accept())?;
        let customer =
            internet.destination("customer.example", Behaviour::accept().starttls(&identity))?;
        let slow = internet.destination("slow.example", Behaviour::greylist(1))?;
        let gone = internet.destination(
            "gone.example",
            Behaviour::accept().reply_to("nobody@gone.example", "550 5.1.1 no such mailbox"),
        )?;
        internet.unreachable("dark.example");
        let partner = internet.destination("partner.example", Behaviour::accept())?;
        let news = internet.destination("news.example", Behaviour::accept())?;
        let blocked = internet.destination("blocked.example", Behaviour::accept())?;
        let ip = internet.unused();
        let office = Destination::start(
            ip,
            internet.mx_port(),
            Behaviour::accept().reply_to(
                "retired@partner.example",
                "550 5.1.6 this colleague retired in spring",
            ),
        )?;
        story.say(&format!(
            "a local internet: name server {}, six destinations on port {}, one address where nobody listens",
            internet.dns.address(),
            internet.mx_port()
        ));

        let options = Options::new(&internet)?
            .set("delivery.retry", vec!["2s"])
            .set("delivery.lifetime", "14s")
            .set("delivery.delay_notice_after", "4s");
        let mut gateway = Gateway::kept(&place.join("gateway"), options)?;
        story.say("tidegate init: configuration, certificate, keys, default policies");
        gateway.start()?;
        story.say(&format!(
            "tidegate serve: submission with STARTTLS at {}, SQLite below {}",
            gateway.submission(),
            gateway.directory().join("data").display()
        ));
        gateway.tenant("acme", &["acme.example"])?;
        gateway.credential("acme", USER, PASSWORD)?;
        gateway.bulk_credential("acme", NEWS_USER, PASSWORD)?;
        gateway.server("acme", "office", office.address())?;
        let exporter = gateway::policy("export-jsonl")?;
        gateway.policy("export/log", &exporter, "")?;
        story.say(
            "tidegate tenant, credential, server: acme, two accounts of its CRM, its own server",
        );

        let scene = Scene {
            gateway,
            inbox,
            customer,
            slow,
            gone,
            partner,
            news,
            blocked,
            office,
            internet,
            place: place.to_owned(),
        };
        for (name, server) in scene.destinations() {
            server.keep_files(scene.place.join("delivered").join(name))?;
        }
        Ok(scene)
    }

    pub fn destinations(&self) -> [(&'static str, &Destination); 8] {
        [
            ("acme.example", &self.inbox),
            ("customer.example", &self.customer),
            ("slow.example", &self.slow),
            ("gone.example", &self.gone),
            ("partner.example", &self.partner),
            ("news.example", &self.news),
            ("blocked.example", &self.blocked),
            ("office", &self.office),
        ]
    }

    /// The log entry of a mail and its queue id, as an enquiry by Message-ID finds them.
    pub fn enquire(&self, mail: &Sent) -> anyhow::Result<(String, serde_json::Value)> {
        let found = self
            .gateway
            .json(&["log", "--message-id", &mail.message_id])?;
        let id = found[0]["message"]
            .as_str()
            .with_context(|| format!("{} is not in the log", mail.message_id))?;
        Ok((id.to_owned(), found[0].clone()))
    }

    /// Puts a configuration of the default routing policy in force for acme.
    pub fn policy(&self, config: &str) -> anyhow::Result<String> {
        self.gateway
            .policy("routing/acme", &gateway::policy("routing-default")?, config)
    }

    /// A session of the CRM, over STARTTLS.
    pub fn crm(&self, bulk: bool) -> anyhow::Result<Crm> {
        let user = if bulk { NEWS_USER } else { USER };
        Crm::connect(
            self.gateway.submission(),
            &Protection::StartTls(self.gateway.trust()?),
            user,
            PASSWORD,
        )
        .context("the CRM logs in")
    }

    pub fn submit(
        &self,
        crm: &mut Crm,
        story: &Story,
        to: &[&str],
        subject: &str,
        fields: &[(&str, &str)],
    ) -> anyhow::Result<Sent> {
        let mut mail = Mail::new(SENDER, to, subject);
        for (name, value) in fields {
            mail = mail.field(name, value);
        }
        let answer = crm.send(&mail)?;
        let said = match &answer {
            Answer::Accepted { text, .. } => format!("250 {text}"),
            Answer::Refused { code, text } => format!("{code} {text}"),
        };
        story.say(&format!("CRM to {}: {subject:?} -> {said}", to.join(", ")));
        Ok(Sent {
            answer,
            message_id: mail.message_id,
        })
    }

    /// All exported lines so far.
    pub fn exported(&self) -> String {
        let mut text = String::new();
        for file in self.export_files() {
            text.push_str(&std::fs::read_to_string(file).unwrap_or_default());
        }
        text
    }

    fn export_files(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.gateway.directory().join("data/export/log"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_file())
            .collect()
    }

    /// Where to look for oneself.
    pub fn show_places(&self) {
        println!("\nWhat arrived, as files:");
        for (name, server) in self.destinations() {
            let directory = self.place.join("delivered").join(name);
            let number = server.counts().messages;
            let what = match name {
                "acme.example" => "acme.example, notices",
                "office" => "acme's own server",
                name => name,
            };
            println!("  {number:2} x {what:22} {}", directory.display());
        }
        println!("The exported log:");
        for file in self.export_files() {
            println!("  {}", file.display());
        }
        println!(
            "The gateway: its configuration, data, and messages:\n  {}\n  {}\n  {}\n",
            self.gateway.config().display(),
            self.gateway.directory().join("data").display(),
            self.gateway.directory().join("stderr.log").display()
        );
    }

    /// For `--keep`: what to try by hand.
    pub fn explain(&self) {
        let binary = gateway::binary().unwrap_or_default();
        let command = format!(
            "{} --config {}",
            binary.display(),
            self.gateway.config().display()
        );
        println!(
            "Left running, until Ctrl-C:\n\
             \x20 submission, AUTH in clear  {}\n\
             \x20 submission, STARTTLS       {}\n\
             \x20 submission, implicit TLS   {}\n\
             \x20 user {USER} (or {NEWS_USER} for bulk), password {PASSWORD:?}, sender {SENDER}\n\
             \x20 domains: customer (accepts), slow (greylists), gone (refuses nobody@), dark (unreachable),\n\
             \x20          partner, news, blocked; each with .example\n\
             \x20 name server {}, port of all MX hosts {}\n\
             Try:\n\
             \x20 {command} stats\n\
             \x20 {command} log --recipient jane@customer.example\n\
             \x20 {command} policy history --slot routing/acme\n\
             \x20 curl --url smtp://{} --user {USER}:'{PASSWORD}' --login-options AUTH=PLAIN \\\n\
             \x20   --mail-from {SENDER} --mail-rcpt you@customer.example --upload-file mail.txt\n",
            self.gateway.smtp(),
            self.gateway.submission(),
            self.gateway.submissions(),
            self.internet.dns.address(),
            self.internet.mx_port(),
            self.gateway.smtp(),
        );
    }
}
