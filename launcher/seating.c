#include "launcher/seating.h"

#include <stdlib.h>
#include <string.h>

#include "comm/comm.h"
#include "runtime/protocol.h"
#include "topologies/place.h"

static enum st draw(const struct launch_seating *order, char **drawing, struct err *e)
{
    struct topo_place_options options = {.n_ranks = (int)order->n_ranks, .n_threads = (int)order->n_threads, .bind = TOPO_BIND_AUTO};
    struct topo_machine *m = NULL;
    struct topo_placement *p = NULL;
    enum st st = order->bind[0] ? topo_bind_parse(order->bind, &options.bind, &options.list, e) : ST_OK;
    if (!st)
        st = topo_machine_open(NULL, &m, e);
    if (!st)
        st = topo_place(m, &options, &p, e);
    if (!st) {
        for (int r = 0; r < p->n_ranks; r++)
            p->seats[r].rank += (int)order->first_rank;
        *drawing = order->is_json ? topo_draw_json(m, p) : topo_draw_text(m, p);
        st = *drawing ? ST_OK : err_set(e, ST_NO_MEMORY, "no memory for the drawing");
    }
    topo_placement_free(p);
    topo_machine_close(m);
    return st;
}

enum st launch_seating_tell(const void *payload, size_t bytes, struct launch_outbox *out, struct err *e)
{
    struct launch_seating order;
    struct err why = {""};
    char *drawing = NULL;
    if (bytes != sizeof order)
        return err_set(e, ST_INVALID, "an order to seat ranks in %zu bytes", bytes);
    memcpy(&order, payload, sizeof order);
    if (order.n_ranks < 1 || order.n_ranks > COMM_MAX_RANKS || order.first_rank > COMM_MAX_RANKS - order.n_ranks || order.n_threads > 4096 || !memchr(order.bind, 0, sizeof order.bind))
        return err_set(e, ST_INVALID, "an order to seat ranks that makes no sense");
    const uint32_t code = (uint32_t)draw(&order, &drawing, &why);
    const char *text = code ? why.text : drawing;
    const enum st st = launch_outbox_frame(out, RT_SEATS, &code, sizeof code, text, strlen(text), e);
    free(drawing);
    return st;
}
