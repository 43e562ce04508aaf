/* JSON for policies in Python. The interpreter's own `loads` evaluates its text as a program and
 * its `dumps` knows no separators; these two are as Python's manual has them. Included once. */

#define JSON_DEPTH 64

/* ---- loads ---- */

typedef struct { const char *start, *at, *end; int depth; const char *fault; } json_reader;

static void json_blank(json_reader *r) {
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\t' || *r->at == '\n' || *r->at == '\r')) r->at++;
}

static bool json_fail(json_reader *r, const char *fault) {
    if (!r->fault) r->fault = fault;
    return false;
}

static bool json_next(json_reader *r, char c) {
    json_blank(r);
    if (r->at == r->end || *r->at != c) return false;
    r->at++;
    return true;
}

static int json_hex(json_reader *r) {
    int n = 0;
    if (r->end - r->at < 4) return -1;
    for (int i = 0; i < 4; i++) {
        char c = *r->at++;
        int digit = c >= '0' && c <= '9' ? c - '0' : tg_lower(c) >= 'a' && tg_lower(c) <= 'f' ? tg_lower(c) - 'a' + 10 : -1;
        if (digit < 0) return -1;
        n = n << 4 | digit;
    }
    return n;
}

static char *json_utf8(char *out, uint32_t c) {
    if (c < 0x80) {
        *out++ = (char)c;
    } else if (c < 0x800) {
        *out++ = (char)(0xc0 | c >> 6), *out++ = (char)(0x80 | (c & 63));
    } else if (c < 0x10000) {
        *out++ = (char)(0xe0 | c >> 12), *out++ = (char)(0x80 | (c >> 6 & 63)), *out++ = (char)(0x80 | (c & 63));
    } else {
        *out++ = (char)(0xf0 | c >> 18), *out++ = (char)(0x80 | (c >> 12 & 63));
        *out++ = (char)(0x80 | (c >> 6 & 63)), *out++ = (char)(0x80 | (c & 63));
    }
    return out;
}

/* After the first quote. What is decoded is never longer than what was read. */
static bool json_string(json_reader *r, tg_text *text) {
    const char *close = r->at;
    while (close < r->end && *close != '"') close += *close == '\\' ? 2 : 1;
    if (close >= r->end) return json_fail(r, "Unterminated string");
    char *out = tg_alloc((tg_u32)(close - r->at) + 1, 1);
    text->at = out;
    while (r->at < close) {
        char c = *r->at++;
        if ((tg_u8)c < ' ') return json_fail(r, "Invalid control character");
        if (c != '\\') {
            *out++ = c;
            continue;
        }
        switch (c = *r->at++) {
            case '"': case '\\': case '/': *out++ = c; break;
            case 'b': *out++ = '\b'; break;
            case 'f': *out++ = '\f'; break;
            case 'n': *out++ = '\n'; break;
            case 'r': *out++ = '\r'; break;
            case 't': *out++ = '\t'; break;
            case 'u': {
                int n = json_hex(r);
                if (n < 0) return json_fail(r, "Invalid \\uXXXX escape");
                uint32_t code = (uint32_t)n;
                if (code >= 0xd800 && code < 0xdc00 && r->end - r->at > 6 && r->at[0] == '\\' && r->at[1] == 'u') {
                    r->at += 2;
                    n = json_hex(r);
                    if (n < 0xdc00 || n > 0xdfff) return json_fail(r, "Invalid \\uXXXX escape");
                    code = 0x10000 + ((code - 0xd800) << 10) + ((uint32_t)n - 0xdc00);
                }
                /* Half a pair is no character. */
                out = json_utf8(out, code >= 0xd800 && code < 0xe000 ? 0xfffd : code);
                break;
            }
            default: return json_fail(r, "Invalid \\escape");
        }
    }
    r->at = close + 1;
    text->len = (tg_u32)(out - text->at);
    return true;
}

static bool json_number(json_reader *r, value *made) {
    char digits[48];
    tg_u32 len = 0;
    bool whole = true;
    while (r->at < r->end && len < sizeof digits - 1) {
        char c = *r->at;
        if (!(c >= '0' && c <= '9') && c != '-' && c != '+' && c != '.' && c != 'e' && c != 'E') break;
        whole &= (c >= '0' && c <= '9') || (c == '-' && !len);
        digits[len++] = c, r->at++;
    }
    digits[len] = 0;
    char *rest;
    if (whole && len && len <= 18) py_newint(made, strtoll(digits, &rest, 10));
    else py_newfloat(made, strtod(digits, &rest));
    return (len && !*rest && rest > digits) || json_fail(r, "Expecting value");
}

static bool json_word(json_reader *r, const char *word) {
    size_t len = strlen(word);
    if ((size_t)(r->end - r->at) < len || memcmp(r->at, word, len)) return false;
    r->at += len;
    return true;
}

static bool json_value(json_reader *r, value *made) {
    tg_text text;
    json_blank(r);
    if (json_word(r, "null")) return *made = v_none(), true;
    if (json_word(r, "true")) return *made = v_truth(1), true;
    if (json_word(r, "false")) return *made = v_truth(0), true;
    if (json_next(r, '"')) {
        if (!json_string(r, &text)) return false;
        *made = v_text(text);
        free((char *)text.at);
        return true;
    }
    bool list = json_next(r, '[');
    if (!list && !json_next(r, '{')) return json_number(r, made);
    if (++r->depth > JSON_DEPTH) return json_fail(r, "Too deeply nested");
    *made = list ? v_list() : v_object();
    char close = list ? ']' : '}';
    for (tg_u32 n = 0; !json_next(r, close); n++) {
        value item;
        if (n && !json_next(r, ',')) return json_fail(r, "Expecting ',' delimiter");
        if (!list) {
            if (!json_next(r, '"')) return json_fail(r, "Expecting property name enclosed in double quotes");
            if (!json_string(r, &text)) return false;
            if (!json_next(r, ':')) return json_fail(r, "Expecting ':' delimiter");
        }
        if (!json_value(r, &item)) return false;
        if (list) v_put(*made, n, item);
        else v_set_key(*made, text, item), free((char *)text.at);
    }
    r->depth--;
    return true;
}

/* loads(text) */
static bool json_loads(int argc, py_Ref argv) {
    PY_CHECK_ARGC(1);
    tg_text text;
    if (!v_to_text(argv[0], &text)) return TypeError("the JSON object must be str or bytes, not '%t'", argv[0].type);
    json_reader r = { text.at, text.at, text.at + text.len, 0, 0 };
    value made;
    if (json_value(&r, &made)) {
        json_blank(&r);
        if (r.at == r.end) return *py_retval() = made, true;
        json_fail(&r, "Extra data");
    }
    int line = 1, column = 1;
    for (const char *c = r.start; c < r.at; c++) column = *c == '\n' ? (line++, 1) : column + 1;
    return ValueError("%s: line %d column %d", r.fault, line, column);
}

/* ---- dumps ---- */

typedef struct { tg_buffer to; tg_text comma, colon; bool ascii, first; int depth; } json_writer;

static bool json_write(json_writer *w, py_Ref v);

static void json_escape(json_writer *w, tg_text t) {
    if (!w->ascii) {
        tg_put_json(&w->to, t);
        return;
    }
    tg_put(&w->to, TG("\""));
    for (tg_u32 n = 0; n < t.len;) {
        tg_u8 c = (tg_u8)t.at[n];
        char escaped[16];
        if (c >= 0x80) {
            tg_u32 more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1, code = c & (0x3f >> more);
            for (n++; more && n < t.len; more--) code = code << 6 | ((tg_u8)t.at[n++] & 63);
            if (code < 0x10000) snprintf(escaped, sizeof escaped, "\\u%04x", code);
            else snprintf(escaped, sizeof escaped, "\\u%04x\\u%04x", 0xd800 + ((code - 0x10000) >> 10), 0xdc00 + (code & 0x3ff));
        } else {
            const char *short_ones = "\"\"\\\\\nn\rr\tt\bb\ff", *found = short_ones;
            while (*found && *found != (char)c) found += 2;
            if (*found) snprintf(escaped, sizeof escaped, "\\%c", found[1]);
            else snprintf(escaped, sizeof escaped, c < ' ' ? "\\u%04x" : "%c", c);
            n++;
        }
        tg_put(&w->to, (tg_text){ escaped, (tg_u32)strlen(escaped) });
    }
    tg_put(&w->to, TG("\""));
}

static bool json_pair(py_Ref key, py_Ref v, void *at) {
    json_writer *w = at;
    if (!w->first) tg_put(&w->to, w->comma);
    w->first = false;
    if (!py_isstr(key) && !py_isint(key)) return TypeError("keys must be str or int, not '%t'", key->type);
    if (!py_str(key)) return false;
    json_escape(w, v_view(py_retval()));
    tg_put(&w->to, w->colon);
    return json_write(w, v);
}

static bool json_write(json_writer *w, py_Ref v) {
    if (py_isnone(v)) return tg_put(&w->to, TG("null")), true;
    if (py_isbool(v)) return tg_put(&w->to, py_tobool(v) ? TG("true") : TG("false")), true;
    if (py_isstr(v)) return json_escape(w, v_view(v)), true;
    if (py_isint(v) || py_isfloat(v)) {
        if (py_isfloat(v) && py_tofloat(v) - py_tofloat(v) != 0) return ValueError("Out of range float values are not JSON");
        if (!py_repr(v)) return false;
        return tg_put(&w->to, v_view(py_retval())), true;
    }
    bool list = v_is_list(*v);
    if (!list && !v_is_object(*v)) return TypeError("'%t' object is not JSON serializable", v->type);
    if (++w->depth > JSON_DEPTH) return ValueError("too deeply nested, or a circle");
    tg_put(&w->to, list ? TG("[") : TG("{"));
    if (list) {
        for (tg_u32 n = 0; n < v_length(*v); n++) {
            value item = v_item(*v, n);
            if (n) tg_put(&w->to, w->comma);
            if (!json_write(w, &item)) return false;
        }
    } else {
        w->first = true;
        if (!py_dict_apply(v, json_pair, w)) return false;
        w->first = false;
    }
    w->depth--;
    return tg_put(&w->to, list ? TG("]") : TG("}")), true;
}

/* dumps(obj, separators=None, ensure_ascii=True) */
static bool json_dumps(int argc, py_Ref argv) {
    (void)argc;
    json_writer w = { .comma = TG(", "), .colon = TG(": "), .ascii = !py_isbool(&argv[2]) || py_tobool(&argv[2]) };
    if (!py_isnone(&argv[1])) {
        bool two = v_is_list(argv[1]) && v_length(argv[1]) == 2;
        if (!two || !v_to_text(v_item(argv[1], 0), &w.comma) || !v_to_text(v_item(argv[1], 1), &w.colon))
            return TypeError("separators: two texts are needed");
    }
    if (!json_write(&w, &argv[0])) return false;
    *py_retval() = v_text((tg_text){ (const char *)w.to.at, w.to.len });
    free(w.to.at);
    return true;
}
