/* Interfaces as JSON, out and in. Unknown keys are refused: both sides are of one build. */
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "launcher/interfaces.h"

/* ---- out ------------------------------------------------------------------------------------------------------------------------------------------------------ */

static json_t *address_json(const struct launch_address *a)
{
    char text[LAUNCH_ADDRESS_TEXT];
    return json_pack("{s:s, s:i, s:i}", "address", launch_address_text(a, NULL, text), "prefix", a->prefix, "gid", a->gid_index);
}

static json_t *interface_json(const struct launch_interface *i)
{
    json_t *addresses = json_array();
    for (int k = 0; k < i->n_addresses; k++)
        json_array_append_new(addresses, address_json(&i->addresses[k]));
    return json_pack("{s:s, s:i, s:s, s:b, s:b, s:i, s:I, s:s, s:s, s:s, s:o}", "name", i->name, "index", i->index, "medium", launch_medium_name(i->medium), "up", i->is_up, "carrier",
                     i->has_carrier, "mtu", i->mtu, "speed_mbit", (json_int_t)i->speed_mbit, "cage", i->cage, "switch", i->switch_id, "pci", i->pci, "addresses", addresses);
}

static json_t *rdma_json(const struct launch_rdma *r)
{
    return json_pack("{s:s, s:i, s:s, s:s, s:s, s:s, s:b, s:b, s:f, s:s}", "device", r->device, "port", r->port, "interface", r->interface, "adapter", r->adapter, "cage", r->cage, "state",
                     r->state, "active", r->is_active, "infiniband", r->is_infiniband, "gbit", r->gbit, "problem", r->problem);
}

char *launch_interfaces_to_json(const struct launch_interfaces *in)
{
    json_t *list = json_array(), *rdma = json_array();
    for (int i = 0; i < in->n; i++)
        json_array_append_new(list, interface_json(&in->list[i]));
    for (int i = 0; i < in->n_rdma; i++)
        json_array_append_new(rdma, rdma_json(&in->rdma[i]));
    json_t *root = json_pack("{s:s, s:I, s:s, s:o, s:o}", "machine", in->machine, "namespace", (json_int_t)in->namespace_id, "rdma_problem", in->rdma_problem, "interfaces", list, "rdma", rdma);
    char *text = root ? json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(root);
    return text;
}

/* ---- in ------------------------------------------------------------------------------------------------------------------------------------------------------- */

/* All keys are needed, and no other one may be there. */
static enum st check_keys(const json_t *object, const char *where, size_t n, struct err *e)
{
    if (!json_is_object(object))
        return err_set(e, ST_INVALID, "%s: wants an object", where);
    return json_object_size(object) == n ? ST_OK : err_set(e, ST_INVALID, "%s: wants %zu keys, has %zu", where, n, json_object_size(object));
}

/* A getter's "absent" is an error here. */
static enum st need(enum st st, const char *where, const char *key, struct err *e) { return st == ST_NOT_FOUND ? err_set(e, ST_INVALID, "%s: %s is missing", where, key) : st; }

/* words: spaces, commas and whatever else can be printed are allowed; else only what names of devices are made of. */
static enum st get_text(const json_t *object, const char *where, const char *key, bool words, char *text, size_t bytes, struct err *e)
{
    const char *value;
    const enum st st = need(base_json_str(object, where, key, &value, e), where, key, e);
    if (st)
        return st;
    if (strlen(value) >= bytes)
        return err_set(e, ST_INVALID, "%s: %s: longer than %zu characters", where, key, bytes - 1);
    for (const char *c = value; *c; c++) {
        const bool plain = (*c >= '0' && *c <= '9') || (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || strchr("_-.:@+", *c);
        if (!plain && (!words || *c < ' ' || *c > '~'))
            return err_set(e, ST_INVALID, "%s: %s: has a character that no such name has", where, key);
    }
    strcpy(text, value);
    return ST_OK;
}

static enum st get_int(const json_t *object, const char *where, const char *key, int min, int max, int *value, struct err *e)
{
    int64_t wide = 0;
    const enum st st = need(base_json_i64(object, where, key, min, max, &wide, e), where, key, e);
    if (!st)
        *value = (int)wide;
    return st;
}

static enum st get_address(const json_t *object, const char *where, struct launch_address *a, struct err *e)
{
    const char *text = "";
    enum st st = check_keys(object, where, 3, e);
    if (!st)
        st = need(base_json_str(object, where, "address", &text, e), where, "address", e);
    if (!st && !launch_address_parse(text, a))
        st = err_set(e, ST_INVALID, "%s: address: is no numeric address of a host", where);
    if (!st)
        st = get_int(object, where, "prefix", 0, a->family == AF_INET6 ? 128 : 32, &a->prefix, e);
    return st ? st : get_int(object, where, "gid", -1, 255, &a->gid_index, e);
}

static enum st get_interface(const json_t *object, const char *where, struct launch_interface *i, struct err *e)
{
    char medium[16] = "";
    int64_t speed = -1;
    enum st st = check_keys(object, where, 11, e);
    if (!st)
        st = get_text(object, where, "name", false, i->name, sizeof i->name, e);
    if (!st && (!i->name[0] || strcmp(i->name, ".") == 0 || strcmp(i->name, "..") == 0))
        st = err_set(e, ST_INVALID, "%s: name: no interface is called so", where);
    if (!st)
        st = get_int(object, where, "index", 1, INT32_MAX, &i->index, e);
    if (!st)
        st = get_text(object, where, "medium", false, medium, sizeof medium, e);
    int m = 0;
    while (!st && m <= LAUNCH_LOOPBACK && strcmp(medium, launch_medium_name((enum launch_medium)m)) != 0)
        m++;
    if (!st && m > LAUNCH_LOOPBACK)
        st = err_set(e, ST_INVALID, "%s: medium: %s is not known", where, medium);
    i->medium = (enum launch_medium)m;
    if (!st)
        st = need(base_json_bool(object, where, "up", &i->is_up, e), where, "up", e);
    if (!st)
        st = need(base_json_bool(object, where, "carrier", &i->has_carrier, e), where, "carrier", e);
    if (!st)
        st = get_int(object, where, "mtu", 68, 1 << 20, &i->mtu, e);
    if (!st)
        st = need(base_json_i64(object, where, "speed_mbit", -1, 100000000, &speed, e), where, "speed_mbit", e);
    i->speed_mbit = speed;
    if (!st)
        st = get_text(object, where, "cage", false, i->cage, sizeof i->cage, e);
    if (!st)
        st = get_text(object, where, "switch", false, i->switch_id, sizeof i->switch_id, e);
    if (!st)
        st = get_text(object, where, "pci", false, i->pci, sizeof i->pci, e);
    const json_t *addresses = st ? NULL : json_object_get(object, "addresses");
    if (!st && (!json_is_array(addresses) || json_array_size(addresses) > LAUNCH_MAX_ADDRESSES))
        st = err_set(e, ST_INVALID, "%s: addresses: wants a list of at most %d", where, LAUNCH_MAX_ADDRESSES);
    for (size_t k = 0; !st && k < json_array_size(addresses); k++)
        st = get_address(json_array_get(addresses, k), where, &i->addresses[i->n_addresses++], e);
    return st;
}

static enum st get_rdma(const json_t *object, const char *where, struct launch_rdma *r, struct err *e)
{
    enum st st = check_keys(object, where, 10, e);
    if (!st)
        st = get_text(object, where, "device", false, r->device, sizeof r->device, e);
    if (!st && !r->device[0])
        st = err_set(e, ST_INVALID, "%s: device: no device is called so", where);
    if (!st)
        st = get_int(object, where, "port", 0, 255, &r->port, e);
    if (!st)
        st = get_text(object, where, "interface", false, r->interface, sizeof r->interface, e);
    if (!st)
        st = get_text(object, where, "adapter", false, r->adapter, sizeof r->adapter, e);
    if (!st)
        st = get_text(object, where, "cage", false, r->cage, sizeof r->cage, e);
    if (!st)
        st = get_text(object, where, "state", true, r->state, sizeof r->state, e);
    if (!st)
        st = need(base_json_bool(object, where, "active", &r->is_active, e), where, "active", e);
    if (!st)
        st = need(base_json_bool(object, where, "infiniband", &r->is_infiniband, e), where, "infiniband", e);
    if (!st)
        st = need(base_json_f64(object, where, "gbit", &r->gbit, e), where, "gbit", e);
    if (!st && !(r->gbit >= 0 && r->gbit <= 1e6))
        st = err_set(e, ST_INVALID, "%s: gbit: out of range", where);
    return st ? st : get_text(object, where, "problem", true, r->problem, sizeof r->problem, e);
}

static enum st get_all(const json_t *root, const char *where, struct launch_interfaces *out, struct err *e)
{
    int64_t space = 0;
    enum st st = check_keys(root, where, 5, e);
    if (!st)
        st = get_text(root, where, "machine", false, out->machine, sizeof out->machine, e);
    if (!st)
        st = need(base_json_i64(root, where, "namespace", 0, INT64_MAX, &space, e), where, "namespace", e);
    out->namespace_id = (uint64_t)space;
    if (!st)
        st = get_text(root, where, "rdma_problem", true, out->rdma_problem, sizeof out->rdma_problem, e);
    const json_t *list = st ? NULL : json_object_get(root, "interfaces"), *rdma = st ? NULL : json_object_get(root, "rdma");
    if (!st && (!json_is_array(list) || json_array_size(list) > LAUNCH_MAX_INTERFACES || !json_is_array(rdma) || json_array_size(rdma) > LAUNCH_MAX_RDMA))
        st = err_set(e, ST_INVALID, "%s: wants lists of at most %d interfaces and %d RDMA ports", where, LAUNCH_MAX_INTERFACES, LAUNCH_MAX_RDMA);
    char at[128];
    for (size_t i = 0; !st && i < json_array_size(list); i++) {
        snprintf(at, sizeof at, "%.64s: interfaces[%zu]", where, i);
        struct launch_interface found = {.is_up = false};
        st = get_interface(json_array_get(list, i), at, &found, e);
        if (!st && launch_interface_find(out, found.name))
            st = err_set(e, ST_INVALID, "%s: %s is there twice", at, found.name);
        out->list[out->n++] = found;
    }
    for (size_t i = 0; !st && i < json_array_size(rdma); i++) {
        snprintf(at, sizeof at, "%.64s: rdma[%zu]", where, i);
        st = get_rdma(json_array_get(rdma, i), at, &out->rdma[out->n_rdma++], e);
    }
    return st;
}

enum st launch_interfaces_from_json(const char *where, const char *text, size_t bytes, struct launch_interfaces *out, struct err *e)
{
    json_t *root = NULL;
    if (bytes > LAUNCH_INTERFACES_MAX_JSON)
        return err_set(e, ST_INVALID, "%s: %zu bytes, more than %d", where, bytes, LAUNCH_INTERFACES_MAX_JSON);
    enum st st = base_json_parse(where, text, bytes, &root, e);
    if (st)
        return st;
    struct launch_interfaces *found = calloc(1, sizeof *found);
    st = found ? get_all(root, where, found, e) : err_set(e, ST_NO_MEMORY, "no memory");
    if (!st)
        *out = *found;
    free(found);
    json_decref(root);
    return st;
}
