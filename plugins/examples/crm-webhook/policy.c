/* What became of each mail, for the CRM that wrote it: one request with a JSON array per tenant and
 * batch, of the outcomes only, by the CRM's own record id. A batch may come twice: `id` is the same. */
#define TG_EXPORTER
#include "tidegate.h"
#include "tidegate-json.h"

static tg_text outcomes[] = { TG("delivered"), TG("bounced"), TG("expired"), TG("cancelled"), TG("delay-notified") };
static tg_texts kinds;
static tg_text facts[1];

static int listed(tg_texts list, tg_text name) {
    for (tg_u32 n = 0; n < list.len; n++)
        if (tg_is(list.at[n], name)) return 1;
    return 0;
}

static tg_setup policy_init(tg_text text) {
    tg_texts all = { outcomes, TG_LEN(outcomes) };
    tg_config config = tg_config_read(text);
    kinds = tg_config_texts(&config, TG("kinds"));
    for (tg_u32 n = 0; n < kinds.len; n++)
        if (!listed(all, kinds.at[n]))
            tg_config_wrong(&config, TG("kinds"), TG("each is delivered, bounced, expired, cancelled or delay-notified"));
    if (!kinds.len) kinds = all;
    facts[0] = TG("tag.campaign");
    return tg_config_end(&config, (tg_descriptor){ TG("crm-webhook"), TG("0.1.0"), { 0, 0 }, { facts, 1 } });
}

/* `,"name":"value"`, or null. */
static void field(tg_buffer *b, tg_text name, tg_option_text value) {
    tg_put(b, TG(","));
    tg_put_json(b, name);
    tg_put(b, TG(":"));
    if (value.some) tg_put_json(b, value.value);
    else tg_put(b, TG("null"));
}

static void outcome(tg_buffer *b, const tg_event *e) {
    int hard = tg_is(e->kind, TG("bounced")) && e->code.some && e->code.value >= 500;
    tg_option_text campaign = { 0 };
    for (tg_u32 n = 0; n < e->facts.len; n++) campaign = (tg_option_text){ 1, e->facts.at[n].value };
    tg_put(b, TG("{\"id\":"));
    tg_put_number(b, e->seq);
    tg_put(b, TG(",\"at\":\""));
    tg_put_iso(b, e->at);
    tg_put(b, TG("\",\"outcome\":"));
    tg_put_json(b, e->kind);
    tg_put(b, hard ? TG(",\"hard\":true") : TG(",\"hard\":false"));
    field(b, TG("record"), e->record_id);
    field(b, TG("message_id"), e->message_id);
    field(b, TG("recipient"), e->recipient);
    field(b, TG("campaign"), campaign);
    field(b, TG("status"), e->enhanced);
    field(b, TG("reply"), e->text);
    tg_put(b, TG("}"));
}

/* Of all outcomes of that tenant. */
static tg_payload request(tg_text tenant, const tg_event *events, tg_u32 len) {
    tg_buffer body = { 0 };
    tg_put(&body, TG("{\"tenant\":"));
    tg_put_json(&body, tenant);
    tg_put(&body, TG(",\"outcomes\":"));
    tg_text before = TG("[");
    for (tg_u32 n = 0; n < len; n++) {
        if (!tg_is(events[n].tenant, tenant) || !listed(kinds, events[n].kind)) continue;
        tg_put(&body, before);
        outcome(&body, &events[n]);
        before = TG(",");
    }
    tg_put(&body, TG("]}"));
    return (tg_payload){ { body.at, body.len }, TG("application/json") };
}

static tg_export policy_render(const tg_event *events, tg_u32 len) {
    tg_texts tenants = { tg_alloc(len * sizeof(tg_text), 4), 0 };
    for (tg_u32 n = 0; n < len; n++)
        if (listed(kinds, events[n].kind) && !listed(tenants, events[n].tenant)) tenants.at[tenants.len++] = events[n].tenant;
    tg_payload *requests = tg_alloc(tenants.len * sizeof(tg_payload), 4);
    for (tg_u32 n = 0; n < tenants.len; n++) requests[n] = request(tenants.at[n], events, len);
    return (tg_export){ 0, .ok = { requests, tenants.len } };
}
