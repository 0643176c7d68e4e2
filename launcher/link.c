#include "launcher/link.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "topologies/links.h"

enum st launch_link_parse(const char *text, struct comm_link *link, struct err *e)
{
    const size_t n_name = strcspn(text, ",");
    char name[64] = "", whole[256];
    if (n_name < sizeof name)
        memcpy(name, text, n_name);
    const struct topo_link_preset *p = topo_link_preset(name);
    if (p) {
        const char *rest = text + n_name;
        char jitter[48] = "";
        if (p->jitter_ns && !strstr(rest, "jitter="))
            snprintf(jitter, sizeof jitter, ",jitter=%" PRIu64 "ns", p->jitter_ns);
        const int n = snprintf(whole, sizeof whole, "%.0fbit,%" PRIu64 "ns%s%s", p->bits_per_s, p->delay_ns, jitter, rest);
        if (n < 0 || (size_t)n >= sizeof whole)
            return err_set(e, ST_INVALID, "--link %.60s…: too long", text);
        text = whole;
    } else if (isalpha((unsigned char)name[0]) && strcmp(name, "unlimited") != 0) {
        char known[200] = "";
        for (int i = 0; topo_link_preset_at(i); i++)
            snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "", topo_link_preset_at(i)->name);
        return err_set(e, ST_INVALID, "--link %s: no preset has this name (%s); or say it in figures, like 200gbit,2.5us", name, known);
    }
    struct err why = {""};
    const enum st st = comm_link_parse(text, link, &why);
    return st ? err_set(e, st, "--%s", why.text) : ST_OK; /* "link: …" */
}
