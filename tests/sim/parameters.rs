//! NOTIFY, RET, ENVID and ORCPT in every combination: passed on to a next hop that reports
//! deliveries, answered by us where it does not (RFC 3461 s. 5.2).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_mail::dsn::{self, Action};
use tidegate_mail::{Notify, OriginalRecipient, Ret};
use tidegate_queue::Settings;

use crate::notices::NOTIFY;
use crate::scenario::Scenario;
use crate::steady::{SENDER, Steady, mail};
use crate::world::{Manner, Passed};

/// One message of the table.
struct Row {
    address: String,
    notify: Notify,
    ret: Option<Ret>,
    envid: Option<String>,
    original: Option<OriginalRecipient>,
    /// What the sender is told; `None`: nothing.
    told: Option<Action>,
    /// Whether there was an attempt.
    attempted: bool,
}

fn table() -> Vec<(Row, Manner)> {
    let mut rows = Vec::new();
    for notify in NOTIFY {
        for ret in [None, Some(Ret::Full), Some(Ret::Hdrs)] {
            for envid in [false, true] {
                for original in [false, true] {
                    for (domain, manner) in [
                        // The next hop announces DSN, and takes it.
                        ("dsn.test", Manner::PassesDsnOn),
                        // It does not announce DSN, and takes it.
                        ("plain.test", Manner::Accept),
                        ("refusing.test", Manner::Refuse),
                        ("none.test", Manner::NoSuchDomain),
                    ] {
                        let n = rows.len();
                        let told = match manner {
                            Manner::Accept if notify.wants_success() => Some(Action::Relayed),
                            Manner::Refuse | Manner::NoSuchDomain if notify.wants_failure() => {
                                Some(Action::Failed)
                            }
                            _ => None,
                        };
                        let row = Row {
                            address: format!("r{n}@{domain}"),
                            notify,
                            ret,
                            envid: envid.then(|| format!("record={n} +")),
                            original: original.then(|| OriginalRecipient {
                                kind: "rfc822".into(),
                                address: format!("first+{n}@old.test"),
                            }),
                            told,
                            attempted: !matches!(manner, Manner::NoSuchDomain),
                        };
                        rows.push((row, manner));
                    }
                }
            }
        }
    }
    rows
}

#[tokio::test]
async fn every_combination_of_parameters_is_passed_on_or_answered() {
    let scenario = Scenario::with(Settings::default(), Arc::new(Steady::default())).await;
    let table = table();
    assert_eq!(table.len(), 9 * 3 * 2 * 2 * 4);
    for (row, manner) in &table {
        let domain = row.address.split('@').nth(1).expect("a domain");
        scenario.world.set(domain, manner.clone());
        let to = [(row.address.as_str(), row.notify)];
        let (_, reply) = scenario
            .submit_with(mail(&to), |envelope| {
                envelope.ret = row.ret;
                envelope.envid = row.envid.clone();
                envelope.recipients[0].original = row.original.clone();
            })
            .await;
        assert_eq!(reply.code, 250, "{reply}");
    }
    scenario.pass(Duration::from_secs(60)).await;

    let mut told: HashMap<String, Vec<(dsn::Report, String)>> = HashMap::new();
    for delivery in scenario.world.delivered() {
        if delivery.recipient == SENDER {
            let report = dsn::parse(&delivery.content).expect("a notice");
            assert_eq!(report.recipients.len(), 1);
            let address = report.recipients[0].address.clone().expect("an address");
            let text = String::from_utf8_lossy(&delivery.content).into_owned();
            told.entry(address.address)
                .or_default()
                .push((report, text));
        }
    }
    for (row, _) in &table {
        let name = format!(
            "{} {:?} {:?} {:?} {:?}",
            row.address, row.notify, row.ret, row.envid, row.original
        );
        let passed = scenario.world.passed_for(&row.address);
        assert_eq!(passed.is_some(), row.attempted, "{name}");
        if let Some(Passed {
            envid,
            ret,
            recipient,
        }) = passed
        {
            assert_eq!((envid, ret), (row.envid.clone(), row.ret), "{name}");
            assert_eq!(recipient.notify, row.notify, "{name}");
            assert_eq!(recipient.original, row.original, "{name}");
        }
        let notices = told.remove(&row.address).unwrap_or_default();
        assert_eq!(notices.len(), usize::from(row.told.is_some()), "{name}");
        let Some((report, text)) = notices.into_iter().next() else {
            continue;
        };
        assert_eq!(Some(report.recipients[0].action), row.told, "{name}");
        assert_eq!(
            report.envelope_id, row.envid,
            "{name}: as it was, not in xtext"
        );
        let original = report.recipients[0].original.as_ref();
        assert_eq!(
            original.map(|o| (o.kind.as_str(), o.address.as_str())),
            row.original
                .as_ref()
                .map(|o| (o.kind.as_str(), o.address.as_str())),
            "{name}"
        );
        // All of it for RET=FULL and a failure only.
        let whole = row.ret == Some(Ret::Full) && row.told == Some(Action::Failed);
        assert_eq!(
            text.contains("Content-Type: message/rfc822"),
            whole,
            "{name}"
        );
        assert_eq!(
            text.contains("Content-Type: text/rfc822-headers"),
            !whole,
            "{name}"
        );
        assert_eq!(text.contains("\r\nhello "), whole, "{name}");
    }
    assert!(told.is_empty(), "{:?}", told.keys());
}
