/* A policy whose decisions are made by a script: QuickJS, and the types of policy.wit as
 * JavaScript values.
 *
 * `tidegate policy build` writes the script behind the marker below. `init` compiles and runs
 * it once, at the upload; every call then starts from the memory that this left, so no call
 * parses anything. There is no clock, no chance and no input but the arguments: `Date.now()` is
 * the time of the call, `Math.random()` gives the same row in every call.
 *
 * One module for each world: compile with TG_ROUTING, TG_SHAPING (and TG_STATE) or TG_EXPORTER. */
#define TG_LIBC
#include "tidegate.h"

#include <stdint.h>
#include <stdio.h>
#include "quickjs.h"

#define SCRIPT_ROOM 131072

/* The marker, the bytes there are, the bytes in use, the script. Not in .bss: the bytes must be
 * in the file. */
__attribute__((used, aligned(16))) volatile struct {
    char marker[24];
    uint32_t room, len;
    char text[SCRIPT_ROOM];
    char end[8];
} script = { "TIDEGATE-POLICY-SCRIPT-1", SCRIPT_ROOM, 0, { 0 }, "THE-END" };

static JSContext *ctx;
static JSValue module;
static uint64_t now_ms;
/* Names of the declared header fields, as the script wrote them. */
static tg_text *fields;
static tg_u32 fields_len;

/* ---- what the C library asks of its host ---- */

int32_t __imported_wasi_snapshot_preview1_clock_time_get(int32_t id, int64_t precision, int32_t at) {
    (void)id, (void)precision;
    *(uint64_t *)at = now_ms * 1000000;
    return 0;
}
int32_t __imported_wasi_snapshot_preview1_fd_write(int32_t a, int32_t b, int32_t c, int32_t at) {
    (void)a, (void)b, (void)c, (void)at;
    return 8;
}
int32_t __imported_wasi_snapshot_preview1_fd_seek(int32_t a, int64_t b, int32_t c, int32_t at) {
    (void)a, (void)b, (void)c, (void)at;
    return 8;
}
int32_t __imported_wasi_snapshot_preview1_fd_close(int32_t a) { (void)a; return 8; }
int32_t __imported_wasi_snapshot_preview1_fd_fdstat_get(int32_t a, int32_t at) {
    (void)a, (void)at;
    return 8;
}
int32_t __imported_wasi_snapshot_preview1_environ_get(int32_t a, int32_t b) { (void)a, (void)b; return 0; }
int32_t __imported_wasi_snapshot_preview1_environ_sizes_get(int32_t count, int32_t size) {
    *(uint32_t *)count = 0, *(uint32_t *)size = 0;
    return 0;
}
void __imported_wasi_snapshot_preview1_proc_exit(int32_t code) { (void)code; __builtin_trap(); }

/* ---- into JavaScript ---- */

static JSValue text_in(tg_text t) { return JS_NewStringLen(ctx, t.at, t.len); }

static void set(JSValue object, const char *name, JSValue value) { JS_SetPropertyStr(ctx, object, name, value); }

static void set_text(JSValue object, const char *name, tg_text t) { set(object, name, text_in(t)); }

static inline void set_option(JSValue object, const char *name, const tg_option_text *t) {
    set(object, name, t->some ? text_in(t->value) : JS_NULL);
}

static inline void set_number(JSValue object, const char *name, double n) { set(object, name, JS_NewFloat64(ctx, n)); }

static inline JSValue facts_in(const tg_facts *facts) {
    JSValue object = JS_NewObject(ctx);
    for (tg_u32 n = 0; n < facts->len; n++) {
        JSAtom name = JS_NewAtomLen(ctx, facts->at[n].name.at, facts->at[n].name.len);
        JS_SetProperty(ctx, object, name, text_in(facts->at[n].value));
        JS_FreeAtom(ctx, name);
    }
    return object;
}

static inline JSValue class_in(tg_u8 class) { return JS_NewString(ctx, class == TG_BULK ? "bulk" : "transactional"); }

/* ---- and back ---- */

/* What is wrong with an answer, in words for the script's author; empty: nothing. */
static char mistake[400];

static void wrong(const char *what) {
    if (!mistake[0]) snprintf(mistake, sizeof mistake, "%s", what);
}

static tg_text text_out(JSValue value) {
    size_t len = 0;
    const char *at = JS_ToCStringLen(ctx, &len, value);
    if (!at) {
        JS_FreeValue(ctx, JS_GetException(ctx));
        wrong("a text is needed");
        return (tg_text){ 0, 0 };
    }
    return (tg_text){ at, (tg_u32)len };
}

static int absent(JSValue value) { return JS_IsUndefined(value) || JS_IsNull(value); }

static tg_option_text option_out(JSValue object, const char *name) {
    JSValue value = JS_GetPropertyStr(ctx, object, name);
    if (absent(value)) return (tg_option_text){ 0 };
    return (tg_option_text){ 1, text_out(value) };
}

static tg_text text_of(JSValue object, const char *name) {
    tg_option_text t = option_out(object, name);
    return t.some ? t.value : (tg_text){ "", 0 };
}

/* Whether there is a number, and which; one out of bounds is a mistake. */
static int number_of(JSValue object, const char *name, double least, double most, double *n) {
    JSValue value = JS_GetPropertyStr(ctx, object, name);
    if (absent(value)) return 0;
    if (JS_ToFloat64(ctx, n, value) || !(*n >= least && *n <= most)) {
        char words[120];
        JS_FreeValue(ctx, JS_GetException(ctx));
        snprintf(words, sizeof words, "%s: a number from %.0f to %.0f is needed", name, least, most);
        wrong(words);
        return 0;
    }
    return 1;
}

static tg_u32 length_of(JSValue list) {
    double n = 0;
    return number_of(list, "length", 0, 1000000, &n) ? (tg_u32)n : 0;
}

static tg_texts texts_of(JSValue object, const char *name) {
    JSValue list = JS_GetPropertyStr(ctx, object, name);
    tg_texts texts = { 0, 0 };
    if (absent(list)) return texts;
    if (!JS_IsArray(list)) {
        wrong("headers and facts are lists of names");
        return texts;
    }
    texts.len = length_of(list);
    texts.at = tg_alloc(texts.len * sizeof(tg_text), 4);
    for (tg_u32 n = 0; n < texts.len; n++) texts.at[n] = text_out(JS_GetPropertyUint32(ctx, list, n));
    return texts;
}

/* The exception in words. An object with `temporary` means: not now. */
static tg_error error_out(void) {
    JSValue thrown = JS_GetException(ctx);
    tg_option_text later = { 0 };
    if (JS_IsObject(thrown)) later = option_out(thrown, "temporary");
    if (later.some) return (tg_error){ TG_TEMPORARY, tg_cut(later.value, 400) };
    tg_text words = text_out(thrown);
    JSValue stack = JS_IsError(thrown) ? JS_GetPropertyStr(ctx, thrown, "stack") : JS_UNDEFINED;
    if (!absent(stack)) {
        tg_text trace = tg_trim(text_out(stack));
        char *all = tg_alloc(words.len + trace.len + 2, 1);
        memcpy(all, words.at, words.len);
        all[words.len] = ' ';
        memcpy(all + words.len + 1, trace.at, trace.len);
        words = (tg_text){ all, words.len + 1 + trace.len };
    }
    return (tg_error){ TG_BROKEN, tg_cut(words, 400) };
}

static tg_error mistake_out(void) {
    return (tg_error){ TG_BROKEN, { mistake, (tg_u32)strlen(mistake) } };
}

/* ---- setup ---- */

static JSValue console_log(JSContext *c, JSValueConst this, int argc, JSValueConst *argv, int level) {
    (void)this;
    for (int n = 0; n < argc; n++) {
        size_t len;
        const char *at = JS_ToCStringLen(c, &len, argv[n]);
        if (at) tg_log((tg_u32)level, (tg_text){ at, (tg_u32)len });
        JS_FreeCString(c, at);
    }
    return JS_UNDEFINED;
}

static tg_setup refused(tg_error error) { return (tg_setup){ 1, .error = error.text }; }

static tg_setup policy_init(tg_text config) {
    JSRuntime *rt = JS_NewRuntime();
    /* The host's limits are the limits. */
    JS_SetMaxStackSize(rt, 0);
    ctx = JS_NewContextRaw(rt);
    JS_AddIntrinsicBaseObjects(ctx);
    JS_AddIntrinsicDate(ctx);
    JS_AddIntrinsicEval(ctx);
    JS_AddIntrinsicRegExp(ctx);
    JS_AddIntrinsicJSON(ctx);
    JS_AddIntrinsicMapSet(ctx);
    JS_AddIntrinsicTypedArrays(ctx);
    JS_AddIntrinsicPromise(ctx);
    JSValue global = JS_GetGlobalObject(ctx);
    JSValue console = JS_NewObject(ctx);
    set(console, "debug", JS_NewCFunctionMagic(ctx, console_log, "debug", 1, JS_CFUNC_generic_magic, TG_DEBUG));
    set(console, "log", JS_NewCFunctionMagic(ctx, console_log, "log", 1, JS_CFUNC_generic_magic, TG_INFO));
    set(console, "warn", JS_NewCFunctionMagic(ctx, console_log, "warn", 1, JS_CFUNC_generic_magic, TG_WARN));
    set(global, "console", console);

    if (!script.len) return (tg_setup){ 1, .error = TG("no script: make the policy with tidegate policy build") };
    char *source = tg_alloc(script.len + 1, 1);
    memcpy(source, (const char *)script.text, script.len);
    source[script.len] = 0;
    JSValue compiled = JS_Eval(ctx, source, script.len, "policy.js", JS_EVAL_TYPE_MODULE | JS_EVAL_FLAG_COMPILE_ONLY);
    if (JS_IsException(compiled)) return refused(error_out());
    JSModuleDef *definition = JS_VALUE_GET_PTR(compiled);
    JSValue done = JS_EvalFunction(ctx, compiled);
    if (JS_IsException(done)) return refused(error_out());
    JSContext *other;
    while (JS_ExecutePendingJob(rt, &other) > 0) {}
    if (JS_PromiseState(ctx, done) == JS_PROMISE_REJECTED) {
        JS_Throw(ctx, JS_PromiseResult(ctx, done));
        return refused(error_out());
    }
    module = JS_GetModuleNamespace(ctx, definition);

    JSValue init = JS_GetPropertyStr(ctx, module, "init");
    if (!JS_IsFunction(ctx, init))
        return (tg_setup){ 1, .error = TG("policy.js: export function init(config) is missing") };
    JSValue argument = text_in(config);
    JSValue told = JS_Call(ctx, init, JS_UNDEFINED, 1, &argument);
    if (JS_IsException(told)) return refused(error_out());
    if (!JS_IsObject(told))
        return (tg_setup){ 1, .error = TG("policy.js: init returns an object with name and version") };
    tg_descriptor d = {
        text_of(told, "name"), text_of(told, "version"), texts_of(told, "headers"), texts_of(told, "facts"),
    };
    if (mistake[0]) return refused(mistake_out());
    fields = d.headers.at, fields_len = d.headers.len;
    JS_RunGC(rt);
    /* Calls are short: they leave their garbage behind. */
    JS_SetGCThreshold(rt, (size_t)-1);
    return (tg_setup){ 0, .ok = d };
}

/* Calls an exported function; an exception where there is none. */
static JSValue ask(const char *name, int argc, JSValue *argv) {
    JSValue function = JS_GetPropertyStr(ctx, module, name);
    if (!JS_IsFunction(ctx, function)) {
        JS_ThrowTypeError(ctx, "policy.js: export function %s is missing", name);
        return JS_EXCEPTION;
    }
    return JS_Call(ctx, function, JS_UNDEFINED, argc, argv);
}

/* ---- routing ---- */
#ifdef TG_ROUTING

static tg_reply reply_out(JSValue value, tg_u16 code, tg_text enhanced) {
    double n = code;
    number_of(value, "code", 400, 599, &n);
    tg_option_text own = option_out(value, "enhanced");
    return (tg_reply){ (tg_u16)n, own.some ? own.value : enhanced, text_of(value, "text") };
}

static int is(tg_text t, const char *word) { return tg_same(t, (tg_text){ word, (tg_u32)strlen(word) }); }

static tg_managed managed_out(JSValue value, tg_u8 class) {
    double n;
    tg_managed m = { .class = class, .relay = option_out(value, "relay"), .lane = option_out(value, "lane") };
    tg_option_text named = option_out(value, "class");
    if (named.some) {
        if (!is(named.value, "bulk") && !is(named.value, "transactional"))
            wrong("class: transactional or bulk is needed");
        m.class = is(named.value, "bulk") ? TG_BULK : TG_TRANSACTIONAL;
    }
    if (number_of(value, "priority", -10, 10, &n)) m.priority = (tg_s8)n;
    if (number_of(value, "not_before", 0, 8e15, &n)) m.not_before = (tg_option_u64){ 1, (tg_u64)n };
    if (number_of(value, "expire_after", 0, 4e9, &n)) m.expire_after = (tg_option_u32){ 1, (tg_u32)n };
    if (number_of(value, "notify_delay_after", 0, 4e9, &n)) m.notify_delay_after = (tg_option_u32){ 1, (tg_u32)n };
    return m;
}

/* "managed", or an object with one of the four names. */
static tg_action action_out(JSValue value, tg_u8 class) {
    JSValue part;
    if (JS_IsString(value) && is(text_out(value), "managed"))
        return (tg_action){ TG_MANAGED, .managed = { .class = class } };
    if (!JS_IsObject(value)) {
        wrong("an action is \"managed\" or an object with managed, passthrough, defer or refuse");
        return (tg_action){ 0 };
    }
    part = JS_GetPropertyStr(ctx, value, "managed");
    if (!absent(part)) return (tg_action){ TG_MANAGED, .managed = managed_out(part, class) };
    part = JS_GetPropertyStr(ctx, value, "passthrough");
    if (!absent(part)) {
        tg_option_text after = option_out(part, "after_failure");
        tg_action a = { TG_PASSTHROUGH, .passthrough = { text_of(part, "server"), TG_GIVE_UP } };
        if (after.some) {
            if (is(after.value, "managed-relay")) a.passthrough.after_failure = TG_THEN_MANAGED_RELAY;
            else if (is(after.value, "give-up-and-notify")) a.passthrough.after_failure = TG_GIVE_UP_AND_NOTIFY;
            else if (!is(after.value, "give-up")) wrong("after_failure: give-up, give-up-and-notify or managed-relay is needed");
        }
        return a;
    }
    part = JS_GetPropertyStr(ctx, value, "defer");
    if (!absent(part)) return (tg_action){ TG_DEFER, .reply = reply_out(part, 451, TG("4.7.1")) };
    part = JS_GetPropertyStr(ctx, value, "refuse");
    if (!absent(part)) return (tg_action){ TG_REFUSE, .reply = reply_out(part, 550, TG("5.7.1")) };
    wrong("an action is \"managed\" or an object with managed, passthrough, defer or refuse");
    return (tg_action){ 0 };
}

static tg_routing decision_out(JSValue value, tg_u8 class) {
    tg_routing answer = { 0 };
    JSValue otherwise = JS_IsObject(value) ? JS_GetPropertyStr(ctx, value, "otherwise") : JS_UNDEFINED;
    if (absent(otherwise)) {
        answer.ok.otherwise = action_out(value, class);
    } else {
        answer.ok.otherwise = action_out(otherwise, class);
        JSValue splits = JS_GetPropertyStr(ctx, value, "splits");
        if (!absent(splits)) {
            tg_u32 len = length_of(splits);
            answer.ok.splits.at = tg_alloc(len * sizeof(tg_split), 8);
            answer.ok.splits.len = len;
            for (tg_u32 n = 0; n < len && !mistake[0]; n++) {
                JSValue split = JS_GetPropertyUint32(ctx, splits, n);
                JSValue list = JS_GetPropertyStr(ctx, split, "recipients");
                tg_split *s = &answer.ok.splits.at[n];
                s->action = action_out(JS_GetPropertyStr(ctx, split, "action"), class);
                s->recipients.len = length_of(list);
                s->recipients.at = tg_alloc(s->recipients.len * 4, 4);
                for (tg_u32 i = 0; i < s->recipients.len; i++)
                    JS_ToUint32(ctx, &s->recipients.at[i], JS_GetPropertyUint32(ctx, list, i));
            }
        }
    }
    JSValue tags = JS_IsObject(value) ? JS_GetPropertyStr(ctx, value, "tags") : JS_UNDEFINED;
    JSPropertyEnum *names;
    uint32_t len;
    if (!absent(tags) && !JS_GetOwnPropertyNames(ctx, &names, &len, tags, JS_GPN_STRING_MASK | JS_GPN_ENUM_ONLY)) {
        answer.ok.tags.at = tg_alloc(len * sizeof(tg_fact), 4);
        answer.ok.tags.len = len;
        for (uint32_t n = 0; n < len; n++)
            answer.ok.tags.at[n] = (tg_fact){
                text_out(JS_AtomToString(ctx, names[n].atom)), text_out(JS_GetProperty(ctx, tags, names[n].atom)),
            };
    }
    return answer;
}

static tg_routing policy_decide(const tg_occasion *why, const tg_message *m) {
    now_ms = m->now;
    JSValue message = JS_NewObject(ctx);
    set_text(message, "id", m->id);
    set_text(message, "sender", m->sender);
    JSValue list = JS_NewArray(ctx);
    for (tg_u32 n = 0; n < m->recipients.len; n++) {
        JSValue recipient = JS_NewObject(ctx);
        set_text(recipient, "address", m->recipients.at[n].address);
        set_text(recipient, "domain", tg_recipient_domain(&m->recipients.at[n]));
        JS_SetPropertyUint32(ctx, list, n, recipient);
    }
    set(message, "recipients", list);
    list = JS_NewArray(ctx);
    for (tg_u32 n = 0; n < m->headers.len; n++) {
        const tg_header *h = &m->headers.at[n];
        JSValue header = JS_NewObject(ctx);
        set_text(header, "name", h->field < fields_len ? fields[h->field] : TG(""));
        set_text(header, "value", h->value);
        JS_SetPropertyUint32(ctx, list, n, header);
    }
    set(message, "headers", list);
    set_number(message, "size", (double)m->size);
    set(message, "class", class_in(m->class));
    set_number(message, "received", (double)m->received);
    set_number(message, "now", (double)m->now);
    JSValue origin = JS_NewObject(ctx);
    set_text(origin, "via", m->origin.via);
    set_option(origin, "user", &m->origin.user);
    set_text(origin, "peer", m->origin.peer);
    set_text(origin, "helo", m->origin.helo);
    set(origin, "tls", JS_NewBool(ctx, m->origin.tls));
    set(message, "origin", origin);
    set(message, "facts", facts_in(&m->facts));
    JSValue failed = JS_NULL;
    if (why->kind == TG_PASSTHROUGH_FAILED) {
        failed = JS_NewObject(ctx);
        set_number(failed, "code", why->reply.code);
        set_text(failed, "enhanced", why->reply.enhanced);
        set_text(failed, "text", why->reply.text);
    }
    set(message, "passthrough_failed", failed);
    JSValue answer = ask("decide", 1, &message);
    if (JS_IsException(answer)) return (tg_routing){ 1, .error = error_out() };
    tg_routing routing = decision_out(answer, m->class);
    if (mistake[0]) return (tg_routing){ 1, .error = mistake_out() };
    return routing;
}
#endif

/* ---- shaping ---- */
#ifdef TG_SHAPING

static JSValue limits_in(const tg_limits *l) {
    JSValue limits = JS_NewObject(ctx), rate = JS_NULL, retry = JS_NewArray(ctx);
    if (l->rate.some) {
        rate = JS_NewObject(ctx);
        set_number(rate, "messages", l->rate.messages);
        set_number(rate, "per_ms", l->rate.per_ms);
    }
    set(limits, "rate", rate);
    set_number(limits, "burst", l->burst);
    set_number(limits, "connections", l->connections);
    set_number(limits, "messages_per_connection", l->messages_per_connection);
    for (tg_u32 n = 0; n < l->retry_after.len; n++)
        JS_SetPropertyUint32(ctx, retry, n, JS_NewUint32(ctx, l->retry_after.at[n]));
    set(limits, "retry_after", retry);
    set(limits, "paused_until", l->paused_until.some ? JS_NewFloat64(ctx, (double)l->paused_until.value) : JS_NULL);
    set_number(limits, "ttl", l->ttl);
    return limits;
}

static tg_limits limits_out(JSValue value) {
    tg_limits l = TG_LIMITS;
    double n;
    JSValue rate = JS_GetPropertyStr(ctx, value, "rate"), retry = JS_GetPropertyStr(ctx, value, "retry_after");
    if (!absent(rate)) {
        l.rate = (tg_option_rate){ 1, 1, 1000 };
        if (number_of(rate, "messages", 1, 4e9, &n)) l.rate.messages = (tg_u32)n;
        if (number_of(rate, "per_ms", 1, 4e9, &n)) l.rate.per_ms = (tg_u32)n;
    }
    if (number_of(value, "burst", 1, 4e9, &n)) l.burst = (tg_u32)n;
    if (number_of(value, "connections", 0, 65535, &n)) l.connections = (tg_u16)n;
    if (number_of(value, "messages_per_connection", 1, 65535, &n)) l.messages_per_connection = (tg_u16)n;
    if (!absent(retry)) {
        l.retry_after.len = length_of(retry);
        l.retry_after.at = tg_alloc(l.retry_after.len * 4, 4);
        for (tg_u32 i = 0; i < l.retry_after.len; i++)
            JS_ToUint32(ctx, &l.retry_after.at[i], JS_GetPropertyUint32(ctx, retry, i));
    }
    if (number_of(value, "paused_until", 0, 8e15, &n)) l.paused_until = (tg_option_u64){ 1, (tg_u64)n };
    if (number_of(value, "ttl", 1, 86400, &n)) l.ttl = (tg_u32)n;
    return l;
}

static tg_lane_plan lane_out(JSValue value) {
    tg_lane_plan plan = { 0 };
    double n;
    if (!JS_IsObject(value)) {
        wrong("a lane's plan is an object with limits");
        return plan;
    }
    JSValue limits = JS_GetPropertyStr(ctx, value, "limits"), wake = JS_GetPropertyStr(ctx, value, "wake");
    plan.limits = JS_IsObject(limits) ? limits_out(limits) : TG_LIMITS;
    plan.cause = option_out(value, "cause");
    if (!absent(wake)) {
        JSValue codes = JS_GetPropertyStr(ctx, wake, "codes");
        plan.wake.some = 1;
        plan.wake.value.deferred_per_mille = 1000;
        if (number_of(wake, "deferred_per_mille", 0, 1000, &n)) plan.wake.value.deferred_per_mille = (tg_u16)n;
        if (number_of(wake, "min_attempts", 0, 4e9, &n)) plan.wake.value.min_attempts = (tg_u32)n;
        if (!absent(codes)) {
            plan.wake.value.codes.len = length_of(codes);
            plan.wake.value.codes.at = tg_alloc(plan.wake.value.codes.len * 2, 2);
            for (tg_u32 i = 0; i < plan.wake.value.codes.len; i++) {
                uint32_t code = 0;
                JS_ToUint32(ctx, &code, JS_GetPropertyUint32(ctx, codes, i));
                plan.wake.value.codes.at[i] = (tg_u16)code;
            }
        }
    }
    return plan;
}

static tg_shaping policy_plan(tg_u64 now, tg_text state, const tg_lane_state *lanes, tg_u32 len) {
    now_ms = now;
    JSValue argv[3] = { JS_NewFloat64(ctx, (double)now), JS_NewArray(ctx), text_in(state) };
    for (tg_u32 n = 0; n < len; n++) {
        const tg_lane_state *l = &lanes[n];
        JSValue lane = JS_NewObject(ctx), recent = JS_NewObject(ctx), replies = JS_NewArray(ctx);
        set_text(lane, "tenant", l->key.tenant);
        set(lane, "class", class_in(l->key.class));
        set_text(lane, "relay", l->key.relay);
        set_text(lane, "site", l->key.site);
        set_option(lane, "lane", &l->key.lane);
        set_number(lane, "backlog", l->backlog);
        set_number(lane, "oldest_seconds", l->oldest_seconds);
        set_number(lane, "open_connections", l->open_connections);
        set(lane, "sending_since", l->sending_since.some ? JS_NewFloat64(ctx, (double)l->sending_since.value) : JS_NULL);
        set_number(lane, "sent_total", (double)l->sent_total);
        set(lane, "current", l->current.some ? limits_in(&l->current.value) : JS_NULL);
        set_number(recent, "seconds", l->recent.seconds);
        set_number(recent, "attempts", l->recent.attempts);
        set_number(recent, "delivered", l->recent.delivered);
        set_number(recent, "deferred", l->recent.deferred);
        set_number(recent, "bounced", l->recent.bounced);
        set_number(recent, "connect_failures", l->recent.connect_failures);
        for (tg_u32 i = 0; i < l->recent.replies.len; i++) {
            const tg_reply_count *r = &l->recent.replies.at[i];
            JSValue reply = JS_NewObject(ctx);
            set_number(reply, "code", r->code);
            set_text(reply, "enhanced", r->enhanced);
            set_text(reply, "sample", r->sample);
            set_number(reply, "count", r->count);
            JS_SetPropertyUint32(ctx, replies, i, reply);
        }
        set(recent, "replies", replies);
        set(lane, "recent", recent);
        set(lane, "facts", facts_in(&l->facts));
        JS_SetPropertyUint32(ctx, argv[1], n, lane);
    }
    JSValue answer = ask("plan", 3, argv);
    if (JS_IsException(answer)) return (tg_shaping){ 1, .error = error_out() };
    tg_shaping plan = { 0 };
    JSValue list = JS_IsObject(answer) ? JS_GetPropertyStr(ctx, answer, "lanes") : JS_UNDEFINED;
    if (!JS_IsArray(list)) wrong("plan returns an object with a list of lanes and a state");
    else {
        plan.ok.lanes.len = length_of(list);
        plan.ok.lanes.at = tg_alloc(plan.ok.lanes.len * sizeof(tg_lane_plan), 8);
        for (tg_u32 n = 0; n < plan.ok.lanes.len && !mistake[0]; n++)
            plan.ok.lanes.at[n] = lane_out(JS_GetPropertyUint32(ctx, list, n));
        tg_text kept = text_of(answer, "state");
        plan.ok.state = (tg_bytes){ (tg_u8 *)kept.at, kept.len };
    }
    if (mistake[0]) return (tg_shaping){ 1, .error = mistake_out() };
    return plan;
}
#endif

/* ---- log export ---- */
#ifdef TG_EXPORTER

static tg_export policy_render(const tg_event *events, tg_u32 len) {
    JSValue batch = JS_NewArray(ctx);
    for (tg_u32 n = 0; n < len; n++) {
        const tg_event *e = &events[n];
        JSValue event = JS_NewObject(ctx);
        now_ms = e->at;
        set_number(event, "seq", (double)e->seq);
        set_number(event, "at", (double)e->at);
        set_text(event, "kind", e->kind);
        set_text(event, "message", e->message);
        set_text(event, "tenant", e->tenant);
        set_text(event, "sender", e->sender);
        set_option(event, "recipient", &e->recipient);
        set_number(event, "size", (double)e->size);
        set_option(event, "message_id", &e->message_id);
        set_option(event, "record_id", &e->record_id);
        set_option(event, "subject", &e->subject);
        set(event, "attempt", e->attempt.some ? JS_NewUint32(ctx, e->attempt.value) : JS_NULL);
        set(event, "duration_ms", e->duration_ms.some ? JS_NewUint32(ctx, e->duration_ms.value) : JS_NULL);
        set_option(event, "site", &e->site);
        set_option(event, "host", &e->host);
        set_option(event, "peer", &e->peer);
        set_option(event, "tls", &e->tls);
        set(event, "code", e->code.some ? JS_NewUint32(ctx, e->code.value) : JS_NULL);
        set_option(event, "enhanced", &e->enhanced);
        set_option(event, "text", &e->text);
        set(event, "facts", facts_in(&e->facts));
        JS_SetPropertyUint32(ctx, batch, n, event);
    }
    JSValue answer = ask("render", 1, &batch);
    if (JS_IsException(answer)) return (tg_export){ 1, .error = error_out() };
    tg_export rendered = { 0 };
    if (!JS_IsArray(answer)) wrong("render returns a list of payloads");
    else {
        rendered.ok.len = length_of(answer);
        rendered.ok.at = tg_alloc(rendered.ok.len * sizeof(tg_payload), 4);
        for (tg_u32 n = 0; n < rendered.ok.len; n++) {
            JSValue payload = JS_GetPropertyUint32(ctx, answer, n);
            tg_text body = text_of(payload, "body");
            rendered.ok.at[n] = (tg_payload){ { (tg_u8 *)body.at, body.len }, text_of(payload, "content_type") };
        }
    }
    if (mistake[0]) return (tg_export){ 1, .error = mistake_out() };
    return rendered;
}
#endif
