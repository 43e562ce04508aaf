//! AUTH (RFC 4954).

use tidegate_mail::Reply;

use super::{Action, Phase, Session};
use crate::output;
use crate::sasl::{self, Mechanism};

impl Session {
    pub(super) fn auth(&mut self, args: &str) -> Option<Action> {
        if !self.greeted {
            return self.error("503 5.5.1 send EHLO first");
        }
        if self.authenticated {
            return self.error("503 5.5.1 you are logged in already");
        }
        if self.transaction.is_some() {
            return self.error("503 5.5.1 AUTH is not for the middle of a transaction");
        }
        if !self.tls && !self.config.allow_plain_auth {
            return self.error(if self.config.starttls {
                "538 5.7.11 AUTH needs TLS: send STARTTLS first"
            } else {
                "538 5.7.11 AUTH needs TLS, which this port does not offer"
            });
        }
        let (mechanism, initial) = match args.split_once(' ') {
            None => (args, None),
            Some((mechanism, initial)) => (mechanism, Some(initial)),
        };
        if mechanism.eq_ignore_ascii_case("PLAIN") {
            self.phase = Phase::AuthPlain;
        } else if mechanism.eq_ignore_ascii_case("LOGIN") {
            self.phase = Phase::AuthUser;
        } else {
            return self.error("504 5.5.4 AUTH mechanism not offered; use PLAIN or LOGIN");
        }
        match (initial, &self.phase) {
            (Some(initial), _) => self.auth_line(initial),
            (None, Phase::AuthPlain) => self.ok("334 "),
            (None, _) => self.ok("334 VXNlcm5hbWU6"),
        }
    }

    /// One line of the client's part of the exchange.
    pub(super) fn auth_line(&mut self, line: &str) -> Option<Action> {
        let phase = std::mem::replace(&mut self.phase, Phase::Command);
        if line == "*" {
            return self.error("501 5.7.0 AUTH cancelled");
        }
        let Some(response) = sasl::decode(line) else {
            return self.error("501 5.5.2 the AUTH response is not base64");
        };
        let credentials = match phase {
            Phase::AuthUser => match sasl::user_name(response.as_bytes()) {
                Ok(user) => {
                    self.phase = Phase::AuthPassword(user);
                    return self.ok("334 UGFzc3dvcmQ6");
                }
                Err(text) => Err(text),
            },
            Phase::AuthPassword(user) => {
                sasl::credentials(Mechanism::Login, user.as_bytes(), response.as_bytes())
            }
            _ => sasl::plain(&response),
        };
        match credentials {
            Ok(credentials) => {
                self.phase = Phase::AwaitAuth;
                Some(Action::Authenticate(credentials))
            }
            Err(text) => self.error(&format!("501 5.5.2 {text}")),
        }
    }

    /// Answers [`Action::Authenticate`]; the error is the reply to the client, and 421 ends
    /// the session. Without such a question it has no effect.
    pub fn auth_result(&mut self, result: Result<(), Reply>) {
        if !matches!(self.phase, Phase::AwaitAuth) {
            return;
        }
        self.phase = Phase::Command;
        let Err(reply) = result else {
            self.authenticated = true;
            self.errors = 0;
            output::line(&mut self.out, "235 2.7.0 you are logged in");
            return;
        };
        let _: Option<Action> = self.refuse(&reply);
        self.auth_failures += 1;
        if self.auth_failures >= self.config.max_auth_failures
            && !matches!(self.phase, Phase::Closed { .. })
        {
            let _: Option<Action> = self.fatal("421 4.7.0 too many failed logins; closing");
        }
    }
}
