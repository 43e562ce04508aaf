//! The state machine of one managed recipient.
//!
//! [`step`] is the only function that changes a recipient's state. Durable are
//! [`RecipientState`] and nothing else: "in flight" lives in memory, so an attempt
//! cut off by a crash is made again.

use serde::{Deserialize, Serialize};

use crate::{Notify, Outcome, Promise, Reply, Timestamp, Verdict};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// `due` is the next slot or the end of the lifetime, whichever is first.
    Waiting {
        due: Timestamp,
    },
    Done(End),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    Sent,
    Bounced,
    Expired,
    Cancelled,
}

/// The notice that is still to be sent. A failure supersedes a delay not yet reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owes {
    #[default]
    None,
    Delay,
    Failure,
    Success,
}

/// The last attempt, kept for notices and for `queue` listings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastAttempt {
    pub at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    pub outcome: Outcome,
    /// What a server last said in an earlier attempt, where this one got no reply: on
    /// expiry the sender is told the destination's own words, not our last time-out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard: Option<Box<Heard>>,
}

/// A peer's reply, and who gave it when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    pub at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    pub reply: Reply,
}

impl LastAttempt {
    /// The last reply a server gave, in this attempt or an earlier one, and its host.
    pub fn last_reply(&self) -> Option<(&Reply, Option<&str>)> {
        match (&self.outcome.reply, &self.heard) {
            (Some(reply), _) => Some((reply, self.host.as_deref())),
            (None, Some(heard)) => Some((&heard.reply, heard.host.as_deref())),
            (None, None) => None,
        }
    }

    /// What of this attempt is still worth knowing after one without a reply.
    fn into_heard(self) -> Option<Box<Heard>> {
        match self.outcome.reply {
            Some(reply) => Some(Box::new(Heard {
                at: self.at,
                host: self.host,
                reply,
            })),
            None => self.heard,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipientState {
    pub state: State,
    /// Attempts made; a withdrawn one does not count.
    pub attempts: u32,
    pub accepted_at: Timestamp,
    pub expires_at: Timestamp,
    pub owes: Owes,
    /// The delay limit passed and was dealt with: a notice was owed, or found not to be
    /// wanted. There is never a second.
    pub delay_reported: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<LastAttempt>,
}

impl RecipientState {
    /// A recipient accepted at `now`, due at once.
    pub fn accepted(promise: &Promise, now: Timestamp) -> Self {
        RecipientState {
            state: State::Waiting { due: now },
            attempts: 0,
            accepted_at: now,
            expires_at: now.plus(promise.lifetime()),
            owes: Owes::None,
            delay_reported: false,
            last: None,
        }
    }

    /// A recipient that the route refused while others of the message were
    /// accepted: it begins bounced and owes its notice.
    pub fn refused(outcome: Outcome, rights: Rights, now: Timestamp) -> Self {
        RecipientState {
            state: State::Done(End::Bounced),
            attempts: 0,
            accepted_at: now,
            expires_at: now,
            owes: rights.failure(),
            delay_reported: false,
            last: Some(LastAttempt {
                at: now,
                host: None,
                outcome,
                heard: None,
            }),
        }
    }

    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done(_))
    }
}

/// What the sender may be told about this recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    pub notify: Notify,
    /// The reverse-path is null: nobody to tell.
    pub null_sender: bool,
    /// List, bulk or automatic mail: a delay is reported only where NOTIFY=DELAY asks for it.
    pub automatic: bool,
}

impl Rights {
    fn failure(self) -> Owes {
        if !self.null_sender && self.notify.wants_failure() {
            Owes::Failure
        } else {
            Owes::None
        }
    }

    fn success(self) -> Owes {
        if !self.null_sender && self.notify.wants_success() {
            Owes::Success
        } else {
            Owes::None
        }
    }

    fn delay(self) -> Owes {
        let allowed = self.notify.asks_delay() || (self.notify.allows_delay() && !self.automatic);
        if !self.null_sender && allowed {
            Owes::Delay
        } else {
            Owes::None
        }
    }
}

/// What happened to a recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// An attempt ended. `next_slot` is when the schedule would try again.
    Attempted {
        outcome: Outcome,
        host: Option<String>,
        next_slot: Timestamp,
    },
    /// The lifetime is over, noticed without an attempt (held, throttled, suspended).
    Expired,
    /// The delay limit passed without an attempt to notice it.
    DelayLimit,
    /// A person or the API took the recipient out of the queue.
    Cancelled,
    /// A person asked for an attempt now.
    Retry,
    /// The notice owed was accepted into the queue.
    NoticePaid,
}

/// A pair of state and input that the table does not have: refused, and a defect.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{input} can't happen to a recipient that is {state:?} and owes {owes:?}")]
pub struct Illegal {
    pub state: State,
    pub owes: Owes,
    pub input: &'static str,
}

/// The next state, for every legal pair; `now` is the time of the input.
///
/// The delay notice falls due `delay_notice` after acceptance, noticed at the first
/// failed attempt past it or at [`Input::DelayLimit`]. Nothing here stretches the lifetime:
/// a wait that the gateway chose (rate, suspension, hold) is no input at all.
pub fn step(
    from: &RecipientState,
    input: Input,
    promise: &Promise,
    rights: Rights,
    now: Timestamp,
) -> Result<RecipientState, Illegal> {
    let illegal = |input| {
        Err(Illegal {
            state: from.state,
            owes: from.owes,
            input,
        })
    };
    let mut to = from.clone();
    match (from.state, input) {
        (
            State::Waiting { .. },
            Input::Attempted {
                outcome,
                host,
                next_slot,
            },
        ) => {
            if outcome.verdict == Verdict::Withdrawn {
                to.state = State::Waiting {
                    due: next_slot.min(from.expires_at),
                };
                return Ok(to);
            }
            to.attempts += 1;
            match outcome.verdict {
                Verdict::Delivered => {
                    to.state = State::Done(End::Sent);
                    to.owes = if outcome.dsn_passed_on {
                        Owes::None
                    } else {
                        rights.success()
                    };
                }
                Verdict::Permanent => {
                    to.state = State::Done(End::Bounced);
                    to.owes = rights.failure();
                }
                Verdict::Temporary | Verdict::Uncertain | Verdict::Withdrawn => {
                    if now >= from.expires_at {
                        to.state = State::Done(End::Expired);
                        to.owes = rights.failure();
                    } else {
                        to.state = State::Waiting {
                            due: next_slot.min(from.expires_at),
                        };
                        note_delay(&mut to, promise, rights, now);
                    }
                }
            }
            let heard = match outcome.reply {
                Some(_) => None,
                None => to.last.take().and_then(LastAttempt::into_heard),
            };
            to.last = Some(LastAttempt {
                at: now,
                host,
                outcome,
                heard,
            });
            Ok(to)
        }
        (State::Waiting { .. }, Input::Expired) => {
            if now < from.expires_at {
                return illegal("expiry before the end of the lifetime");
            }
            to.state = State::Done(End::Expired);
            to.owes = rights.failure();
            Ok(to)
        }
        (State::Waiting { .. }, Input::DelayLimit) => {
            note_delay(&mut to, promise, rights, now);
            Ok(to)
        }
        (State::Waiting { .. }, Input::Cancelled) => {
            to.state = State::Done(End::Cancelled);
            to.owes = Owes::None;
            Ok(to)
        }
        (State::Waiting { .. }, Input::Retry) => {
            to.state = State::Waiting {
                due: now.min(from.expires_at),
            };
            Ok(to)
        }
        (_, Input::NoticePaid) => {
            if from.owes == Owes::None {
                return illegal("a notice that is not owed");
            }
            to.owes = Owes::None;
            Ok(to)
        }
        (State::Done(_), Input::Attempted { .. }) => illegal("an attempt"),
        (State::Done(_), Input::Expired) => illegal("expiry"),
        (State::Done(_), Input::DelayLimit) => illegal("a delay"),
        (State::Done(_), Input::Cancelled) => illegal("cancelling"),
        (State::Done(_), Input::Retry) => illegal("a retry"),
    }
}

fn note_delay(to: &mut RecipientState, promise: &Promise, rights: Rights, now: Timestamp) {
    let Some(limit) = promise.delay_notice() else {
        return;
    };
    if to.delay_reported || now < to.accepted_at.plus(limit) {
        return;
    }
    to.delay_reported = true;
    // Past the lifetime the expiry is what there is to tell.
    if now < to.expires_at {
        to.owes = rights.delay();
    }
}

#[cfg(test)]
mod tests;
