/* Events for the bulk API of Elasticsearch and OpenSearch: an action line and a document for each.
 * The document's id is the event's number, so a batch that is sent twice is stored once. */
#define TG_EXPORTER
#include "tidegate.h"
#include "tidegate-json.h"

static tg_text index_name;

static int plain(tg_text name) {
    for (tg_u32 n = 0; n < name.len; n++) {
        char c = name.at[n];
        if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.')) return 0;
    }
    return name.len > 0;
}

static tg_setup policy_init(tg_text text) {
    tg_config config = tg_config_read(text);
    index_name = tg_config_text(&config, TG("index"), TG(""));
    tg_config_needs(&config, plain(index_name),
                    TG("index: write the name of an index: lower-case letters, digits, '-', '_' and '.'"));
    return tg_config_end(&config, (tg_descriptor){ TG("elastic-bulk"), TG("0.1.0"), { 0, 0 }, { 0, 0 } });
}

/* `,"name":"value"` where there is a value. */
static void field(tg_buffer *b, tg_text name, tg_option_text value) {
    if (!value.some) return;
    tg_put(b, TG(","));
    tg_put_json(b, name);
    tg_put(b, TG(":"));
    tg_put_json(b, value.value);
}

static void number(tg_buffer *b, tg_text name, tg_u64 value) {
    tg_put_json(b, name);
    tg_put(b, TG(":"));
    tg_put_number(b, value);
}

static tg_option_text some(tg_text t) { return (tg_option_text){ 1, t }; }

static tg_export policy_render(const tg_event *events, tg_u32 len) {
    static tg_payload payload;
    tg_buffer body = { 0 };
    for (tg_u32 n = 0; n < len; n++) {
        const tg_event *e = &events[n];
        tg_put(&body, TG("{\"create\":{\"_index\":"));
        tg_put_json(&body, index_name);
        tg_put(&body, TG(",\"_id\":\""));
        tg_put_number(&body, e->seq);
        tg_put(&body, TG("\"}}\n{"));
        number(&body, TG("@timestamp"), e->at);
        field(&body, TG("event.action"), some(e->kind));
        tg_put(&body, TG(","));
        number(&body, TG("event.sequence"), e->seq);
        field(&body, TG("organization.id"), some(e->tenant));
        field(&body, TG("email.local_id"), some(e->message));
        field(&body, TG("email.message_id"), e->message_id);
        field(&body, TG("email.from.address"), some(e->sender));
        field(&body, TG("email.to.address"), e->recipient);
        field(&body, TG("email.subject"), e->subject);
        field(&body, TG("destination.domain"), e->host);
        if (e->code.some) {
            tg_put(&body, TG(","));
            number(&body, TG("smtp.code"), e->code.value);
        }
        field(&body, TG("smtp.enhanced"), e->enhanced);
        field(&body, TG("message"), e->text);
        tg_put(&body, TG("}\n"));
    }
    payload = (tg_payload){ { body.at, body.len }, TG("application/x-ndjson") };
    return (tg_export){ 0, .ok = { &payload, 1 } };
}
