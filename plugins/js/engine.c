/* A policy whose decisions are made by a script in JavaScript: QuickJS, and its values for the
 * glue of script/worlds.h.
 *
 * `init` compiles and runs the script once, at the upload; every call then starts from the
 * memory that this left, so no call parses anything. `Date.now()` is the time of the call,
 * `Math.random()` gives the same row in every call. Nothing is freed: calls are short. */
#include "host.h"
#include "quickjs.h"

#define OBJECT "an object"

typedef JSValue value;

static JSContext *ctx;
static JSValue module;

/* ---- values ---- */

static value v_none(void) { return JS_NULL; }
static value v_text(tg_text t) { return JS_NewStringLen(ctx, t.at, t.len); }
static inline value v_number(uint64_t n) { return JS_NewFloat64(ctx, (double)n); }
static inline value v_truth(int truth) { return JS_NewBool(ctx, truth); }
static value v_object(void) { return JS_NewObject(ctx); }
static inline value v_list(void) { return JS_NewArray(ctx); }

static void v_set(value object, const char *name, value v) { JS_SetPropertyStr(ctx, object, name, v); }
static inline void v_put(value list, tg_u32 at, value v) { JS_SetPropertyUint32(ctx, list, at, v); }

static inline void v_set_key(value object, tg_text key, value v) {
    JSAtom name = JS_NewAtomLen(ctx, key.at, key.len);
    JS_SetProperty(ctx, object, name, v);
    JS_FreeAtom(ctx, name);
}

static int v_absent(value v) { return JS_IsUndefined(v) || JS_IsNull(v); }
static inline int v_is_text(value v) { return JS_IsString(v); }
static int v_is_object(value v) { return JS_IsObject(v); }
static int v_is_list(value v) { return JS_IsArray(v); }

static value v_get(value object, const char *name) {
    JSValue found = JS_GetPropertyStr(ctx, object, name);
    if (!JS_IsException(found)) return found;
    JS_GetException(ctx);
    return JS_UNDEFINED;
}

static value v_item(value list, tg_u32 at) {
    JSValue found = JS_GetPropertyUint32(ctx, list, at);
    if (!JS_IsException(found)) return found;
    JS_GetException(ctx);
    return JS_UNDEFINED;
}

/* As String() has it. Half of a surrogate pair, which `slice` leaves of an emoji, is no character
 * and would be no UTF-8: U+FFFD, which is as long. (The bytes are a copy where not all are ASCII.) */
static int v_to_text(value v, tg_text *t) {
    size_t len = 0;
    char *at = (char *)JS_ToCStringLen(ctx, &len, v);
    *t = (tg_text){ at, (tg_u32)len };
    if (!at) {
        JS_GetException(ctx);
        return 0;
    }
    for (char *c = at; (c = memchr(c, 0xed, (size_t)(at + len - c))); c += 3)
        if ((tg_u8)c[1] >= 0xa0) memcpy(c, "\xef\xbf\xbd", 3);
    return 1;
}

static int v_to_number(value v, double *n) {
    if (!JS_ToFloat64(ctx, n, v)) return 1;
    JS_GetException(ctx);
    return 0;
}

static tg_u32 v_length(value list) {
    double n = 0;
    /* Far more than a list of an answer may have. */
    return v_to_number(v_get(list, "length"), &n) && n >= 0 ? (tg_u32)(n < 1000000 ? n : 1000000) : 0;
}

static inline int v_pairs(value object, tg_facts *pairs) {
    JSPropertyEnum *names;
    uint32_t len;
    int good = !JS_GetOwnPropertyNames(ctx, &names, &len, object, JS_GPN_STRING_MASK | JS_GPN_ENUM_ONLY);
    if (!good) return 0;
    pairs->at = tg_alloc(len * sizeof(tg_fact), 4), pairs->len = len;
    for (uint32_t n = 0; n < len; n++) {
        tg_fact *pair = &pairs->at[n];
        good &= v_to_text(JS_AtomToString(ctx, names[n].atom), &pair->name);
        good &= v_to_text(JS_GetProperty(ctx, object, names[n].atom), &pair->value);
    }
    return good;
}

/* The exception in words. An object with `temporary` means: not now. */
static tg_error v_raised(void) {
    JSValue thrown = JS_GetException(ctx);
    tg_text words, trace;
    if (JS_IsObject(thrown)) {
        value later = v_get(thrown, "temporary");
        if (!v_absent(later) && v_to_text(later, &words)) return (tg_error){ TG_TEMPORARY, tg_cut(words, 400) };
    }
    if (!v_to_text(thrown, &words)) words = TG("an exception without a text");
    value stack = JS_IsError(thrown) ? v_get(thrown, "stack") : JS_UNDEFINED;
    if (!v_absent(stack) && v_to_text(stack, &trace)) {
        trace = tg_trim(trace);
        char *all = tg_alloc(words.len + trace.len + 2, 1);
        memcpy(all, words.at, words.len);
        all[words.len] = ' ';
        memcpy(all + words.len + 1, trace.at, trace.len);
        words = (tg_text){ all, words.len + 1 + trace.len };
    }
    return (tg_error){ TG_BROKEN, tg_cut(words, 400) };
}

/* Calls an exported function. */
static int v_ask(const char *name, int argc, value *argv, value *answer) {
    JSValue function = JS_GetPropertyStr(ctx, module, name);
    if (!JS_IsFunction(ctx, function)) {
        JS_ThrowTypeError(ctx, "policy.js: export function %s is missing", name);
        return 0;
    }
    *answer = JS_Call(ctx, function, JS_UNDEFINED, argc, argv);
    return !JS_IsException(*answer);
}

#include "worlds.h"

/* ---- setup ---- */

static JSValue console_log(JSContext *c, JSValueConst this, int argc, JSValueConst *argv, int level) {
    (void)c, (void)this;
    for (int n = 0; n < argc; n++) {
        tg_text words;
        if (v_to_text(argv[n], &words)) tg_log((tg_u32)level, words);
    }
    return JS_UNDEFINED;
}

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
    v_set(console, "debug", JS_NewCFunctionMagic(ctx, console_log, "debug", 1, JS_CFUNC_generic_magic, TG_DEBUG));
    v_set(console, "log", JS_NewCFunctionMagic(ctx, console_log, "log", 1, JS_CFUNC_generic_magic, TG_INFO));
    v_set(console, "warn", JS_NewCFunctionMagic(ctx, console_log, "warn", 1, JS_CFUNC_generic_magic, TG_WARN));
    v_set(global, "console", console);

    const char *source = script_text();
    if (!source) return (tg_setup){ 1, .error = NO_SCRIPT };
    JSValue compiled = JS_Eval(ctx, source, script.len, "policy.js", JS_EVAL_TYPE_MODULE | JS_EVAL_FLAG_COMPILE_ONLY);
    if (JS_IsException(compiled)) return refused(v_raised());
    JSModuleDef *definition = JS_VALUE_GET_PTR(compiled);
    JSValue done = JS_EvalFunction(ctx, compiled);
    if (JS_IsException(done)) return refused(v_raised());
    JSContext *other;
    while (JS_ExecutePendingJob(rt, &other) > 0) {}
    if (JS_PromiseState(ctx, done) == JS_PROMISE_REJECTED) {
        JS_Throw(ctx, JS_PromiseResult(ctx, done));
        return refused(v_raised());
    }
    module = JS_GetModuleNamespace(ctx, definition);

    value argument = v_text(config), told;
    if (!v_ask("init", 1, &argument, &told)) return refused(v_raised());
    tg_setup setup = setup_out(told);
    JS_RunGC(rt);
    JS_SetGCThreshold(rt, (size_t)-1);
    return setup;
}
