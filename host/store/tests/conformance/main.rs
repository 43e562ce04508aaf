//! The contract of the ports `Store` and `Registry`, run against both implementations.

#[path = "../common/mod.rs"]
mod common;
mod contents;
mod log;
mod property;
mod queue;
mod registry;

macro_rules! conformance {
    ($($part:ident: $($name:ident),+;)+) => {
        mod sqlite {
            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::$part::$name(&crate::common::Place::sqlite()).await;
            })+)+
        }
        mod postgres {
            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::$part::$name(&crate::common::Place::postgres().await).await;
            })+)+
        }
    };
}

conformance! {
    queue:
        an_accepted_message_is_there_whole,
        states_survive_a_restart,
        a_delivered_message_leaves_the_queue,
        a_debt_is_paid_with_the_notice_that_pays_it,
        a_second_message_of_that_id_is_refused_alone,
        an_id_that_is_in_the_log_is_not_taken_again,
        knows_the_newest_id_of_queue_and_log,
        a_settlement_of_nobody_writes_nothing,
        recipients_that_are_done_and_owe_nothing_are_only_logged,
        a_stale_epoch_is_fenced,
        later_settlements_replace_earlier_ones,
        loads_in_pages_in_order,
        many_at_once_share_commits,
        a_closed_store_refuses;
    contents:
        streams_large_contents,
        a_content_is_accepted_once,
        hostile_text_round_trips;
    log:
        finds_messages_by_every_key,
        finds_the_newest_first_within_bounds,
        several_terms_and_bounds_find_exactly_what_matches,
        events_are_numbered_over_days_and_restarts,
        sweeps_whole_days,
        a_sweep_that_fails_forgets_no_day,
        what_was_taken_back_hides_nothing_behind_it;
    registry:
        keeps_cursors_measures_and_shaping_state,
        keeps_tenants_with_what_is_theirs,
        keeps_revisions_and_activations,
        keeps_tokens_by_their_hash,
        keeps_the_newest_decisions;
    property:
        agrees_with_the_model;
}
