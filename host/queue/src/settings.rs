//! What the engine can be told by configuration.

use std::sync::Arc;
use std::time::Duration;

use tidegate_mail::schedule::Schedule;

use crate::route::Ceilings;
use crate::shape::Limits;

#[derive(Clone, Debug)]
pub struct Settings {
    /// The name this gateway reports under: EHLO, Received, Reporting-MTA.
    pub hostname: Arc<str>,
    pub ceilings: Ceilings,
    pub schedule: Schedule,
    /// After a host failure a site is left alone for this long; doubles up to the second.
    pub site_backoff: (Duration, Duration),
    /// Deliveries at the same time, in all.
    pub max_deliveries: usize,
    /// Connections to one site, whatever a plan says.
    pub max_site_connections: u16,
    /// For lanes without a plan.
    pub default_limits: Limits,
    /// Bytes of messages kept in memory between acceptance and the first attempt.
    pub content_budget: usize,
    /// Header field with the CRM's record id.
    pub record_header: Option<String>,
    /// The log is kept at least this long; 7 days is the least the configuration allows.
    pub retention: Duration,
    /// Largest original message that a RET=FULL notice returns, bytes.
    pub dsn_return_limit: usize,
    /// How notices read where a tenant has no wording of its own.
    pub wording: tidegate_mail::dsn::Wording,
    /// Whether passthrough servers may have loopback or private addresses.
    pub allow_private_destinations: bool,
    /// Names of exporters with an active sink.
    pub exporters: Vec<String>,
    /// A header field whose presence makes a message bulk.
    pub campaign_header: Option<String>,
    /// The longest time a passthrough attempt may take within a submission.
    pub passthrough_timeout: Duration,
    /// More recipients than this in one message make it bulk.
    pub bulk_recipients: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            hostname: "localhost".into(),
            ceilings: Ceilings {
                lifetime_secs: 48 * 3600,
                delay_notice_secs: Some(4 * 3600),
                default_relay: crate::directory::BUILT_IN_RELAY.into(),
            },
            schedule: Schedule::default(),
            site_backoff: (Duration::from_secs(60), Duration::from_secs(15 * 60)),
            max_deliveries: 500,
            max_site_connections: 20,
            default_limits: Limits::default(),
            content_budget: 32 * 1024 * 1024,
            record_header: None,
            retention: Duration::from_secs(7 * 24 * 3600),
            dsn_return_limit: 50_000,
            wording: tidegate_mail::dsn::Wording::default(),
            allow_private_destinations: false,
            exporters: Vec::new(),
            campaign_header: None,
            passthrough_timeout: Duration::from_secs(60),
            bulk_recipients: 100,
        }
    }
}
