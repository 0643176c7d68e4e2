/* What probes tell, as JSON. Names and addresses are checked like those of interfaces: they are looked up among them, and printed. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "launcher/probe.h"

#define MAX_JSON (1024 * 1024)

static char *dump(json_t *root)
{
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    return text;
}

char *launch_endpoints_to_json(const struct launch_endpoints *in)
{
    json_t *list = json_array();
    char text[LAUNCH_ADDRESS_TEXT];
    for (int i = 0; i < in->n; i++)
        json_array_append_new(list, json_pack("[s, s, i]", in->list[i].interface, launch_address_text(&in->list[i].address, NULL, text), in->list[i].port));
    return dump(list);
}

char *launch_facings_to_json(const struct launch_facings *in)
{
    json_t *list = json_array();
    char a[LAUNCH_ADDRESS_TEXT], b[LAUNCH_ADDRESS_TEXT];
    for (int i = 0; i < in->n; i++) {
        const struct launch_facing *f = &in->list[i];
        json_array_append_new(list, json_pack("[i, s, s, i, s, s, b, i, I]", f->host[0], f->interface[0], launch_address_text(&f->address[0], NULL, a), f->host[1], f->interface[1],
                                              launch_address_text(&f->address[1], NULL, b), f->works, f->mtu, (json_int_t)f->rtt_ns));
    }
    return dump(list);
}

static enum st parse_list(const char *where, const char *text, size_t bytes, size_t most, json_t **root, struct err *e)
{
    if (bytes > MAX_JSON)
        return err_set(e, ST_INVALID, "%s: %zu bytes, more than %d", where, bytes, MAX_JSON);
    const enum st st = base_json_parse(where, text, bytes, root, e);
    if (st || (json_is_array(*root) && json_array_size(*root) <= most))
        return st;
    json_decref(*root);
    return err_set(e, ST_INVALID, "%s: wants a list of at most %zu", where, most);
}

static bool get_name(const json_t *value, char name[IF_NAMESIZE])
{
    const char *text = json_string_value(value);
    if (!text || !text[0] || strlen(text) >= IF_NAMESIZE)
        return false;
    for (const char *c = text; *c; c++)
        if (*c <= ' ' || *c > '~' || *c == '/')
            return false;
    strcpy(name, text);
    return true;
}

static bool get_address(const json_t *value, struct launch_address *a)
{
    const char *text = json_string_value(value);
    *a = (struct launch_address){.gid_index = -1};
    return text && launch_address_parse(text, a);
}

static bool get_number(const json_t *value, int64_t min, int64_t max, int64_t *number)
{
    if (!json_is_integer(value) || json_integer_value(value) < min || json_integer_value(value) > max)
        return false;
    *number = json_integer_value(value);
    return true;
}

enum st launch_endpoints_from_json(const char *where, const char *text, size_t bytes, struct launch_endpoints *out, struct err *e)
{
    json_t *root;
    enum st st = parse_list(where, text, bytes, LAUNCH_MAX_ENDPOINTS, &root, e);
    if (st)
        return st;
    struct launch_endpoints found = {.n = 0};
    for (size_t i = 0; i < json_array_size(root) && !st; i++) {
        const json_t *item = json_array_get(root, i);
        struct launch_endpoint *end = &found.list[found.n++];
        int64_t port = 0;
        if (json_array_size(item) != 3 || !get_name(json_array_get(item, 0), end->interface) || !get_address(json_array_get(item, 1), &end->address) ||
            !get_number(json_array_get(item, 2), 1, 65535, &port))
            st = err_set(e, ST_INVALID, "%s: [%zu]: wants [interface, address, port]", where, i);
        end->port = (int)port;
    }
    json_decref(root);
    if (!st)
        *out = found;
    return st;
}

static bool get_facing(const json_t *item, struct launch_facing *f)
{
    int64_t numbers[4];
    const json_t *works = json_array_get(item, 6);
    if (json_array_size(item) != 9 || !json_is_boolean(works))
        return false;
    for (size_t s = 0; s < 2; s++)
        if (!get_number(json_array_get(item, 3 * s), 0, LAUNCH_MAX_HOSTS - 1, &numbers[s]) || !get_name(json_array_get(item, 3 * s + 1), f->interface[s]) ||
            !get_address(json_array_get(item, 3 * s + 2), &f->address[s]))
            return false;
    if (numbers[0] == numbers[1] || f->address[0].family != f->address[1].family || !get_number(json_array_get(item, 7), 0, 65535, &numbers[2]) ||
        !get_number(json_array_get(item, 8), 0, INT64_MAX, &numbers[3]))
        return false;
    f->host[0] = (int)numbers[0];
    f->host[1] = (int)numbers[1];
    f->works = json_is_true(works);
    f->mtu = (int)numbers[2];
    f->rtt_ns = (uint64_t)numbers[3];
    return true;
}

enum st launch_facings_from_json(const char *where, const char *text, size_t bytes, struct launch_facings *out, struct err *e)
{
    json_t *root;
    enum st st = parse_list(where, text, bytes, LAUNCH_MAX_FACINGS * LAUNCH_MAX_HOSTS, &root, e);
    if (st)
        return st;
    struct launch_facings found = {.list = calloc(json_array_size(root) + 1, sizeof *found.list)};
    if (!found.list)
        st = err_set(e, ST_NO_MEMORY, "no memory");
    for (size_t i = 0; !st && i < json_array_size(root); i++)
        if (!get_facing(json_array_get(root, i), &found.list[found.n++]))
            st = err_set(e, ST_INVALID, "%s: [%zu]: wants [host, interface, address, host, interface, address, works, mtu, rtt]", where, i);
    json_decref(root);
    if (st)
        launch_facings_release(&found);
    else
        *out = found;
    return st;
}
