//! Commands outside of a transaction and of AUTH.

use super::{Action, Phase, Session};
use crate::{command, output};

impl Session {
    pub(super) fn ehlo(&mut self, args: &str) -> Option<Action> {
        let Some(name) = command::helo_name(args) else {
            return self
                .error("501 5.5.4 EHLO needs one host name or address literal as its argument");
        };
        self.greeted = true;
        self.extended = true;
        name.clone_into(&mut self.helo);
        let abort = self.reset();
        let config = self.config.clone();
        let out = &mut self.out;
        output::line(out, &format!("250-{}", config.hostname));
        output::line(out, "250-PIPELINING");
        output::line(out, &format!("250-SIZE {}", config.max_size));
        output::line(out, "250-8BITMIME");
        output::line(out, "250-SMTPUTF8");
        output::line(out, "250-ENHANCEDSTATUSCODES");
        output::line(out, "250-DSN");
        output::line(out, "250-CHUNKING");
        if config.starttls && !self.tls {
            output::line(out, "250-STARTTLS");
        }
        if self.tls && config.requiretls {
            output::line(out, "250-REQUIRETLS");
        }
        if self.tls || config.allow_plain_auth {
            output::line(out, "250-AUTH PLAIN LOGIN");
        }
        output::line(
            out,
            &format!("250 LIMITS RCPTMAX={}", config.max_recipients),
        );
        abort
    }

    pub(super) fn helo_command(&mut self, args: &str) -> Option<Action> {
        let Some(name) = command::helo_name(args) else {
            return self
                .error("501 5.5.4 HELO needs one host name or address literal as its argument");
        };
        self.greeted = true;
        self.extended = false;
        name.clone_into(&mut self.helo);
        let abort = self.reset();
        let reply = format!("250 {}", self.config.hostname);
        output::line(&mut self.out, &reply);
        abort
    }

    /// `last`: nothing follows in the buffer. What does was sent in clear, to be taken for
    /// something said under TLS.
    pub(super) fn start_tls(&mut self, args: &str, last: bool) -> Option<Action> {
        if !args.is_empty() {
            return self.error("501 5.5.4 STARTTLS takes no argument");
        }
        if self.tls {
            return self.error("503 5.5.1 TLS is on already");
        }
        if !self.config.starttls {
            return self.error("502 5.5.1 STARTTLS is not offered on this port");
        }
        if self.authenticated {
            return self.error("503 5.5.1 STARTTLS comes before AUTH");
        }
        if !last {
            return self.fatal("554 5.5.1 nothing may follow STARTTLS before its reply");
        }
        // There is no transaction to drop: MAIL comes after AUTH.
        output::line(&mut self.out, "220 2.0.0 begin the TLS handshake");
        self.phase = Phase::AwaitTls;
        Some(Action::StartTls)
    }

    pub(super) fn rset(&mut self, args: &str) -> Option<Action> {
        if !args.is_empty() {
            return self.error("501 5.5.4 RSET takes no argument");
        }
        output::line(&mut self.out, "250 2.0.0 OK");
        self.reset()
    }

    pub(super) fn vrfy(&mut self, args: &str) -> Option<Action> {
        if args.is_empty() {
            return self.error("501 5.5.4 VRFY needs an address");
        }
        self.ok("252 2.5.0 addresses are not verified here; send mail to try one")
    }

    pub(super) fn quit(&mut self, args: &str) -> Option<Action> {
        if !args.is_empty() {
            return self.error("501 5.5.4 QUIT takes no argument");
        }
        output::line(&mut self.out, "221 2.0.0 goodbye");
        self.phase = Phase::Closed { abrupt: false };
        None
    }
}
