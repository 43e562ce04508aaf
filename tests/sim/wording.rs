//! A tenant's own words in its notices, from the moment they are set.

use std::sync::Arc;
use std::time::Duration;

use tidegate_mail::Notify;
use tidegate_mail::dsn::{Action, Wording};
use tidegate_queue::Settings;

use crate::scenario::Scenario;
use crate::steady::{HOUR, Steady, mail, notices};
use crate::world::{Manner, NEVER};

fn german() -> Box<Wording> {
    let mut wording = Wording {
        language: "de".into(),
        contact: Some("hilfe@acme.test".to_owned()),
        ..Wording::default()
    };
    wording.texts.failure.subject = "Nicht zugestellt".into();
    wording.texts.failure.opening = "Von \u{201e}{subject}\u{201c} wissen wir: {until} {id}".into();
    wording.texts.delay.subject = "Noch nicht zugestellt".into();
    assert_eq!(wording.check(), Ok(()));
    Box::new(wording)
}

#[tokio::test]
async fn notices_read_in_the_words_in_force_when_they_are_written() {
    let scenario = Scenario::with(Settings::default(), Arc::new(Steady::default())).await;
    scenario.world.set("x.test", Manner::Refuse);
    scenario.world.set("slow.test", Manner::Greylist(NEVER));
    // Accepted before the words are set, told after.
    scenario
        .submit(mail(&[("a@slow.test", Notify::Absent)]))
        .await;
    scenario.submit(mail(&[("a@x.test", Notify::Absent)])).await;
    scenario.pass(Duration::from_secs(1)).await;
    scenario.put_directory(|tenant, _| tenant.wording = Some(german()));
    scenario.submit(mail(&[("b@x.test", Notify::Absent)])).await;
    scenario.pass(HOUR * 5).await;
    scenario.put_directory(|_, _| {});
    scenario.submit(mail(&[("c@x.test", Notify::Absent)])).await;
    scenario.pass(Duration::from_secs(1)).await;

    let told: Vec<(Action, String)> = notices(&scenario)
        .into_iter()
        .map(|(report, text)| (report.recipients[0].action, text))
        .collect();
    assert_eq!(told.len(), 4);
    let has = |n: usize, what: &str| told[n].1.contains(what);
    let english = "\r\nContent-Language: en\r\n";
    let german = "\r\nContent-Language: de\r\n";
    assert!(has(0, english) && has(0, "Subject: Undelivered mail: sim"));
    assert!(
        has(1, german) && has(1, "Subject: Nicht zugestellt: sim"),
        "{}",
        told[1].1
    );
    assert!(has(1, "hilfe@acme.test"));
    assert_eq!(told[2].0, Action::Delayed);
    assert!(has(2, german) && has(2, "Subject: Noch nicht zugestellt: sim"));
    assert!(has(3, english) && has(3, "Subject: Undelivered mail: sim"));
}

#[tokio::test]
async fn what_a_mail_says_does_not_become_a_placeholder_or_a_field() {
    let scenario = Scenario::with(Settings::default(), Arc::new(Steady::default())).await;
    scenario.world.set("x.test", Manner::Refuse);
    scenario.put_directory(|tenant, _| tenant.wording = Some(german()));
    let to = [("a@x.test", Notify::Absent)];
    let mut hostile = mail(&to);
    // The first Subject is the one that counts.
    hostile.subject = Some("{id} {contact} =?utf-8?Q?a=0D=0ABcc:_evil@x.test?=");
    scenario.submit(hostile).await;
    scenario.pass(Duration::from_secs(1)).await;
    let (report, text) = notices(&scenario).pop().expect("a notice");
    assert_eq!(report.recipients.len(), 1);
    let header = text.split("\r\n\r\n").next().expect("a header");
    assert!(!header.contains("\r\nBcc:"), "{header}");
    let body = text.replace("=\r\n", "").replace("\r\n", " ");
    assert!(body.contains("{id} {contact} a"), "{text}");
}
