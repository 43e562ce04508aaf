/* Tidegate policies in C, without a C library: the types of policy.wit as they lie in memory,
 * an allocator for instances that live for one call, and a few helpers.
 *
 * The layout of a record in the Component Model's canonical ABI is that of a C struct, so what
 * the host passes is read in place, and what a policy returns is a struct of its own. Texts
 * are not ended by a zero byte. Include this file once. */
#ifndef TIDEGATE_H
#define TIDEGATE_H

typedef unsigned char tg_u8;
typedef signed char tg_s8;
typedef unsigned short tg_u16;
typedef unsigned int tg_u32;
typedef unsigned long long tg_u64;

#define TG_EXPORT(name) __attribute__((export_name(name)))
#define TG_LEN(array) (sizeof(array) / sizeof((array)[0]))

typedef struct { const char *at; tg_u32 len; } tg_text;
typedef struct { tg_u8 some; tg_text value; } tg_option_text;
typedef struct { tg_u8 some; tg_u32 value; } tg_option_u32;
typedef struct { tg_u8 some; tg_u16 value; } tg_option_u16;
typedef struct { tg_u8 some; tg_u64 value; } tg_option_u64;
typedef struct { tg_text name, value; } tg_fact;
typedef struct { tg_fact *at; tg_u32 len; } tg_facts;
typedef struct { tg_text *at; tg_u32 len; } tg_texts;
typedef struct { tg_u8 *at; tg_u32 len; } tg_bytes;

enum { TG_TRANSACTIONAL, TG_BULK };
enum { TG_TEMPORARY, TG_BROKEN };

typedef struct { tg_u16 code; tg_text enhanced, text; } tg_reply;
typedef struct { tg_u8 kind; tg_text text; } tg_error;

/* A text of the program. */
#define TG(literal) ((tg_text){ (literal), sizeof(literal) - 1 })
#define TG_SOME(literal) ((tg_option_text){ 1, TG(literal) })

/* ---- memory ---- */

#ifdef TG_LIBC /* A program with a C library has its own. */
#include <stdlib.h>
#include <string.h>
static void *tg_alloc(tg_u32 size, tg_u32 align) {
    (void)align;
    void *at = malloc(size ? size : 1);
    if (!at) __builtin_trap();
    return at;
}

static inline void *tg_more(void *old, tg_u32 old_size, tg_u32 size) {
    (void)old_size;
    void *at = realloc(old, size ? size : 1);
    if (!at) __builtin_trap();
    return at;
}
#else
extern tg_u8 __heap_base;
static tg_u32 tg_free;

/* Hands out the next free bytes and takes none back: an instance lives for one call. */
static void *tg_alloc(tg_u32 size, tg_u32 align) {
    if (!tg_free) tg_free = (tg_u32)&__heap_base;
    tg_u32 start = (tg_free + align - 1) & ~(align - 1);
    tg_u32 end = start + size, have = __builtin_wasm_memory_size(0) << 16;
    if (end < start) __builtin_trap();
    if (end > have && __builtin_wasm_memory_grow(0, (end - have + 65535) >> 16) == (tg_u32)-1)
        __builtin_trap();
    tg_free = end;
    return (void *)start;
}

/* The compiler calls these two for structs; it must not make a call of their own loops. */
__attribute__((no_builtin)) void *memcpy(void *to, const void *from, tg_u32 len) {
    tg_u8 *t = to;
    const tg_u8 *f = from;
    while (len--) *t++ = *f++;
    return to;
}

__attribute__((no_builtin)) void *memset(void *to, int byte, tg_u32 len) {
    tg_u8 *t = to;
    while (len--) *t++ = (tg_u8)byte;
    return to;
}

/* The block with more bytes: where it is if it is the newest, else a copy. */
static inline void *tg_more(void *old, tg_u32 old_size, tg_u32 size) {
    if (old && (tg_u32)old + old_size == tg_free && size >= old_size) {
        tg_alloc(size - old_size, 1);
        return old;
    }
    void *at = tg_alloc(size, 1);
    if (old) memcpy(at, old, old_size < size ? old_size : size);
    return at;
}
#endif

TG_EXPORT("cabi_realloc")
void *tg_realloc(void *old, tg_u32 old_size, tg_u32 align, tg_u32 size) {
    void *at = tg_alloc(size, align ? align : 1);
    if (old) memcpy(at, old, old_size < size ? old_size : size);
    return at;
}

/* ---- texts ---- */

static tg_u8 tg_lower(char c) { return c >= 'A' && c <= 'Z' ? c + 32 : (tg_u8)c; }

/* The same, byte for byte. */
static inline int tg_is(tg_text a, tg_text b) {
    if (a.len != b.len) return 0;
    for (tg_u32 n = 0; n < a.len; n++)
        if (a.at[n] != b.at[n]) return 0;
    return 1;
}

static inline int tg_starts(tg_text t, tg_text start) {
    return t.len >= start.len && tg_is((tg_text){ t.at, start.len }, start);
}

static inline int tg_ends(tg_text t, tg_text end) {
    return t.len >= end.len && tg_is((tg_text){ t.at + t.len - end.len, end.len }, end);
}

/* Without regard to case in US-ASCII. */
static int tg_same(tg_text a, tg_text b) {
    if (a.len != b.len) return 0;
    for (tg_u32 n = 0; n < a.len; n++)
        if (tg_lower(a.at[n]) != tg_lower(b.at[n])) return 0;
    return 1;
}

/* Whether the part stands anywhere in the text, without regard to case in US-ASCII. */
static inline int tg_has(tg_text t, tg_text part) {
    for (tg_u32 n = 0; n + part.len <= t.len; n++)
        if (tg_same((tg_text){ t.at + n, part.len }, part)) return 1;
    return 0;
}

/* A copy in lower case, of US-ASCII letters. */
static inline tg_text tg_lowered(tg_text t) {
    char *copy = tg_alloc(t.len, 1);
    for (tg_u32 n = 0; n < t.len; n++) copy[n] = (char)tg_lower(t.at[n]);
    return (tg_text){ copy, t.len };
}

/* What follows the last at sign; empty where there is none. */
static inline tg_text tg_domain(tg_text address) {
    for (tg_u32 n = address.len; n > 0; n--)
        if (address.at[n - 1] == '@')
            return (tg_text){ address.at + n, address.len - n };
    return (tg_text){ address.at, 0 };
}

/* Without blanks and line ends around it. */
static inline tg_text tg_trim(tg_text t) {
    while (t.len && (tg_u8)t.at[0] <= ' ') t.at++, t.len--;
    while (t.len && (tg_u8)t.at[t.len - 1] <= ' ') t.len--;
    return t;
}

/* At most `len` bytes, never within a character. */
static inline tg_text tg_cut(tg_text t, tg_u32 len) {
    if (t.len <= len) return t;
    while (len && ((tg_u8)t.at[len] & 0xc0) == 0x80) len--;
    return (tg_text){ t.at, len };
}

/* At most so many characters. */
static inline tg_text tg_first(tg_text t, tg_u32 characters) {
    tg_u32 n = 0;
    while (n < t.len && characters--)
        for (n++; n < t.len && ((tg_u8)t.at[n] & 0xc0) == 0x80; n++) {}
    return (tg_text){ t.at, n };
}

/* Text that grows: for payloads of an exporter. */
typedef struct { tg_u8 *at; tg_u32 len, room; } tg_buffer;

static inline void tg_put(tg_buffer *b, tg_text t) {
    if (b->len + t.len > b->room) {
        tg_u32 room = 2 * (b->len + t.len) + 256;
        b->at = tg_more(b->at, b->room, room), b->room = room;
    }
    memcpy(b->at + b->len, t.at, t.len);
    b->len += t.len;
}

static inline void tg_put_number(tg_buffer *b, tg_u64 n) {
    char digits[20];
    tg_u32 at = sizeof digits;
    do digits[--at] = '0' + n % 10; while (n /= 10);
    tg_put(b, (tg_text){ digits + at, sizeof digits - at });
}

/* `2026-03-03T10:00:00.000Z` (RFC 3339), of milliseconds since 1970; up to the year 9999. */
static inline void tg_put_iso(tg_buffer *b, tg_u64 at) {
    static const tg_u8 lengths[] = { 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 };
    if (at > 253402300799999) at = 253402300799999;
    tg_u32 days = (tg_u32)(at / 86400000), time = (tg_u32)(at % 86400000), year = 1970, month = 0, leap;
    for (;; year++) {
        leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        if (days < 365 + leap) break;
        days -= 365 + leap;
    }
    for (tg_u32 length; days >= (length = lengths[month] + (month == 1 ? leap : 0)); month++) days -= length;
    /* Each number with the places before it, and what follows it. */
    const tg_u32 parts[][2] = {
        { year, 1000 }, { month + 1, 10 }, { days + 1, 10 }, { time / 3600000, 10 },
        { time / 60000 % 60, 10 }, { time / 1000 % 60, 10 }, { time % 1000, 100 },
    };
    for (tg_u32 n = 0; n < TG_LEN(parts); n++) {
        for (tg_u32 place = parts[n][1]; place > 1 && parts[n][0] < place; place /= 10) tg_put(b, TG("0"));
        tg_put_number(b, parts[n][0]);
        tg_put(b, (tg_text){ &"--T::.Z"[n], 1 });
    }
}

/* A JSON string with its quotes. */
static inline void tg_put_json(tg_buffer *b, tg_text t) {
    static const char hex[] = "0123456789abcdef";
    tg_put(b, TG("\""));
    for (tg_u32 n = 0; n < t.len; n++) {
        tg_u8 c = (tg_u8)t.at[n];
        char escaped[6] = { '\\', (char)c, '0', '0', hex[c >> 4 & 15], hex[c & 15] };
        if (c == '"' || c == '\\') {
            tg_put(b, (tg_text){ escaped, 2 });
        } else if (c < ' ') {
            escaped[1] = 'u', escaped[2] = '0';
            tg_put(b, (tg_text){ escaped, 6 });
        } else {
            tg_put(b, (tg_text){ t.at + n, 1 });
        }
    }
    tg_put(b, TG("\""));
}

/* ---- setup ---- */

typedef struct { tg_text name, version; tg_texts headers, facts; } tg_descriptor;
typedef struct { tg_u8 failed; union { tg_descriptor ok; tg_text error; }; } tg_setup;

/* A policy defines these. `config` and what is allocated stay for all calls. An error
 * refuses the upload: name the mistake and the remedy. */
static tg_setup policy_init(tg_text config);

TG_EXPORT("tidegate:policy/setup@1.0.0#init")
tg_setup *tg_init(const char *at, tg_u32 len) {
    static tg_setup result;
    result = policy_init((tg_text){ at, len });
    return &result;
}

/* ---- log ---- */

enum { TG_DEBUG, TG_INFO, TG_WARN };

__attribute__((import_module("tidegate:policy/log@1.0.0"), import_name("write")))
void tg_log_write(tg_u32 level, const char *at, tg_u32 len);

/* A line in the gateway's log; not within policy_init. */
static inline void tg_log(tg_u32 level, tg_text text) { tg_log_write(level, text.at, text.len); }

/* ---- routing ---- */
#ifdef TG_ROUTING

typedef struct { tg_u32 field; tg_text value; } tg_header;
typedef struct { tg_text address; tg_u32 domain_at; } tg_recipient;
typedef struct { tg_text via; tg_option_text user; tg_text peer, helo; tg_u8 tls; } tg_origin;

enum { TG_SUBMITTED, TG_PASSTHROUGH_FAILED };
typedef struct { tg_u8 kind; tg_reply reply; } tg_occasion;

typedef struct {
    tg_text id, sender;
    struct { tg_recipient *at; tg_u32 len; } recipients;
    struct { tg_header *at; tg_u32 len; } headers;
    tg_u64 size;
    tg_u8 class;
    tg_u64 received, now;
    tg_origin origin;
    tg_facts facts;
} tg_message;

typedef struct {
    tg_u8 class;
    tg_option_text relay, lane;
    tg_s8 priority;
    tg_option_u64 not_before;
    tg_option_u32 expire_after, notify_delay_after;
} tg_managed;

enum { TG_GIVE_UP, TG_GIVE_UP_AND_NOTIFY, TG_THEN_MANAGED_RELAY };
typedef struct { tg_text server; tg_u8 after_failure; } tg_passthrough;

enum { TG_MANAGED, TG_PASSTHROUGH, TG_DEFER, TG_REFUSE };
typedef struct {
    tg_u8 kind;
    union { tg_managed managed; tg_passthrough passthrough; tg_reply reply; };
} tg_action;

typedef struct {
    struct { tg_u32 *at; tg_u32 len; } recipients;
    tg_action action;
} tg_split;

typedef struct {
    tg_action otherwise;
    struct { tg_split *at; tg_u32 len; } splits;
    tg_facts tags;
} tg_decision;

typedef struct { tg_u8 failed; union { tg_decision ok; tg_error error; }; } tg_routing;

/* The value of a declared field, by its number in the descriptor; at == 0: not there. */
static inline tg_text tg_header_of(const tg_message *m, tg_u32 field) {
    for (tg_u32 n = 0; n < m->headers.len; n++)
        if (m->headers.at[n].field == field) return m->headers.at[n].value;
    return (tg_text){ 0, 0 };
}

static inline tg_text tg_recipient_domain(const tg_recipient *r) {
    return (tg_text){ r->address.at + r->domain_at, r->address.len - r->domain_at };
}

static tg_routing policy_decide(const tg_occasion *why, const tg_message *message);

typedef struct { tg_occasion why; tg_message message; } tg_question;

TG_EXPORT("tidegate:policy/routing@1.0.0#decide")
tg_routing *tg_decide(const tg_question *question) {
    static tg_routing result;
    result = policy_decide(&question->why, &question->message);
    return &result;
}
#endif

/* ---- shaping ---- */
#ifdef TG_SHAPING

typedef struct { tg_text tenant; tg_u8 class; tg_text relay, site; tg_option_text lane; } tg_lane_key;
typedef struct { tg_u16 code; tg_text enhanced, sample; tg_u32 count; } tg_reply_count;
typedef struct {
    tg_u32 seconds, attempts, delivered, deferred, bounced, connect_failures;
    struct { tg_reply_count *at; tg_u32 len; } replies;
} tg_window;
typedef struct { tg_u8 some; tg_u32 messages, per_ms; } tg_option_rate;
typedef struct {
    tg_option_rate rate;
    tg_u32 burst;
    tg_u16 connections, messages_per_connection;
    struct { tg_u32 *at; tg_u32 len; } retry_after;
    tg_option_u64 paused_until;
    tg_u32 ttl;
} tg_limits;
typedef struct { tg_u8 some; tg_limits value; } tg_option_limits;
typedef struct {
    tg_lane_key key;
    tg_u32 backlog, oldest_seconds;
    tg_u16 open_connections;
    tg_option_u64 sending_since;
    tg_u64 sent_total;
    tg_option_limits current;
    tg_window recent;
    tg_facts facts;
} tg_lane_state;
typedef struct {
    tg_u16 deferred_per_mille;
    tg_u32 min_attempts;
    struct { tg_u16 *at; tg_u32 len; } codes;
} tg_trigger;
typedef struct { tg_u8 some; tg_trigger value; } tg_option_trigger;
typedef struct { tg_limits limits; tg_option_trigger wake; tg_option_text cause; } tg_lane_plan;
typedef struct { struct { tg_lane_plan *at; tg_u32 len; } lanes; tg_bytes state; } tg_plan;
typedef struct { tg_u8 failed; union { tg_plan ok; tg_error error; }; } tg_shaping;

/* What the host does without a policy. */
#define TG_LIMITS ((tg_limits){ .burst = 1, .connections = 20, .messages_per_connection = 100, .ttl = 60 })

/* What a call remembers is given back to the next one, at most 64 KiB: define TG_STATE and
 * `policy_plan` for that. Without, `policy_lane` plans each lane by what the host says of it. */
#ifdef TG_STATE
static tg_shaping policy_plan(tg_u64 now, tg_text state, const tg_lane_state *lanes, tg_u32 len);

TG_EXPORT("tidegate:policy/shaping@1.0.0#plan-lanes")
tg_shaping *tg_plan_lanes(tg_u64 now, char *state, tg_u32 state_len, tg_lane_state *lanes, tg_u32 len) {
    static tg_shaping result;
    result = policy_plan(now, (tg_text){ state, state_len }, lanes, len);
    return &result;
}
#else
static tg_lane_plan policy_lane(tg_u64 now, const tg_lane_state *lane);

TG_EXPORT("tidegate:policy/shaping@1.0.0#plan-lanes")
tg_shaping *tg_plan_lanes(tg_u64 now, tg_u8 *state, tg_u32 state_len, tg_lane_state *lanes, tg_u32 len) {
    static tg_shaping result;
    tg_lane_plan *plans = tg_alloc(len * sizeof *plans, 8);
    (void)state, (void)state_len;
    for (tg_u32 n = 0; n < len; n++) plans[n] = policy_lane(now, &lanes[n]);
    result.ok.lanes.at = plans, result.ok.lanes.len = len;
    return &result;
}
#endif
#endif

/* ---- log export ---- */
#ifdef TG_EXPORTER

typedef struct {
    tg_u64 seq, at;
    tg_text kind, message, tenant, sender;
    tg_option_text recipient;
    tg_u64 size;
    tg_option_text message_id, record_id, subject;
    tg_option_u32 attempt, duration_ms;
    tg_option_text site, host, peer, tls;
    tg_option_u16 code;
    tg_option_text enhanced, text;
    tg_facts facts;
} tg_event;
typedef struct { tg_bytes body; tg_text content_type; } tg_payload;
typedef struct {
    tg_u8 failed;
    union { struct { tg_payload *at; tg_u32 len; } ok; tg_error error; };
} tg_export;

static tg_export policy_render(const tg_event *events, tg_u32 len);

TG_EXPORT("tidegate:policy/log-export@1.0.0#render")
tg_export *tg_render(const tg_event *events, tg_u32 len) {
    static tg_export result;
    result = policy_render(events, len);
    return &result;
}
#endif

#endif
