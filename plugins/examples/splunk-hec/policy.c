/* Events for Splunk's HTTP Event Collector (/services/collector/event): one JSON object each,
 * one after the other, for an index or for the token's default. */
#define TG_EXPORTER
#include "tidegate.h"
#include "tidegate-json.h"

static tg_text index_name;

static tg_setup policy_init(tg_text text) {
    tg_config config = tg_config_read(text);
    index_name = tg_config_text(&config, TG("index"), TG(""));
    return tg_config_end(&config, (tg_descriptor){ TG("splunk-hec"), TG("0.1.0"), { 0, 0 }, { 0, 0 } });
}

/* `,"name":"value"` where there is a value. */
static void field(tg_buffer *b, tg_text name, tg_option_text value) {
    if (!value.some) return;
    tg_put(b, TG(","));
    tg_put_json(b, name);
    tg_put(b, TG(":"));
    tg_put_json(b, value.value);
}

static tg_option_text some(tg_text t) { return (tg_option_text){ 1, t }; }

static tg_export policy_render(const tg_event *events, tg_u32 len) {
    static tg_payload payload;
    tg_buffer body = { 0 };
    for (tg_u32 n = 0; n < len; n++) {
        const tg_event *e = &events[n];
        /* Seconds with three decimals. */
        char millis[4] = { '.', '0' + e->at / 100 % 10, '0' + e->at / 10 % 10, '0' + e->at % 10 };
        tg_put(&body, TG("{\"time\":"));
        tg_put_number(&body, e->at / 1000);
        tg_put(&body, (tg_text){ millis, 4 });
        tg_put(&body, TG(",\"source\":\"tidegate\",\"sourcetype\":\"tidegate:delivery\""));
        if (index_name.len) field(&body, TG("index"), some(index_name));
        tg_put(&body, TG(",\"event\":{\"seq\":"));
        tg_put_number(&body, e->seq);
        field(&body, TG("kind"), some(e->kind));
        field(&body, TG("message"), some(e->message));
        field(&body, TG("tenant"), some(e->tenant));
        field(&body, TG("sender"), some(e->sender));
        field(&body, TG("recipient"), e->recipient);
        field(&body, TG("record_id"), e->record_id);
        field(&body, TG("subject"), e->subject);
        field(&body, TG("host"), e->host);
        field(&body, TG("enhanced"), e->enhanced);
        field(&body, TG("text"), e->text);
        if (e->code.some) {
            tg_put(&body, TG(",\"code\":"));
            tg_put_number(&body, e->code.value);
        }
        tg_put(&body, TG("}}"));
    }
    payload = (tg_payload){ { body.at, body.len }, TG("application/json") };
    return (tg_export){ 0, .ok = { &payload, body.len ? 1 : 0 } };
}
