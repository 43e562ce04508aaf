/* NAME: one line of JSON for each bounce, nothing for the rest. */
#define TG_EXPORTER
#include "tidegate.h"

static tg_setup policy_init(tg_text config) {
    (void)config;
    return (tg_setup){ 0, .ok = { TG("NAME"), TG("0.1.0"), { 0, 0 }, { 0, 0 } } };
}

static void put_option(tg_buffer *b, tg_text name, tg_option_text value) {
    tg_put(b, name);
    if (value.some) tg_put_json(b, value.value);
    else tg_put(b, TG("null"));
}

static tg_export policy_render(const tg_event *events, tg_u32 len) {
    static tg_payload payload;
    tg_buffer body = { 0 };
    for (tg_u32 n = 0; n < len; n++) {
        const tg_event *event = &events[n];
        if (!tg_same(event->kind, TG("bounced"))) continue;
        tg_put(&body, TG("{\"seq\":"));
        tg_put_number(&body, event->seq);
        tg_put(&body, TG(",\"kind\":\"bounced\""));
        put_option(&body, TG(",\"recipient\":"), event->recipient);
        tg_put(&body, TG(",\"code\":"));
        tg_put_number(&body, event->code.some ? event->code.value : 0);
        put_option(&body, TG(",\"text\":"), event->text);
        tg_put(&body, TG("}\n"));
    }
    payload = (tg_payload){ { body.at, body.len }, TG("application/x-ndjson") };
    return (tg_export){ 0, .ok = { &payload, body.len ? 1 : 0 } };
}
