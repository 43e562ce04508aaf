//! Every bound on what a policy may use, in one place.
//!
//! Time is counted in ticks of the epoch clock, one per millisecond in which the guest runs:
//! a call is stopped at the budget or one tick after it.

/// Bytes of an upload.
pub const UPLOAD: usize = 1024 * 1024;
/// Functions in a module; compile time grows with it.
pub const FUNCTIONS: u32 = 10_000;
/// Bytes of one function body.
pub const FUNCTION_BODY: usize = 128 * 1024;
/// Core modules in a component, and instances of them.
pub const CORE_INSTANCES: u32 = 4;
/// Bytes of all data segments.
pub const DATA: usize = 8 * 1024 * 1024;
/// Bytes of a configuration.
pub const CONFIG: usize = 4 * 1024 * 1024;
/// Bytes of a component with its snapshot.
pub const SNAPSHOT: usize = 32 * 1024 * 1024;

/// Linear memory of a call, bytes.
pub const MEMORY: usize = 16 * 1024 * 1024;
pub const TABLES: u32 = 4;
pub const TABLE_ELEMENTS: usize = 20_000;
pub const WASM_STACK: usize = 256 * 1024;
pub const ASYNC_STACK: usize = 512 * 1024;

/// Milliseconds of a routing decision.
pub const ROUTING_MS: u32 = 10;
/// Milliseconds of a plan.
pub const SHAPING_MS: u32 = 50;
/// Milliseconds of a rendered batch.
pub const EXPORT_MS: u32 = 200;
/// Milliseconds of `setup.init`, start functions included.
pub const INIT_MS: u32 = 2_000;

/// Bytes that a guest may hand to the host in one call.
pub const ANSWER: usize = 1024 * 1024;
/// The same for a rendered batch.
pub const EXPORT_ANSWER: usize = 8 * 1024 * 1024;

/// Calls at the same time, in all and of one tenant.
pub const CONCURRENT: usize = 64;
pub const CONCURRENT_OF_TENANT: usize = 8;
/// How long a call waits for its turn before the fallback applies, milliseconds.
pub const TURN_MS: u64 = 50;

/// A tenant's costly calls get one part in so many of a core, and so many microseconds at once.
pub const TENANT_SHARE: u32 = 20;
pub const TENANT_BURST_MICROS: i64 = 50_000;
/// What a decision may take without being counted, microseconds, and more for each recipient.
pub const CHEAP_MICROS: u64 = 500;
pub const CHEAP_RECIPIENT_MICROS: u64 = 1;

/// Failures within the window that open the breaker of a slot.
pub const BREAKER_FAILURES: usize = 5;
pub const BREAKER_WINDOW_MS: u64 = 60_000;
/// After so long one call is let through to try again.
pub const BREAKER_HALF_OPEN_MS: u64 = 30_000;

/// After an activation, how long failures and harm bring the revision before it back.
pub const PROBATION_MS: u64 = 15 * 60_000;
/// Recipients decided, or attempted, before shares are compared.
pub const HARM_DECISIONS: u64 = 20;
pub const HARM_ATTEMPTS: u64 = 50;
/// The difference of two shares that is harm: five in a hundred.
pub const HARM_DIFFERENCE: f64 = 0.05;
/// First attempts after which older ones count half.
pub const HARM_MEMORY: u64 = 10_000;

/// Decisions kept in a second, of one tenant and in all; of more, these are a sample.
pub const INPUTS_OF_TENANT_PER_SEC: u32 = 20;
pub const INPUTS_PER_SEC: u32 = 200;
/// Decisions that wait to be kept or to be shown to a shadow.
pub const OBSERVED: usize = 1024;
/// Calls about lanes that wait to be shown to a shadow.
pub const PLANS_ASIDE: usize = 8;
/// Rendered batches that do, each of up to 4 MiB.
pub const BATCHES_ASIDE: usize = 2;

/// Bytes of a text for people or for a reply.
pub const TEXT: usize = 400;
pub const TAGS: usize = 16;
pub const TAG: usize = 256;
pub const LANE_NAME: usize = 64;
pub const PRIORITY: i8 = 10;
/// Most that `not-before` may lie ahead, seconds.
pub const NOT_BEFORE_SECS: u64 = 48 * 3600;
/// Names in a descriptor, and bytes of each.
pub const DECLARED: usize = 32;
pub const DECLARED_NAME: usize = 64;
/// Header fields handed to a decision, and bytes of each.
pub const HEADERS: usize = 128;
pub const HEADER_VALUE: usize = 998;

pub const LANES: usize = 256;
pub const SHAPING_STATE: usize = 64 * 1024;
pub const RETRY_STEPS: usize = 64;
pub const PAUSE_SECS: u64 = 7 * 24 * 3600;
pub const TTL_SECS: u32 = 24 * 3600;
pub const TRIGGER_CODES: usize = 32;
pub const REPLY_RULES: usize = 64;
pub const REPLY_TEXT: usize = 200;

pub const EVENTS: usize = 512;
pub const PAYLOADS: usize = 64;
pub const PAYLOAD_BYTES: usize = 4 * 1024 * 1024;

/// `log.write`: lines and bytes of a call, lines of a revision per second.
pub const LOG_LINES: u32 = 16;
pub const LOG_BYTES: usize = 4096;
pub const LOG_LINES_PER_SEC: u32 = 50;
