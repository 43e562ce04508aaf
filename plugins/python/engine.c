/* A policy whose decisions are made by a script in Python: pocketpy, and its values for the glue
 * of script/worlds.h.
 *
 * `init` compiles and runs the script once, at the upload; every call then starts from the
 * memory that this left, so no call parses anything. `time.time()` is the time of the call, and
 * `random` gives the same row for the same time. */
#include "host.h"
#include <time.h>
#include "pocketpy/interpreter/vm.h"

#define OBJECT "a dict"

typedef py_TValue value;

/* The module that the script is. */
static py_GlobalRef module;
static py_Type temporary;
/* The log is there once `init` is over. */
static bool ready;

/* ---- memory ---- */

/* Garbage is collected after so many bytes as well as after so many objects: long texts are few
 * objects. A call has 16 MiB. */
#define BYTES_BETWEEN_COLLECTIONS (4u << 20)

static tg_u32 taken;

static void *counted(void *at, size_t size) {
    if (!at) __builtin_trap();
    taken += (tg_u32)size;
    if (taken > BYTES_BETWEEN_COLLECTIONS && pk_current_vm) pk_current_vm->watchdog_info.max_reset_time = 1;
    return at;
}

void *script_room(size_t size) { return counted(malloc(size ? size : 1), size); }
void *script_more(void *old, size_t size) { return counted(realloc(old, size ? size : 1), size); }

/* A policy knows nothing of the processor time. The interpreter's watchdog asks for it between two
 * instructions once it is armed, which is where garbage can be collected; it finds no time gone. */
clock_t clock(void) {
    if (pk_current_vm && pk_current_vm->watchdog_info.max_reset_time) {
        pk_current_vm->watchdog_info.max_reset_time = 0;
        taken = 0;
        ManagedHeap__collect(&pk_current_vm->heap);
    }
    return 0;
}

/* ---- values; they stay while no function of the script runs ---- */

static value v_none(void) { return *py_None(); }
static inline value v_truth(int truth) { return truth ? *py_True() : *py_False(); }

static value v_text(tg_text t) {
    value v;
    py_newstrv(&v, (c11_sv){ t.at, (int)t.len });
    return v;
}

static inline value v_number(uint64_t n) {
    value v;
    py_newint(&v, (py_i64)n);
    return v;
}

static value v_object(void) {
    value v;
    py_newdict(&v);
    return v;
}

static value v_list(void) {
    value v;
    py_newlist(&v);
    return v;
}

static void v_set_key(value object, tg_text key, value v) {
    value name = v_text(key);
    py_dict_setitem(&object, &name, &v);
}

static void v_set(value object, const char *name, value v) {
    v_set_key(object, (tg_text){ name, (tg_u32)strlen(name) }, v);
}

/* At the end, which is where `at` is. */
static inline void v_put(value list, tg_u32 at, value v) {
    (void)at;
    py_list_append(&list, &v);
}

static int v_absent(value v) { return py_isnone(&v) || py_isnil(&v); }
static inline int v_is_text(value v) { return py_isstr(&v); }
static int v_is_object(value v) { return py_isinstance(&v, tp_dict); }
static int v_is_list(value v) { return py_islist(&v) || py_istuple(&v); }

static tg_u32 v_length(value list) { return (tg_u32)(py_islist(&list) ? py_list_len(&list) : py_tuple_len(&list)); }

static value v_item(value list, tg_u32 at) {
    return py_islist(&list) ? *py_list_getitem(&list, (int)at) : *py_tuple_getitem(&list, (int)at);
}

static value v_get(value object, const char *name) {
    return v_is_object(object) && py_dict_getitem_by_str(&object, name) == 1 ? *py_retval() : v_none();
}

/* As long as the handle stays where it is. */
static tg_text v_view(py_Ref text) {
    c11_sv view = py_tosv(text);
    return (tg_text){ view.data, (tg_u32)view.size };
}

/* Short texts lie within their handle, so they are copied out of this one. */
static int v_to_text(value v, tg_text *t) {
    if (py_isstr(&v)) {
        *t = v_view(&v);
        if (!v.is_ptr) t->at = memcpy(tg_alloc(t->len, 1), t->at, t->len);
        return 1;
    }
    int len = 0;
    if (!py_istype(&v, tp_bytes)) return 0;
    t->at = (const char *)py_tobytes(&v, &len), t->len = (tg_u32)len;
    return 1;
}

static int v_to_number(value v, double *n) {
    if (py_isint(&v)) *n = (double)py_toint(&v);
    else if (py_isfloat(&v)) *n = py_tofloat(&v);
    else return 0;
    return 1;
}

static bool pair_out(py_Ref name, py_Ref v, void *pairs) {
    tg_facts *to = pairs;
    return py_isstr(v) && v_to_text(*name, &to->at[to->len].name) && v_to_text(*v, &to->at[to->len++].value);
}

static inline int v_pairs(value object, tg_facts *pairs) {
    pairs->at = tg_alloc((tg_u32)py_dict_len(&object) * sizeof(tg_fact), 4), pairs->len = 0;
    return py_dict_apply(&object, pair_out, pairs);
}

/* ---- exceptions ---- */

static tg_text line_of(tg_text *rest) {
    tg_u32 n = 0;
    while (n < rest->len && rest->at[n] != '\n') n++;
    tg_text line = { rest->at, n };
    n += n < rest->len;
    rest->at += n, rest->len -= n;
    return line;
}

/* `KeyError: 'x' (policy.py, line 12, in lane; line 3, in decide)`: what happened, then where,
 * innermost first. A trace of the interpreter tells both the other way round. */
static tg_text trace_out(tg_text trace) {
    tg_text places[8], line;
    tg_u32 count = 0;
    tg_buffer words = { 0 };
    for (tg_text rest = trace; (line = line_of(&rest), line.at != rest.at);) {
        if (line.len > 8 && !memcmp(line.at, "  File \"", 8)) {
            if (count < TG_LEN(places)) places[count++] = (tg_text){ line.at + 8, line.len - 8 };
        } else if (line.len && line.at[0] != ' ') {
            /* The header of a trace, or the exception and all that it says. */
            if (line.len > 9 && !memcmp(line.at, "Traceback", 9)) count = 0, words.len = 0;
            else tg_put(&words, words.len ? TG(" ") : TG("")), tg_put(&words, line);
        }
    }
    for (tg_u32 n = count; n > 0; n--) {
        tg_put(&words, n == count ? TG(" (") : TG("; "));
        for (tg_u32 i = 0; i < places[n - 1].len; i++)
            if (places[n - 1].at[i] != '"') tg_put(&words, (tg_text){ places[n - 1].at + i, 1 });
    }
    if (count) tg_put(&words, TG(")"));
    return (tg_text){ (const char *)words.at, words.len };
}

/* The exception in words. `tidegate.Temporary` means: not now. */
static tg_error v_raised(void) {
    if (py_matchexc(temporary)) {
        value raised = *py_retval();
        py_clearexc(NULL);
        tg_text why = py_str(&raised) ? v_view(py_retval()) : TG("");
        return (tg_error){ TG_TEMPORARY, tg_cut(why, 400) };
    }
    const char *trace = py_formatexc();
    if (!trace) return (tg_error){ TG_BROKEN, TG("the script failed without an exception") };
    return (tg_error){ TG_BROKEN, tg_cut(trace_out((tg_text){ trace, (tg_u32)strlen(trace) }), 400) };
}

/* Calls a function of the script. */
static int v_ask(const char *name, int argc, value *argv, value *answer) {
    py_ItemRef function = py_getdict(module, py_name(name));
    if (!function || !py_callable(function)) return TypeError("policy.py: def %s is missing", name);
    bool returned = py_call(function, argc, argv);
    *answer = returned ? *py_retval() : v_none();
    return returned;
}

#include "worlds.h"
#include "json.h"

/* ---- setup ---- */

static void log_text(tg_u32 level, const char *text) {
    if (ready) tg_log(level, tg_trim((tg_text){ text, (tg_u32)strlen(text) }));
}

static void print(const char *text) { log_text(TG_INFO, text); }
static void flush(void) {}
static int nothing_to_read(void) { return EOF; }
static char *no_file(const char *path, int *size) {
    (void)path, (void)size;
    return NULL;
}

static bool log_at(tg_u32 level, int argc, py_Ref argv) {
    PY_CHECK_ARGC(1);
    if (!py_str(argv)) return false;
    log_text(level, py_tostr(py_retval()));
    *py_retval() = v_none();
    return true;
}

static bool debug(int argc, py_Ref argv) { return log_at(TG_DEBUG, argc, argv); }
static bool warn(int argc, py_Ref argv) { return log_at(TG_WARN, argc, argv); }

/* iso(millis): `2026-03-03T10:00:00.000Z` */
static bool iso(int argc, py_Ref argv) {
    PY_CHECK_ARGC(1);
    py_i64 millis;
    char words[48];
    struct tm day;
    if (!py_castint(argv, &millis)) return false;
    time_t seconds = millis / 1000;
    if (millis < 0 || millis > 253402300799999 || !gmtime_r(&seconds, &day))
        return ValueError("iso: milliseconds since 1970 are needed");
    snprintf(words, sizeof words, "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ", day.tm_year + 1900, day.tm_mon + 1,
             day.tm_mday, day.tm_hour, day.tm_min, day.tm_sec, (int)(millis % 1000));
    py_newstr(py_retval(), words);
    return true;
}

static bool no_sleep(int argc, py_Ref argv) {
    (void)argc, (void)argv;
    return RuntimeError("a policy can't wait");
}

static bool no_exit(int argc, py_Ref argv) {
    (void)argc, (void)argv;
    return RuntimeError("a policy ends by returning");
}

/* prelude.py, and a zero byte. */
static const char prelude[] = {
#include "prelude.inc"
    0,
};

/* Makes a function such as `str__isdigit` a method of its type. */
static bool method(py_Name name, py_Ref function, void *ctx) {
    c11_sv words = py_name2sv(name);
    (void)ctx;
    if (words.size > 5 && !memcmp(words.data, "str__", 5))
        py_setdict(py_tpobject(tp_str), py_name(words.data + 5), function);
    if (words.size > 6 && !memcmp(words.data, "dict__", 6))
        py_setdict(py_tpobject(tp_dict), py_name(words.data + 6), function);
    return true;
}

static bool modules(void) {
    py_Callbacks *callbacks = py_callbacks();
    callbacks->importfile = no_file;
    callbacks->print = print;
    callbacks->flush = flush;
    callbacks->getchr = nothing_to_read;
    py_GlobalRef tidegate = py_newmodule("tidegate"), json = py_getmodule("json");
    temporary = py_newtype("Temporary", tp_Exception, tidegate, NULL);
    py_setdict(tidegate, py_name("Temporary"), py_tpobject(temporary));
    py_bindfunc(tidegate, "debug", debug);
    py_bindfunc(tidegate, "warn", warn);
    py_bindfunc(tidegate, "iso", iso);
    py_bindfunc(json, "loads", json_loads);
    py_bind(json, "dumps(obj, separators=None, ensure_ascii=True)", json_dumps);
    py_setdict(json, py_name("JSONDecodeError"), py_tpobject(tp_ValueError));
    py_bindfunc(py_getmodule("time"), "sleep", no_sleep);
    py_bindfunc(py_getmodule("builtins"), "exit", no_exit);
    py_GlobalRef more = py_newmodule("prelude");
    return py_exec(prelude, "prelude.py", EXEC_MODE, more) && py_applydict(more, method, NULL);
}

static tg_setup policy_init(tg_text config) {
    const char *source = script_text();
    if (!source) return (tg_setup){ 1, .error = NO_SCRIPT };
    py_initialize();
    if (!modules()) return refused(v_raised());
    module = py_newmodule("policy");
    if (!py_exec(source, "policy.py", EXEC_MODE, module)) return refused(v_raised());
    value argument = v_text(config), told;
    if (!v_ask("init", 1, &argument, &told)) return refused(v_raised());
    /* The descriptor's texts are the script's; keep them from what comes next. */
    py_setdict(module, py_name(" descriptor"), &told);
    tg_setup setup = setup_out(told);
    py_gc_collect();
    taken = 0;
    ready = true;
    return setup;
}
