/* The questions of policy.wit as values of a script, and a script's answers as the structs of
 * tidegate.h: once for all languages, so names and words are the same in each. Names are those of
 * the interface with underscores; an option that is not there is the language's nothing.
 *
 * An engine defines before it includes this, once:
 *   value                              a handle, valid until the call returns
 *   v_none v_text v_number v_truth v_object v_list     make one
 *   v_set(object, name, value)  v_set_key(object, text, value)  v_put(list, at, value)
 *   v_get(object, name)         v_item(list, at)       nothing where there is none
 *   v_absent v_is_text v_is_object v_is_list v_length
 *   v_to_text(value, &text)  v_to_number(value, &n)    whether it is one
 *   v_pairs(object, &facts)                            whether all values are texts
 *   v_ask(function, argc, argv, &answer)               whether it returned
 *   v_raised()                                         why it did not
 *   OBJECT                             what its author calls one
 * Compile with TG_ROUTING, TG_SHAPING (and TG_STATE) or TG_EXPORTER. */

/* ---- into the script ---- */

static void set_text(value object, const char *name, tg_text t) { v_set(object, name, v_text(t)); }

static inline void set_option(value object, const char *name, const tg_option_text *t) {
    v_set(object, name, t->some ? v_text(t->value) : v_none());
}

static inline void set_number(value object, const char *name, uint64_t n) { v_set(object, name, v_number(n)); }

static inline void set_some(value object, const char *name, int some, uint64_t n) {
    v_set(object, name, some ? v_number(n) : v_none());
}

static inline value facts_in(const tg_facts *facts) {
    value object = v_object();
    for (tg_u32 n = 0; n < facts->len; n++) v_set_key(object, facts->at[n].name, v_text(facts->at[n].value));
    return object;
}

static inline value class_in(tg_u8 class) {
    return v_text(class == TG_BULK ? TG("bulk") : TG("transactional"));
}

/* ---- and back ---- */

/* What is wrong with an answer, in words for the script's author; empty: nothing. */
static char mistake[400];

static void wrong(const char *what) {
    if (!mistake[0]) snprintf(mistake, sizeof mistake, "%s", what);
}

static tg_error mistake_out(void) {
    return (tg_error){ TG_BROKEN, { mistake, (tg_u32)strlen(mistake) } };
}

static tg_option_text option_out(value object, const char *name) {
    value found = v_get(object, name);
    tg_option_text t = { 0 };
    if (v_absent(found)) return t;
    t.some = 1;
    if (!v_to_text(found, &t.value)) {
        char words[120];
        snprintf(words, sizeof words, "%s: a text is needed", name);
        wrong(words);
    }
    return t;
}

static tg_text text_of(value object, const char *name) {
    tg_option_text t = option_out(object, name);
    return t.some ? t.value : (tg_text){ "", 0 };
}

/* Whether there is a number, and which; one out of bounds is a mistake. */
static int number_out(value found, const char *name, double least, double most, double *n) {
    if (v_absent(found)) return 0;
    if (!v_to_number(found, n) || !(*n >= least && *n <= most)) {
        char words[120];
        snprintf(words, sizeof words, "%s: a number from %.0f to %.0f is needed", name, least, most);
        wrong(words);
        return 0;
    }
    return 1;
}

static int number_of(value object, const char *name, double least, double most, double *n) {
    return number_out(v_get(object, name), name, least, most, n);
}

/* More than any answer may have: 10,000 recipients and more. */
#define LONGEST_LIST 100000

/* A list that may be missing; its length. */
static tg_u32 list_of(value object, const char *name, value *list) {
    *list = v_get(object, name);
    if (v_absent(*list)) return 0;
    if (!v_is_list(*list)) {
        char words[120];
        snprintf(words, sizeof words, "%s: a list is needed", name);
        wrong(words);
        return 0;
    }
    tg_u32 len = v_length(*list);
    if (len <= LONGEST_LIST) return len;
    char words[120];
    snprintf(words, sizeof words, "%s: too long a list", name);
    wrong(words);
    return 0;
}

static tg_texts texts_of(value object, const char *name) {
    value list;
    tg_texts texts = { 0, 0 };
    tg_u32 len = list_of(object, name, &list);
    texts.at = tg_alloc(len * sizeof(tg_text), 4), texts.len = len;
    for (tg_u32 n = 0; n < len; n++)
        if (!v_to_text(v_item(list, n), &texts.at[n])) {
            texts.at[n] = (tg_text){ "", 0 };
            wrong("headers and facts are lists of names");
        }
    return texts;
}

/* ---- setup ---- */

/* Names of the declared header fields, as the script wrote them. */
static tg_text *fields;
static tg_u32 fields_len;

static tg_setup refused(tg_error error) { return (tg_setup){ 1, .error = error.text }; }

/* What `init` returned. */
static tg_setup setup_out(value told) {
    if (!v_is_object(told)) {
        wrong("init returns " OBJECT " with name and version");
        return refused(mistake_out());
    }
    tg_descriptor d = {
        text_of(told, "name"), text_of(told, "version"), texts_of(told, "headers"), texts_of(told, "facts"),
    };
    if (mistake[0]) return refused(mistake_out());
    fields = d.headers.at, fields_len = d.headers.len;
    return (tg_setup){ 0, .ok = d };
}

/* ---- routing ---- */
#ifdef TG_ROUTING

static int is(value v, const char *word) {
    tg_text t;
    return v_is_text(v) && v_to_text(v, &t) && tg_same(t, (tg_text){ word, (tg_u32)strlen(word) });
}

static tg_reply reply_out(value told, tg_u16 code, tg_text enhanced) {
    double n = code;
    number_of(told, "code", 400, 599, &n);
    tg_option_text own = option_out(told, "enhanced");
    return (tg_reply){ (tg_u16)n, own.some ? own.value : enhanced, text_of(told, "text") };
}

static tg_managed managed_out(value told, tg_u8 class) {
    double n;
    tg_managed m = { .class = class, .relay = option_out(told, "relay"), .lane = option_out(told, "lane") };
    value named = v_get(told, "class");
    if (is(named, "bulk")) m.class = TG_BULK;
    else if (is(named, "transactional")) m.class = TG_TRANSACTIONAL;
    else if (!v_absent(named)) wrong("class: transactional or bulk is needed");
    if (number_of(told, "priority", -10, 10, &n)) m.priority = (tg_s8)n;
    if (number_of(told, "not_before", 0, 8e15, &n)) m.not_before = (tg_option_u64){ 1, (tg_u64)n };
    if (number_of(told, "expire_after", 0, 4e9, &n)) m.expire_after = (tg_option_u32){ 1, (tg_u32)n };
    if (number_of(told, "notify_delay_after", 0, 4e9, &n)) m.notify_delay_after = (tg_option_u32){ 1, (tg_u32)n };
    return m;
}

/* "managed", or an object with one of the four names. */
static tg_action action_out(value told, tg_u8 class) {
    value part;
    if (is(told, "managed")) return (tg_action){ TG_MANAGED, .managed = { .class = class } };
    if (v_is_object(told)) {
        part = v_get(told, "managed");
        if (v_is_object(part)) return (tg_action){ TG_MANAGED, .managed = managed_out(part, class) };
        part = v_get(told, "passthrough");
        if (v_is_object(part)) {
            value after = v_get(part, "after_failure");
            tg_action a = { TG_PASSTHROUGH, .passthrough = { text_of(part, "server"), TG_GIVE_UP } };
            if (is(after, "managed-relay")) a.passthrough.after_failure = TG_THEN_MANAGED_RELAY;
            else if (is(after, "give-up-and-notify")) a.passthrough.after_failure = TG_GIVE_UP_AND_NOTIFY;
            else if (!v_absent(after) && !is(after, "give-up"))
                wrong("after_failure: give-up, give-up-and-notify or managed-relay is needed");
            return a;
        }
        part = v_get(told, "defer");
        if (v_is_object(part)) return (tg_action){ TG_DEFER, .reply = reply_out(part, 451, TG("4.7.1")) };
        part = v_get(told, "refuse");
        if (v_is_object(part)) return (tg_action){ TG_REFUSE, .reply = reply_out(part, 550, TG("5.7.1")) };
    }
    wrong("an action is \"managed\" or " OBJECT " with managed, passthrough, defer or refuse");
    return (tg_action){ 0 };
}

static void splits_out(value told, tg_u8 class, tg_decision *decision) {
    value splits;
    tg_u32 len = list_of(told, "splits", &splits);
    decision->splits.at = tg_alloc(len * sizeof(tg_split), 8);
    decision->splits.len = len;
    for (tg_u32 n = 0; n < len && !mistake[0]; n++) {
        value split = v_item(splits, n), list;
        tg_split *s = &decision->splits.at[n];
        *s = (tg_split){ 0 };
        if (!v_is_object(split)) {
            wrong("a split is " OBJECT " with recipients and action");
            return;
        }
        s->action = action_out(v_get(split, "action"), class);
        s->recipients.len = list_of(split, "recipients", &list);
        s->recipients.at = tg_alloc(s->recipients.len * 4, 4);
        for (tg_u32 i = 0; i < s->recipients.len; i++) {
            double index = 0;
            if (!number_out(v_item(list, i), "recipients", 0, 4e9, &index)) wrong("recipients: numbers are needed");
            s->recipients.at[i] = (tg_u32)index;
        }
    }
}

static tg_routing decision_out(value told, tg_u8 class) {
    tg_routing answer = { 0 };
    value otherwise = v_is_object(told) ? v_get(told, "otherwise") : v_none();
    if (v_absent(otherwise)) {
        answer.ok.otherwise = action_out(told, class);
    } else {
        answer.ok.otherwise = action_out(otherwise, class);
        splits_out(told, class, &answer.ok);
    }
    value tags = v_is_object(told) ? v_get(told, "tags") : v_none();
    if (!v_absent(tags) && !(v_is_object(tags) && v_pairs(tags, &answer.ok.tags)))
        wrong("tags: " OBJECT " of texts is needed");
    return answer;
}

static value message_in(const tg_occasion *why, const tg_message *m) {
    value message = v_object(), list = v_list();
    set_text(message, "id", m->id);
    set_text(message, "sender", m->sender);
    for (tg_u32 n = 0; n < m->recipients.len; n++) {
        value recipient = v_object();
        set_text(recipient, "address", m->recipients.at[n].address);
        set_text(recipient, "domain", tg_recipient_domain(&m->recipients.at[n]));
        v_put(list, n, recipient);
    }
    v_set(message, "recipients", list);
    list = v_list();
    for (tg_u32 n = 0; n < m->headers.len; n++) {
        const tg_header *h = &m->headers.at[n];
        value header = v_object();
        set_text(header, "name", h->field < fields_len ? fields[h->field] : TG(""));
        set_text(header, "value", h->value);
        v_put(list, n, header);
    }
    v_set(message, "headers", list);
    set_number(message, "size", m->size);
    v_set(message, "class", class_in(m->class));
    set_number(message, "received", m->received);
    set_number(message, "now", m->now);
    value origin = v_object();
    set_text(origin, "via", m->origin.via);
    set_option(origin, "user", &m->origin.user);
    set_text(origin, "peer", m->origin.peer);
    set_text(origin, "helo", m->origin.helo);
    v_set(origin, "tls", v_truth(m->origin.tls));
    v_set(message, "origin", origin);
    v_set(message, "facts", facts_in(&m->facts));
    value failed = v_none();
    if (why->kind == TG_PASSTHROUGH_FAILED) {
        failed = v_object();
        set_number(failed, "code", why->reply.code);
        set_text(failed, "enhanced", why->reply.enhanced);
        set_text(failed, "text", why->reply.text);
    }
    v_set(message, "passthrough_failed", failed);
    return message;
}

static tg_routing policy_decide(const tg_occasion *why, const tg_message *m) {
    now_ms = m->now;
    value message = message_in(why, m), answer;
    if (!v_ask("decide", 1, &message, &answer)) return (tg_routing){ 1, .error = v_raised() };
    tg_routing routing = decision_out(answer, m->class);
    if (mistake[0]) return (tg_routing){ 1, .error = mistake_out() };
    return routing;
}
#endif

/* ---- shaping ---- */
#ifdef TG_SHAPING

static value limits_in(const tg_limits *l) {
    value limits = v_object(), rate = v_none(), retry = v_list();
    if (l->rate.some) {
        rate = v_object();
        set_number(rate, "messages", l->rate.messages);
        set_number(rate, "per_ms", l->rate.per_ms);
    }
    v_set(limits, "rate", rate);
    set_number(limits, "burst", l->burst);
    set_number(limits, "connections", l->connections);
    set_number(limits, "messages_per_connection", l->messages_per_connection);
    for (tg_u32 n = 0; n < l->retry_after.len; n++) v_put(retry, n, v_number(l->retry_after.at[n]));
    v_set(limits, "retry_after", retry);
    set_some(limits, "paused_until", l->paused_until.some, l->paused_until.value);
    set_number(limits, "ttl", l->ttl);
    return limits;
}

static tg_limits limits_out(value told) {
    tg_limits l = TG_LIMITS;
    double n;
    value rate = v_get(told, "rate"), retry;
    if (v_is_object(rate)) {
        l.rate = (tg_option_rate){ 1, 1, 1000 };
        if (number_of(rate, "messages", 1, 4e9, &n)) l.rate.messages = (tg_u32)n;
        if (number_of(rate, "per_ms", 1, 4e9, &n)) l.rate.per_ms = (tg_u32)n;
    } else if (!v_absent(rate)) {
        wrong("rate: " OBJECT " with messages and per_ms is needed");
    }
    if (number_of(told, "burst", 1, 4e9, &n)) l.burst = (tg_u32)n;
    if (number_of(told, "connections", 0, 65535, &n)) l.connections = (tg_u16)n;
    if (number_of(told, "messages_per_connection", 1, 65535, &n)) l.messages_per_connection = (tg_u16)n;
    tg_u32 len = list_of(told, "retry_after", &retry);
    l.retry_after.at = tg_alloc(len * 4, 4), l.retry_after.len = len;
    for (tg_u32 i = 0; i < len; i++) {
        n = 0;
        if (!number_out(v_item(retry, i), "retry_after", 0, 4e9, &n)) wrong("retry_after: seconds are needed");
        l.retry_after.at[i] = (tg_u32)n;
    }
    if (number_of(told, "paused_until", 0, 8e15, &n)) l.paused_until = (tg_option_u64){ 1, (tg_u64)n };
    if (number_of(told, "ttl", 1, 86400, &n)) l.ttl = (tg_u32)n;
    return l;
}

static tg_lane_plan lane_out(value told) {
    tg_lane_plan plan = { 0 };
    double n;
    if (!v_is_object(told)) {
        wrong("a lane's plan is " OBJECT " with limits");
        return plan;
    }
    value limits = v_get(told, "limits"), wake = v_get(told, "wake"), codes;
    plan.limits = v_is_object(limits) ? limits_out(limits) : TG_LIMITS;
    plan.cause = option_out(told, "cause");
    if (!v_is_object(wake)) return plan;
    plan.wake.some = 1;
    plan.wake.value.deferred_per_mille = 1000;
    if (number_of(wake, "deferred_per_mille", 0, 1000, &n)) plan.wake.value.deferred_per_mille = (tg_u16)n;
    if (number_of(wake, "min_attempts", 0, 4e9, &n)) plan.wake.value.min_attempts = (tg_u32)n;
    tg_u32 len = list_of(wake, "codes", &codes);
    plan.wake.value.codes.at = tg_alloc(len * 2, 2), plan.wake.value.codes.len = len;
    for (tg_u32 i = 0; i < len; i++) {
        n = 0;
        if (!number_out(v_item(codes, i), "codes", 200, 599, &n)) wrong("codes: reply codes are needed");
        plan.wake.value.codes.at[i] = (tg_u16)n;
    }
    return plan;
}

static value lane_in(const tg_lane_state *l) {
    value lane = v_object(), recent = v_object(), replies = v_list();
    set_text(lane, "tenant", l->key.tenant);
    v_set(lane, "class", class_in(l->key.class));
    set_text(lane, "relay", l->key.relay);
    set_text(lane, "site", l->key.site);
    set_option(lane, "lane", &l->key.lane);
    set_number(lane, "backlog", l->backlog);
    set_number(lane, "oldest_seconds", l->oldest_seconds);
    set_number(lane, "open_connections", l->open_connections);
    set_some(lane, "sending_since", l->sending_since.some, l->sending_since.value);
    set_number(lane, "sent_total", l->sent_total);
    v_set(lane, "current", l->current.some ? limits_in(&l->current.value) : v_none());
    set_number(recent, "seconds", l->recent.seconds);
    set_number(recent, "attempts", l->recent.attempts);
    set_number(recent, "delivered", l->recent.delivered);
    set_number(recent, "deferred", l->recent.deferred);
    set_number(recent, "bounced", l->recent.bounced);
    set_number(recent, "connect_failures", l->recent.connect_failures);
    for (tg_u32 i = 0; i < l->recent.replies.len; i++) {
        const tg_reply_count *r = &l->recent.replies.at[i];
        value reply = v_object();
        set_number(reply, "code", r->code);
        set_text(reply, "enhanced", r->enhanced);
        set_text(reply, "sample", r->sample);
        set_number(reply, "count", r->count);
        v_put(replies, i, reply);
    }
    v_set(recent, "replies", replies);
    v_set(lane, "recent", recent);
    v_set(lane, "facts", facts_in(&l->facts));
    return lane;
}

static tg_shaping policy_plan(tg_u64 now, tg_text state, const tg_lane_state *lanes, tg_u32 len) {
    now_ms = now;
    value argv[3] = { v_number(now), v_list(), v_text(state) }, answer, list;
    for (tg_u32 n = 0; n < len; n++) v_put(argv[1], n, lane_in(&lanes[n]));
    if (!v_ask("plan", 3, argv, &answer)) return (tg_shaping){ 1, .error = v_raised() };
    tg_shaping plan = { 0 };
    if (!v_is_object(answer) || !v_is_list(v_get(answer, "lanes"))) {
        wrong("plan returns " OBJECT " with a list of lanes and a state");
    } else {
        plan.ok.lanes.len = list_of(answer, "lanes", &list);
        plan.ok.lanes.at = tg_alloc(plan.ok.lanes.len * sizeof(tg_lane_plan), 8);
        for (tg_u32 n = 0; n < plan.ok.lanes.len && !mistake[0]; n++)
            plan.ok.lanes.at[n] = lane_out(v_item(list, n));
        tg_text kept = text_of(answer, "state");
        plan.ok.state = (tg_bytes){ (tg_u8 *)kept.at, kept.len };
    }
    if (mistake[0]) return (tg_shaping){ 1, .error = mistake_out() };
    return plan;
}
#endif

/* ---- log export ---- */
#ifdef TG_EXPORTER

static value event_in(const tg_event *e) {
    value event = v_object();
    set_number(event, "seq", e->seq);
    set_number(event, "at", e->at);
    set_text(event, "kind", e->kind);
    set_text(event, "message", e->message);
    set_text(event, "tenant", e->tenant);
    set_text(event, "sender", e->sender);
    set_option(event, "recipient", &e->recipient);
    set_number(event, "size", e->size);
    set_option(event, "message_id", &e->message_id);
    set_option(event, "record_id", &e->record_id);
    set_option(event, "subject", &e->subject);
    set_some(event, "attempt", e->attempt.some, e->attempt.value);
    set_some(event, "duration_ms", e->duration_ms.some, e->duration_ms.value);
    set_option(event, "site", &e->site);
    set_option(event, "host", &e->host);
    set_option(event, "peer", &e->peer);
    set_option(event, "tls", &e->tls);
    set_some(event, "code", e->code.some, e->code.value);
    set_option(event, "enhanced", &e->enhanced);
    set_option(event, "text", &e->text);
    v_set(event, "facts", facts_in(&e->facts));
    return event;
}

static tg_export policy_render(const tg_event *events, tg_u32 len) {
    value batch = v_list(), answer;
    for (tg_u32 n = 0; n < len; n++) {
        now_ms = events[n].at;
        v_put(batch, n, event_in(&events[n]));
    }
    if (!v_ask("render", 1, &batch, &answer)) return (tg_export){ 1, .error = v_raised() };
    tg_export rendered = { 0 };
    if (!v_is_list(answer)) {
        wrong("render returns a list of payloads");
    } else {
        rendered.ok.len = v_length(answer);
        rendered.ok.at = tg_alloc(rendered.ok.len * sizeof(tg_payload), 4);
        for (tg_u32 n = 0; n < rendered.ok.len && !mistake[0]; n++) {
            value payload = v_item(answer, n);
            if (!v_is_object(payload)) {
                wrong("a payload is " OBJECT " with content_type and body");
                break;
            }
            tg_text body = text_of(payload, "body");
            rendered.ok.at[n] = (tg_payload){ { (tg_u8 *)body.at, body.len }, text_of(payload, "content_type") };
        }
    }
    if (mistake[0]) return (tg_export){ 1, .error = mistake_out() };
    return rendered;
}
#endif
