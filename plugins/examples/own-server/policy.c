/* Mail of the staff goes by the company's own server, so that it is in everybody's "Sent" folder
 * and signed there; when that server does not take it, by managed relay. All other mail, what the
 * CRM writes by itself, goes by managed relay at once. */
#define TG_ROUTING
#include "tidegate.h"
#include "tidegate-json.h"

static tg_texts staff, robots;
static tg_text server;

static tg_setup policy_init(tg_text text) {
    tg_config config = tg_config_read(text);
    staff = tg_config_texts(&config, TG("staff"));
    robots = tg_config_texts(&config, TG("robots"));
    server = tg_config_text(&config, TG("server"), TG(""));
    tg_config_needs(&config, staff.len, TG("staff: name addresses or domains whose mail goes by your server"));
    tg_config_needs(&config, server.len, TG("server: name a server that is registered for you"));
    return tg_config_end(&config, (tg_descriptor){ TG("own-server"), TG("0.1.0"), { 0, 0 }, { 0, 0 } });
}

static int listed(tg_texts list, tg_text name) {
    for (tg_u32 n = 0; n < list.len; n++)
        if (tg_same(list.at[n], name)) return 1;
    return 0;
}

static int is_staff(tg_text sender) {
    tg_text domain = tg_domain(sender);
    if (!domain.len) return 0;
    tg_text name = { sender.at, sender.len - domain.len - 1 };
    return !listed(robots, name) && (listed(staff, sender) || listed(staff, domain));
}

static tg_routing policy_decide(const tg_occasion *why, const tg_message *message) {
    static tg_fact tags[1];
    tg_routing answer = { 0 }; /* Zero is: managed, all else the host's. */
    if (why->kind == TG_PASSTHROUGH_FAILED) {
        tg_buffer words = { 0 };
        tg_put(&words, TG("failed with "));
        tg_put_number(&words, why->reply.code);
        tags[0] = (tg_fact){ TG("own-server"), { (const char *)words.at, words.len } };
        answer.ok.tags = (tg_facts){ tags, 1 };
    } else if (is_staff(message->sender)) {
        answer.ok.otherwise = (tg_action){ TG_PASSTHROUGH, .passthrough = { server, TG_THEN_MANAGED_RELAY } };
    }
    return answer;
}
