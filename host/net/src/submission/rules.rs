//! Who may send what: the session's questions, answered from the directory as it is now.

use std::sync::Arc;

use tidegate_mail::{Address, Enhanced, Reply};
use tidegate_queue::directory::Credential;
use tidegate_queue::{Directory, Intake};
use tidegate_submit::Host;

pub struct Rules<'a> {
    pub login: Option<&'a Arc<Credential>>,
    pub directory: &'a arc_swap::ArcSwap<Directory>,
    pub intake: &'a dyn Intake,
    pub allow_null_reverse_path: bool,
}

impl Host for Rules<'_> {
    fn mail(&mut self, reverse_path: Option<&Address>, _size: u64) -> Result<(), Reply> {
        let Some(login) = self.login else {
            return Err(refuse(530, (5, 7, 0), "log in first"));
        };
        if let Some(reply) = self.intake.refusal() {
            return Err(reply);
        }
        let directory = self.directory.load();
        // A connection may outlive its credential.
        let still = directory.credential(&login.user).is_some_and(|now| {
            Arc::ptr_eq(now, login) || (now.hash == login.hash && now.tenant == login.tenant)
        });
        if !still {
            return Err(refuse(
                421,
                (4, 7, 0),
                "the login has been changed or withdrawn; connect and log in again",
            ));
        }
        let tenant = login.tenant.as_str();
        match directory.tenant(tenant) {
            None => {
                return Err(refuse(
                    550,
                    (5, 7, 1),
                    format!("tenant {tenant} does not exist any more"),
                ));
            }
            Some(t) if t.suspended => {
                return Err(refuse(
                    550,
                    (5, 7, 1),
                    format!("tenant {tenant} is suspended; ask the operator"),
                ));
            }
            Some(_) => {}
        }
        match reverse_path {
            None if self.allow_null_reverse_path => Ok(()),
            None => Err(refuse(
                550,
                (5, 7, 1),
                "MAIL FROM: the null reverse-path is not for submitted mail; use an address of yours",
            )),
            Some(path) if directory.owns(tenant, path.domain()) => Ok(()),
            Some(path) => Err(refuse(
                550,
                (5, 7, 1),
                format!(
                    "MAIL FROM: {} is not a domain of tenant {tenant}; have the operator add it",
                    path.domain()
                ),
            )),
        }
    }
}

fn refuse(code: u16, status: (u8, u16, u16), text: impl Into<String>) -> Reply {
    Reply::new(code, Enhanced::new(status.0, status.1, status.2), text)
}
