/* JSON for policies in C: the configuration of policy_init, checked key by key, and what else a
 * policy has to read, such as a state that it gave itself. Include it after tidegate.h, once.
 *
 *     tg_config config = tg_config_read(text);
 *     relay = tg_config_text(&config, TG("relay"), TG("main"));
 *     tg_config_needs(&config, relay.len, TG("relay: name a relay that is granted to you"));
 *     return tg_config_end(&config, (tg_descriptor){ TG("own"), TG("0.1.0"), { 0, 0 }, { 0, 0 } });
 *
 * The first mistake is kept and refuses the upload at the end; so does a key that nothing asked for. */
#ifndef TIDEGATE_JSON_H
#define TIDEGATE_JSON_H

enum { TG_JSON_NULL, TG_JSON_FALSE, TG_JSON_TRUE, TG_JSON_NUMBER, TG_JSON_TEXT, TG_JSON_LIST, TG_JSON_OBJECT };

typedef struct tg_json {
    tg_u8 kind, asked;
    tg_text name;                 /* of a member of an object */
    tg_text text;                 /* of a text, without escapes; not always a copy */
    double number;                /* of a number: exact up to 15 digits */
    struct tg_json *first, *next; /* the first item or member of this; the one after this */
} tg_json;

typedef struct { const char *at, *end; tg_u32 depth; } tg_json_reader;

#define TG_JSON_DEPTH 32

static int tg_json_sees(const tg_json_reader *r, char least, char most) {
    return r->at < r->end && *r->at >= least && *r->at <= most;
}

static void tg_json_blanks(tg_json_reader *r) {
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\t' || *r->at == '\n' || *r->at == '\r')) r->at++;
}

/* Whether that comes next; it is then read. */
static int tg_json_next(tg_json_reader *r, tg_text word) {
    tg_json_blanks(r);
    if (!tg_starts((tg_text){ r->at, (tg_u32)(r->end - r->at) }, word)) return 0;
    r->at += word.len;
    return 1;
}

/* Four hexadecimal digits at that place of the text; -1: they are not there. */
static int tg_json_hex(tg_text t, tg_u32 at) {
    int code = 0;
    if (t.len < 4 || at > t.len - 4) return -1;
    for (tg_u32 end = at + 4; at < end; at++) {
        int c = tg_lower(t.at[at]);
        if (c >= '0' && c <= '9') code = code << 4 | (c - '0');
        else if (c >= 'a' && c <= 'f') code = code << 4 | (c - 'a' + 10);
        else return -1;
    }
    return code;
}

/* A copy with the characters for their escapes, which is never longer. */
static int tg_json_unescape(tg_text *text) {
    static const char escapes[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    const tg_text raw = *text;
    char *out = tg_alloc(raw.len, 1);
    text->at = out;
    for (tg_u32 n = 0; n < raw.len; n++) {
        tg_u32 escape = 0;
        if (raw.at[n] != '\\') {
            *out++ = raw.at[n];
            continue;
        }
        n++; /* The last byte is no backslash: it would have escaped the closing quote. */
        while (escapes[escape] && escapes[escape] != raw.at[n]) escape++;
        if (escapes[escape]) {
            *out++ = meant[escape];
            continue;
        }
        int code = raw.at[n] == 'u' ? tg_json_hex(raw, n + 1) : -1;
        n += 4;
        if (code >= 0xd800 && code < 0xdc00 && n + 2 < raw.len && raw.at[n + 1] == '\\' && raw.at[n + 2] == 'u') {
            int low = tg_json_hex(raw, n + 3);
            if (low < 0xdc00 || low > 0xdfff) return 0;
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
            n += 6;
        }
        /* Half of a pair is no character. */
        if (code < 0 || (code >= 0xd800 && code < 0xe000)) return 0;
        if (code < 0x80) {
            *out++ = (char)code;
        } else if (code < 0x800) {
            *out++ = (char)(0xc0 | code >> 6), *out++ = (char)(0x80 | (code & 63));
        } else if (code < 0x10000) {
            *out++ = (char)(0xe0 | code >> 12), *out++ = (char)(0x80 | (code >> 6 & 63));
            *out++ = (char)(0x80 | (code & 63));
        } else {
            *out++ = (char)(0xf0 | code >> 18), *out++ = (char)(0x80 | (code >> 12 & 63));
            *out++ = (char)(0x80 | (code >> 6 & 63)), *out++ = (char)(0x80 | (code & 63));
        }
    }
    text->len = (tg_u32)(out - text->at);
    return 1;
}

/* A text, behind its first quote. */
static int tg_json_text(tg_json_reader *r, tg_text *text) {
    const char *from = r->at;
    int escapes = 0;
    while (r->at < r->end && *r->at != '"') {
        if ((tg_u8)*r->at < ' ') return 0;
        if (*r->at == '\\') escapes = 1, r->at++;
        if (r->at < r->end) r->at++;
    }
    if (r->at == r->end) return 0;
    *text = (tg_text){ from, (tg_u32)(r->at++ - from) };
    return !escapes || tg_json_unescape(text);
}

static int tg_json_number(tg_json_reader *r, double *number) {
    double n = 0, ten = 1;
    int minus = tg_json_sees(r, '-', '-'), scale = 0, power = 0;
    r->at += minus;
    if (!tg_json_sees(r, '0', '9')) return 0;
    int zero = *r->at == '0';
    for (int more = 1; more; more = !zero && tg_json_sees(r, '0', '9')) n = n * 10 + (*r->at++ - '0');
    if (tg_json_sees(r, '.', '.')) {
        for (r->at++; tg_json_sees(r, '0', '9'); scale++) n = n * 10 + (*r->at++ - '0');
        if (!scale) return 0;
    }
    if (tg_json_sees(r, 'e', 'e') || tg_json_sees(r, 'E', 'E')) {
        r->at++;
        int down = tg_json_sees(r, '-', '-');
        r->at += down || tg_json_sees(r, '+', '+');
        if (!tg_json_sees(r, '0', '9')) return 0;
        for (; tg_json_sees(r, '0', '9'); r->at++) power = power < 1000 ? power * 10 + (*r->at - '0') : power;
        scale += down ? power : -power;
    }
    for (; scale > 0 && ten < 1e300; scale--) ten *= 10;
    for (; scale < 0 && n < 1e300 && n > 0; scale++) n *= 10;
    *number = (minus ? -n : n) / ten;
    return 1;
}

static int tg_json_value(tg_json_reader *r, tg_json *into) {
    if (tg_json_next(r, TG("null"))) return into->kind = TG_JSON_NULL, 1;
    if (tg_json_next(r, TG("false"))) return into->kind = TG_JSON_FALSE, 1;
    if (tg_json_next(r, TG("true"))) return into->kind = TG_JSON_TRUE, 1;
    if (tg_json_next(r, TG("\""))) return into->kind = TG_JSON_TEXT, tg_json_text(r, &into->text);
    int list = tg_json_next(r, TG("["));
    if (!list && !tg_json_next(r, TG("{"))) return into->kind = TG_JSON_NUMBER, tg_json_number(r, &into->number);
    if (++r->depth > TG_JSON_DEPTH) return 0;
    into->kind = list ? TG_JSON_LIST : TG_JSON_OBJECT;
    tg_json **last = &into->first;
    for (int n = 0; !tg_json_next(r, list ? TG("]") : TG("}")); n = 1) {
        tg_json *item = tg_alloc(sizeof *item, 8);
        *item = (tg_json){ 0 };
        if (n && !tg_json_next(r, TG(","))) return 0;
        if (!list && !(tg_json_next(r, TG("\"")) && tg_json_text(r, &item->name) && tg_json_next(r, TG(":")))) return 0;
        if (!tg_json_value(r, item)) return 0;
        *last = item, last = &item->next;
    }
    r->depth--;
    return 1;
}

/* Whether the text is JSON; what was not, `fault` says. */
static int tg_json_read(tg_text text, tg_json *into, tg_text *fault) {
    tg_json_reader r = { text.at, text.at + text.len, 0 };
    *into = (tg_json){ 0 };
    int good = tg_json_value(&r, into);
    tg_json_blanks(&r);
    if (good && r.at == r.end) return 1;
    tg_u32 line = 1, column = 1;
    tg_buffer words = { 0 };
    for (const char *c = text.at; c < r.at; c++) column = *c == '\n' ? (line++, 1) : column + 1;
    tg_put(&words, TG("no JSON at line "));
    tg_put_number(&words, line);
    tg_put(&words, TG(", column "));
    tg_put_number(&words, column);
    *fault = (tg_text){ (const char *)words.at, words.len };
    return 0;
}

/* ---- the configuration ---- */

typedef struct { tg_json root; tg_buffer keys; tg_text error; } tg_config;

/* The first mistake counts. */
static inline void tg_config_needs(tg_config *c, int met, tg_text error) {
    if (!met && !c->error.len) c->error = error;
}

/* `key: why` */
static void tg_config_wrong(tg_config *c, tg_text key, tg_text why) {
    tg_buffer words = { 0 };
    tg_put(&words, key);
    tg_put(&words, TG(": "));
    tg_put(&words, why);
    tg_config_needs(c, 0, (tg_text){ (const char *)words.at, words.len });
}

/* An object; nothing at all is one without keys. */
static tg_config tg_config_read(tg_text text) {
    tg_config c = { 0 };
    tg_text fault;
    if (!tg_json_read(tg_trim(text).len ? text : TG("{}"), &c.root, &fault)) tg_config_wrong(&c, TG("configuration"), fault);
    else tg_config_needs(&c, c.root.kind == TG_JSON_OBJECT, TG("configuration: an object of JSON is needed"));
    return c;
}

/* What the key has; 0: nothing, or null. */
static tg_json *tg_config_get(tg_config *c, tg_text key) {
    tg_json *found = 0;
    tg_put(&c->keys, c->keys.len ? TG(", ") : TG(""));
    tg_put(&c->keys, key);
    for (tg_json *member = c->root.first; member; member = member->next)
        if (tg_is(member->name, key)) found = member, found->asked = 1;
    return found && found->kind != TG_JSON_NULL ? found : 0;
}

static inline tg_text tg_config_text(tg_config *c, tg_text key, tg_text otherwise) {
    tg_json *found = tg_config_get(c, key);
    if (!found) return otherwise;
    if (found->kind != TG_JSON_TEXT) tg_config_wrong(c, key, TG("a text is needed"));
    return found->text;
}

static inline double tg_config_number(tg_config *c, tg_text key, double otherwise) {
    tg_json *found = tg_config_get(c, key);
    if (!found) return otherwise;
    if (found->kind != TG_JSON_NUMBER) tg_config_wrong(c, key, TG("a number is needed"));
    return found->number;
}

/* A list of texts; empty where there is none. */
static inline tg_texts tg_config_texts(tg_config *c, tg_text key) {
    tg_json *found = tg_config_get(c, key);
    tg_texts texts = { 0, 0 };
    if (!found) return texts;
    if (found->kind != TG_JSON_LIST) tg_config_wrong(c, key, TG("a list of texts is needed"));
    for (tg_json *item = found->first; item; item = item->next) texts.len++;
    texts.at = tg_alloc(texts.len * sizeof(tg_text), 4), texts.len = 0;
    for (tg_json *item = found->first; item; item = item->next) {
        if (item->kind != TG_JSON_TEXT) tg_config_wrong(c, key, TG("a list of texts is needed"));
        texts.at[texts.len++] = item->text;
    }
    return texts;
}

/* An object of texts, in its order; empty where there is none. */
static inline tg_facts tg_config_pairs(tg_config *c, tg_text key) {
    tg_json *found = tg_config_get(c, key);
    tg_facts pairs = { 0, 0 };
    if (!found) return pairs;
    if (found->kind != TG_JSON_OBJECT) tg_config_wrong(c, key, TG("an object of texts is needed"));
    for (tg_json *member = found->first; member; member = member->next) pairs.len++;
    pairs.at = tg_alloc(pairs.len * sizeof(tg_fact), 4), pairs.len = 0;
    for (tg_json *member = found->first; member; member = member->next) {
        if (member->kind != TG_JSON_TEXT) tg_config_wrong(c, key, TG("an object of texts is needed"));
        pairs.at[pairs.len++] = (tg_fact){ member->name, member->text };
    }
    return pairs;
}

/* What policy_init returns: what the policy says of itself, or the first mistake. */
static tg_setup tg_config_end(tg_config *c, tg_descriptor ready) {
    for (tg_json *member = c->root.first; member && !c->error.len; member = member->next) {
        if (member->asked) continue;
        tg_buffer why = { 0 };
        tg_put(&why, TG("no such key; "));
        tg_put(&why, c->keys.len ? TG("there are ") : TG("there are none"));
        tg_put(&why, (tg_text){ (const char *)c->keys.at, c->keys.len });
        tg_config_wrong(c, member->name, (tg_text){ (const char *)why.at, why.len });
    }
    if (c->error.len) return (tg_setup){ 1, .error = c->error };
    return (tg_setup){ 0, .ok = ready };
}

#endif
