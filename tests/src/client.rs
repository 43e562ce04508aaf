//! A CRM's mail client: the mail-send crate, an implementation of SMTP that is not ours.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mail_send::smtp::message::{Address, Message, Parameters};
use mail_send::{Credentials, Error, SmtpClient, SmtpClientBuilder};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::mail::Mail;
use crate::raw::queue_id;

/// How the connection is protected.
#[derive(Clone)]
pub enum Protection {
    Clear,
    StartTls(Arc<ClientConfig>),
    Implicit(Arc<ClientConfig>),
}

/// What became of a submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 250: the text, and the queue id in it.
    Accepted { text: String, id: Option<String> },
    /// Any other reply: code, and text with the enhanced code.
    Refused { code: u16, text: String },
}

impl Answer {
    /// The queue id of an accepted mail.
    pub fn id(&self) -> anyhow::Result<String> {
        match self {
            Answer::Accepted { id: Some(id), .. } => Ok(id.clone()),
            other => anyhow::bail!("no queue id in {other:?}"),
        }
    }
}

enum Client {
    Clear(SmtpClient<TcpStream>),
    Tls(Box<SmtpClient<TlsStream<TcpStream>>>),
}

/// An authenticated session.
pub struct Crm {
    runtime: Runtime,
    client: Client,
}

impl Crm {
    pub fn connect(
        address: SocketAddr,
        protection: &Protection,
        user: &str,
        password: &str,
    ) -> anyhow::Result<Crm> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let config = match protection {
            Protection::Clear => crate::tls::client_trusting("")?,
            Protection::StartTls(config) | Protection::Implicit(config) => config.clone(),
        };
        let mut builder = SmtpClientBuilder::new_with_tls_connector(
            address.ip().to_string(),
            address.port(),
            TlsConnector::from(config),
        )
        .timeout(Duration::from_secs(60))
        .helo_host("crm.test")
        .credentials(Credentials::new(user.to_owned(), password.to_owned()))
        .implicit_tls(matches!(protection, Protection::Implicit(_)));
        builder.tls_hostname = "localhost".to_owned();
        let client = runtime.block_on(async {
            Ok::<_, Error>(match protection {
                Protection::Clear => Client::Clear(builder.connect_plain().await?),
                _ => Client::Tls(Box::new(builder.connect().await?)),
            })
        })?;
        Ok(Crm { runtime, client })
    }

    /// Submits one mail on this session.
    pub fn send(&mut self, mail: &Mail) -> anyhow::Result<Answer> {
        let parameters = |given: &[(String, String)]| {
            let mut all = Parameters::new();
            for pair in given {
                all.add(pair.clone());
            }
            all
        };
        let mut text = mail.text();
        // mail-send ends the content with a line end of its own.
        if text.ends_with("\r\n") {
            text.truncate(text.len() - 2);
        }
        let message = Message {
            mail_from: Address::new(mail.from.clone(), parameters(&mail.mail_parameters)),
            rcpt_to: mail
                .to
                .iter()
                .map(|to| Address::new(to.clone(), parameters(&mail.rcpt_parameters)))
                .collect(),
            body: text.into_bytes().into(),
        };
        let sent = self.runtime.block_on(async {
            match &mut self.client {
                Client::Clear(client) => client.send(message).await,
                Client::Tls(client) => client.send(message).await,
            }
        });
        match sent {
            Ok(reply) => Ok(Answer::Accepted {
                id: queue_id(&reply.message),
                text: reply.message,
            }),
            Err(Error::UnexpectedReply(reply)) => {
                // The session goes on with the next mail.
                self.runtime.block_on(async {
                    match &mut self.client {
                        Client::Clear(client) => client.rset().await,
                        Client::Tls(client) => client.rset().await,
                    }
                })?;
                let [a, b, c] = reply.esc;
                let text = if a == 0 {
                    reply.message
                } else {
                    format!("{a}.{b}.{c} {}", reply.message)
                };
                Ok(Answer::Refused {
                    code: reply.code,
                    text,
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    pub fn quit(self) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            match self.client {
                Client::Clear(client) => client.quit().await,
                Client::Tls(client) => client.quit().await,
            }
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::{Behaviour, Destination, Stage};
    use crate::tls::Identity;

    #[test]
    fn submits_in_clear_and_over_tls() {
        let identity = Identity::new(&["localhost"]).unwrap();
        let server = Destination::start(
            [127, 0, 0, 1],
            0,
            Behaviour::accept()
                .starttls(&identity)
                .login("crm", "secret"),
        )
        .unwrap();
        let tls = crate::tls::client_trusting(&identity.certificate_pem).unwrap();
        for protection in [Protection::Clear, Protection::StartTls(tls)] {
            let mut crm = Crm::connect(server.address(), &protection, "crm", "secret").unwrap();
            let mail = Mail::new("a@a.test", &["b@b.test"], "hello").body(".leading dot\r\n");
            assert!(matches!(crm.send(&mail).unwrap(), Answer::Accepted { .. }));
            crm.quit().unwrap();
        }
        let mail = server.wait_for(2, Duration::from_secs(5)).unwrap();
        assert_eq!((mail[0].tls, mail[1].tls), (false, true));
        assert!(mail[1].text().ends_with("\r\n\r\n.leading dot\r\n"));
        assert!(Crm::connect(server.address(), &Protection::Clear, "crm", "wrong").is_err());

        server.behave(
            Behaviour::accept()
                .login("crm", "secret")
                .reply(Stage::EndOfData, "554 5.6.0 not this one"),
        );
        let mut crm = Crm::connect(server.address(), &Protection::Clear, "crm", "secret").unwrap();
        let refused = crm
            .send(&Mail::new("a@a.test", &["b@b.test"], "x"))
            .unwrap();
        assert!(
            matches!(&refused, Answer::Refused { code: 554, text } if text.contains("not this one")),
            "{refused:?}"
        );
    }
}
