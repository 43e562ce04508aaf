//! What a job demands of a connection: from the domain's policy, the message's REQUIRETLS or
//! `TLS-Required: No`, and the endpoint's configuration to a mode and a check.

use tidegate_mail::{Fault, Outcome, Stage};
use tidegate_queue::ports::{Job, MxHost, Protection, Target, TlsMode};

use super::Candidate;
use super::pool::Identity;
use super::session::Session;
use super::tls::Check;

/// How a connection has to be made.
#[derive(Clone, Debug)]
pub struct Demand {
    pub mode: TlsMode,
    pub check: Check,
    /// Under which name it is logged; none if nothing is demanded.
    pub policy: Option<&'static str>,
    /// What the log says against the host without more ado.
    objection: Option<&'static str>,
}

impl Demand {
    fn new(mode: TlsMode, check: Check, policy: Option<&'static str>) -> Self {
        Demand {
            mode,
            check,
            policy,
            objection: None,
        }
    }

    /// In whose name a connection is made: what is given to others only if it was made in the
    /// same way.
    pub fn identity(&self, job: &Job, host: &str) -> Identity {
        match (&job.target, &self.check) {
            (Target::Endpoint(endpoint), _) => Identity::Endpoint(endpoint.clone()),
            (Target::Mx(_), Check::Nothing) => Identity::Anyone,
            // The records say all: hosts that share them share the connection.
            (Target::Mx(_), check @ Check::Dane(_)) => Identity::Host(String::new(), check.clone()),
            (Target::Mx(_), check) => Identity::Host(host.to_owned(), check.clone()),
        }
    }

    /// For the log: what applied to a connection that was made, and what a policy that is
    /// being tested would have said.
    pub fn told(&self, session: &Session) -> Option<String> {
        let policy = self.policy?;
        let objection = match self.check {
            Check::Trial if session.tls.is_none() => Some("no TLS"),
            _ => self.objection.or(session.objection.as_deref()),
        };
        Some(match objection {
            Some(objection) => format!("{policy}: {objection}"),
            None => policy.to_owned(),
        })
    }
}

/// The demand of a job at one of its hosts; the error is the host's failure.
pub fn demand(
    job: &Job,
    candidate: Candidate<'_>,
) -> Result<Demand, (Option<&'static str>, Outcome)> {
    let Some(host) = candidate.mx else {
        return Ok(of_endpoint(job));
    };
    if job.requiretls {
        return required(host);
    }
    if job.tls_optional {
        let relaxed = host.protection != Protection::Opportunistic;
        let policy = relaxed.then_some("TLS-Required: No");
        return Ok(Demand::new(TlsMode::Opportunistic, Check::Nothing, policy));
    }
    let dane = Some("dane");
    let sts = Some("mta-sts");
    match &host.protection {
        Protection::Opportunistic => Ok(Demand::new(TlsMode::Opportunistic, Check::Nothing, None)),
        Protection::Dane(records) => {
            let check = Check::Dane(records.clone());
            Ok(Demand::new(TlsMode::StartTls, check, dane))
        }
        Protection::Encrypted => Ok(Demand {
            objection: Some("no usable TLSA record"),
            ..Demand::new(TlsMode::StartTls, Check::Nothing, dane)
        }),
        Protection::Unknown(detail) => Err((dane, unknown(detail))),
        Protection::Sts => Ok(Demand::new(TlsMode::StartTls, Check::WebPki, sts)),
        Protection::StsMismatch => Err((sts, failure(Fault::StsMismatch))),
        Protection::StsTesting { listed } => Ok(Demand {
            objection: (!listed).then_some("the policy does not name the host"),
            ..Demand::new(
                TlsMode::Opportunistic,
                Check::Trial,
                Some("mta-sts testing"),
            )
        }),
    }
}

/// A server named by configuration: as it says, and verified where the message requires TLS.
fn of_endpoint(job: &Job) -> Demand {
    let mode = match &job.target {
        Target::Mx(_) => TlsMode::Opportunistic,
        Target::Endpoint(endpoint) => endpoint.tls,
    };
    let mode = match mode {
        TlsMode::Opportunistic if job.requiretls => TlsMode::StartTls,
        mode => mode,
    };
    let check = match mode {
        TlsMode::None | TlsMode::Opportunistic => Check::Nothing,
        TlsMode::StartTls | TlsMode::Implicit => Check::WebPki,
    };
    Demand::new(mode, check, job.requiretls.then_some("requiretls"))
}

/// REQUIRETLS (RFC 8689 s. 4.2.1): a host that is certainly the domain's, over TLS with a
/// certificate that DANE or the public roots vouch for.
fn required(host: &MxHost) -> Result<Demand, (Option<&'static str>, Outcome)> {
    let policy = Some("requiretls");
    match &host.protection {
        Protection::Unknown(detail) => Err((policy, unknown(detail))),
        Protection::StsMismatch => Err((policy, failure(Fault::StsMismatch))),
        Protection::Dane(records) => {
            let check = Check::Dane(records.clone());
            Ok(Demand::new(TlsMode::StartTls, check, policy))
        }
        _ if !host.authentic => Err((
            policy,
            failure(Fault::RequireTlsUnprotected)
                .with_detail("neither DNSSEC nor an MTA-STS policy vouches for the host's name"),
        )),
        _ => Ok(Demand::new(TlsMode::StartTls, Check::WebPki, policy)),
    }
}

fn failure(fault: Fault) -> Outcome {
    Outcome::from_fault(Stage::Local, fault)
}

fn unknown(detail: &str) -> Outcome {
    Outcome::from_fault(Stage::Dns, Fault::DaneUnavailable).with_detail(detail)
}
