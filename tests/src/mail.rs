//! A mail as a CRM writes it.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// Envelope and content. The default is a small transactional mail.
#[derive(Clone, Debug)]
pub struct Mail {
    /// Reverse-path without angle brackets; empty is the null reverse-path.
    pub from: String,
    pub to: Vec<String>,
    pub subject: String,
    /// Unique in the test run.
    pub message_id: String,
    /// Further fields: name and value.
    pub fields: Vec<(String, String)>,
    pub body: String,
    /// ESMTP parameters of MAIL: `RET=FULL`.
    pub mail_parameters: Vec<(String, String)>,
    /// ESMTP parameters of every RCPT: `NOTIFY=NEVER`.
    pub rcpt_parameters: Vec<(String, String)>,
}

impl Mail {
    pub fn new(from: &str, to: &[&str], subject: &str) -> Mail {
        static COUNT: AtomicU64 = AtomicU64::new(1);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let domain = from.rsplit('@').next().unwrap_or("crm.test");
        Mail {
            from: from.to_owned(),
            to: to.iter().map(|address| (*address).to_owned()).collect(),
            subject: subject.to_owned(),
            message_id: format!("<{count}.{}@{domain}>", std::process::id()),
            fields: Vec::new(),
            body: format!("Dear customer,\r\n\r\nthis is about: {subject}.\r\n"),
            mail_parameters: Vec::new(),
            rcpt_parameters: Vec::new(),
        }
    }

    pub fn field(mut self, name: &str, value: &str) -> Mail {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn body(mut self, body: impl Into<String>) -> Mail {
        self.body = body.into();
        self
    }

    pub fn mail_parameter(mut self, name: &str, value: &str) -> Mail {
        self.mail_parameters.push((name.into(), value.into()));
        self
    }

    pub fn rcpt_parameter(mut self, name: &str, value: &str) -> Mail {
        self.rcpt_parameters.push((name.into(), value.into()));
        self
    }

    /// The message as RFC 5322 wants it, lines ended by CRLF.
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(512 + self.body.len());
        let date = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S +0000");
        let _ = write!(
            text,
            "From: <{}>\r\nTo: {}\r\nSubject: {}\r\nDate: {date}\r\nMessage-ID: {}\r\n\
             MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n",
            self.from,
            self.to.join(",\r\n "),
            self.subject,
            self.message_id
        );
        for (name, value) in &self.fields {
            let _ = write!(text, "{name}: {value}\r\n");
        }
        text.push_str("\r\n");
        text.push_str(&self.body);
        text
    }
}
