/* Placement: which hardware threads each rank's threads sit on.
 *
 * The one idea: first choose *what* is used, then *who* uses it. Every allowed PU is a slot with a group: its position among its core's allowed PUs
 * first (whole cores before siblings), the core's kind second (fast before slow). Groups are taken whole, in order, until there is a slot for every
 * thread; only the last group is taken in part, and there locality decides. Then the slots are shared out down the tree of packages, NUMA nodes and
 * L3 caches: a rank goes to the child with the fewest ranks that still holds all of its threads, and one that fits nowhere spans what is left,
 * where its part of the cores was kept for it.
 * Inside one domain ranks get equal numbers of each group in contiguous runs, siblings from their own cores.
 * More threads than PUs: thread j of all gets PU ⌊j·PUs ÷ threads⌋ in tree order, so that every PU carries the same number, give or take one. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "topologies/topo_priv.h"

#define MAX_RANKS 4096
#define MAX_THREADS 4096
#define N_LEVELS 3
#define FREE (-1)
#define RESERVED(depth) (-2 - (depth))

struct slot {
    int pu;          /* index into the machine's pus */
    int core, level; /* level: position among the allowed PUs of its core */
    int kind;
    int key[N_LEVELS]; /* domain numbers, the coarsest level first */
    int group;         /* order of use; −1: not used */
    int owner;         /* rank, FREE, or RESERVED for ranks that span the domains of a level */
};

/* One domain below a node of the tree. */
struct child {
    int begin, end; /* slots */
    int n_slots;    /* with a group */
    int n_must;     /* of them in a group before the last: to be used in any case */
    int n_ranks;
    uint64_t cache_bytes; /* of the shared caches below; 0: not known */
};

struct work {
    const struct topo_machine *machine;
    struct slot *slots; /* in tree order */
    int n_slots;
    int n_threads;      /* per rank */
    int *scratch;       /* [n_slots], a list of slots */
    int *need;          /* [ranks] threads that have no slot yet */
    int *turn;          /* [ranks] how many of them it gets from the group at hand */
    struct child *home; /* [ranks] where a rank that spans domains begins */
    int last_group;
};

/* Returns the constant, so that everybody, a static analyser included, sees that it is not ST_OK. */
static enum st no_memory(int n_ranks, struct err *e) {
    err_set(e, ST_NO_MEMORY, "no memory to place %d ranks", n_ranks);
    return ST_NO_MEMORY;
}

/* --- Choosing what is used ---------------------------------------------------------------------------------------------------- */

static int compare_tree(const void *pa, const void *pb) {
    const struct slot *a = pa, *b = pb;
    for (int i = 0; i < N_LEVELS; i++)
        if (a->key[i] != b->key[i]) return a->key[i] < b->key[i] ? -1 : 1;
    if (a->core != b->core) return a->core < b->core ? -1 : 1;
    return a->level < b->level ? -1 : a->level > b->level;
}

/* All allowed PUs in tree order; malloc'ed, n_allowed of them. */
static struct slot *list_slots(const struct topo_machine *m) {
    struct slot *slots = calloc((size_t)m->n_allowed + 1, sizeof *slots);
    if (!slots) return NULL;
    /* Coarse levels first; NUMA nodes may hold packages or the other way round, and an L3 may span nodes. */
    const int count[N_LEVELS] = {m->n_packages, m->n_numa, m->n_l3};
    int order[N_LEVELS] = {0, 1, 2};
    for (int i = 1; i < N_LEVELS; i++)
        for (int k = i; k > 0 && count[order[k]] < count[order[k - 1]]; k--) {
            int swap = order[k];
            order[k] = order[k - 1];
            order[k - 1] = swap;
        }
    int n = 0;
    for (int i_core = 0; i_core < m->n_cores; i_core++) {
        const struct topo_core *c = &m->cores[i_core];
        const int number[N_LEVELS] = {c->package, c->numa, c->l3};
        for (int i = 0, level = 0; i < c->n_pus; i++) {
            if (!m->pus[c->first_pu + i].allowed) continue;
            struct slot *s = &slots[n++];
            *s = (struct slot){.pu = c->first_pu + i, .core = i_core, .level = level, .kind = c->kind, .group = -1, .owner = FREE};
            for (int k = 0; k < N_LEVELS; k++) s->key[k] = number[order[k]];
            level++;
        }
    }
    qsort(slots, (size_t)n, sizeof *slots, compare_tree);
    return slots;
}

/* Gives groups to the slots [0, n) until at least n_wanted have one. Requires n_wanted ≤ n. */
static void choose_groups(struct work *w, int n_wanted) {
    int group = 0, n = 0;
    for (int level = 0; n < n_wanted; level++) {
        int kind = -1;
        for (;;) { /* the next kind that has this level */
            int next = INT_MAX, n_more = 0;
            for (int i = 0; i < w->n_slots; i++)
                if (w->slots[i].level == level && w->slots[i].kind > kind && w->slots[i].kind < next) next = w->slots[i].kind;
            if (next == INT_MAX || n >= n_wanted) break;
            kind = next;
            for (int i = 0; i < w->n_slots; i++)
                if (w->slots[i].level == level && w->slots[i].kind == kind) {
                    w->slots[i].group = group;
                    n_more++;
                }
            n += n_more;
            group++;
        }
    }
    w->last_group = group - 1;
}

/* --- Sharing it out ----------------------------------------------------------------------------------------------------------- */

/* Hands the group's free slots among those listed within [begin, end) to rank r, as many as are its turn. Returns how many. */
static int take(struct work *w, const int *list, int n_list, int begin, int end, int group, int r) {
    int n = 0;
    for (int i = 0; i < n_list && w->turn[r] > 0; i++) {
        struct slot *s = &w->slots[list[i]];
        if (list[i] < begin || list[i] >= end || s->owner != FREE || s->group != group) continue;
        s->owner = r;
        w->need[r]--;
        w->turn[r]--;
        n++;
    }
    return n;
}

/* Ranks [first, first + k) share the free slots of the list, which holds at least k × n_threads of them. Where the list spans domains, each has a home to begin with. */
static void share(struct work *w, const int *list, int n_list, int first, int k) {
    int left = k * w->n_threads;
    for (int r = first; r < first + k; r++) w->need[r] = w->n_threads;
    for (int group = 0; group <= w->last_group && left > 0; group++) {
        int n_free = 0, level = 0;
        for (int i = 0; i < n_list; i++) {
            const struct slot *s = &w->slots[list[i]];
            if (s->owner != FREE || s->group != group) continue;
            n_free++;
            level = s->level;
        }
        if (level > 0) { /* siblings of one's own cores */
            for (int i = 0; i < n_list && n_free > 0; i++) {
                struct slot *s = &w->slots[list[i]];
                if (s->owner != FREE || s->group != group) continue;
                const struct slot *whole = s - s->level; /* the slots of a core stand together */
                int r = whole->owner;
                if (r < first || r >= first + k || !w->need[r]) continue;
                s->owner = r;
                w->need[r]--;
                n_free--;
                left--;
            }
        }
        int n_take = n_free < left ? n_free : left;
        if (!n_take) continue;
        /* Equal shares: whoever needs most gets most. Needs are cut down to a water level, those of the first ranks by one more. */
        int water = w->n_threads, n_above = 0;
        for (; water > 0; water--) {
            n_above = 0;
            for (int r = first; r < first + k; r++) n_above += w->need[r] > water - 1 ? w->need[r] - water + 1 : 0;
            if (n_above > n_take) break; /* one lower is too low */
        }
        int n_rest = n_take;
        for (int r = first; r < first + k; r++) {
            w->turn[r] = w->need[r] > water ? w->need[r] - water : 0;
            n_rest -= w->turn[r];
        }
        for (int r = first; r < first + k && n_rest > 0; r++)
            if (w->need[r] >= water && water > 0) {
                w->turn[r]++;
                n_rest--;
            }
        /* Contiguous runs in rank order, at home first. */
        for (int r = first; r < first + k; r++) left -= take(w, list, n_list, w->home[r].begin, w->home[r].end, group, r);
        for (int r = first; r < first + k; r++) left -= take(w, list, n_list, 0, w->n_slots, group, r);
    }
    BASE_ASSERT(left == 0);
}

static int compare_children(const void *pa, const void *pb) { /* the emptier first, else in order */
    const struct child *a = pa, *b = pb;
    if (a->n_slots != b->n_slots) return a->n_slots > b->n_slots ? -1 : 1;
    return a->begin < b->begin ? -1 : 1;
}

static int n_excess(const struct child *children, int n, int n_threads) {
    int excess = 0;
    for (int i = 0; i < n; i++) {
        int more = children[i].n_must - children[i].n_ranks * n_threads;
        if (more > 0) excess += more;
    }
    return excess;
}

/* Ranks that span must not be left with the dregs (siblings of others' cores, slow cores alone): their part of each group that is used up is set aside
 * in children that have room, the last of each child. */
static void reserve(struct work *w, struct child *children, int n_children, int depth, int k, int n_whole) {
    int n_span = k - n_whole, n_threads = w->n_threads, left = n_span * n_threads - n_excess(children, n_children, n_threads);
    for (int group = 0; group < w->last_group; group++) {
        int n_group = 0, n_outside = 0; /* outside: where no rank is whole, and all is left anyway */
        for (struct child *c = children; c < children + n_children; c++)
            for (int i = c->begin; i < c->end; i++) {
                if (w->slots[i].owner != FREE || w->slots[i].group != group) continue;
                n_group++;
                n_outside += c->n_ranks == 0;
            }
        for (int n = (int)((int64_t)n_group * n_span / k) - n_outside; n > 0 && left > 0; n--) {
            struct child *best = NULL;
            int best_slot = -1, best_room = 0;
            for (struct child *c = children; c < children + n_children; c++) {
                int more = c->n_must - c->n_ranks * n_threads, room = c->n_slots - c->n_ranks * n_threads - (more > 0 ? more : 0);
                if (room <= best_room || c->n_ranks == 0) continue;
                int slot = c->end - 1;
                while (slot >= c->begin && (w->slots[slot].owner != FREE || w->slots[slot].group != group)) slot--;
                if (slot < c->begin) continue;
                best = c;
                best_slot = slot;
                best_room = room;
            }
            if (!best) break;
            w->slots[best_slot].owner = RESERVED(depth);
            best->n_slots--;
            best->n_must--;
            left--;
        }
    }
}

static bool better_child(const struct child *c, const struct child *than, int n_threads) {
    if (c->n_ranks != than->n_ranks) return c->n_ranks < than->n_ranks;
    int c_must = c->n_must - c->n_ranks * n_threads, than_must = than->n_must - than->n_ranks * n_threads;
    return c_must != than_must ? c_must > than_must : c->cache_bytes > than->cache_bytes;
}

/* Ranks [first, first + k) get slots of [begin, end). False: no memory. */
static bool place(struct work *w, int begin, int end, int depth, int first, int k) {
    if (k == 0) return true;
    if (depth == N_LEVELS) {
        for (int i = begin; i < end; i++) w->scratch[i - begin] = i;
        for (int r = first; r < first + k; r++) w->home[r] = (struct child){.begin = begin, .end = end};
        share(w, w->scratch, end - begin, first, k);
        return true;
    }
    int n_children = 0;
    for (int i = begin; i < end; i++) n_children += i == begin || w->slots[i].key[depth] != w->slots[i - 1].key[depth];
    if (n_children == 1) return place(w, begin, end, depth + 1, first, k);
    struct child *children = calloc((size_t)n_children, sizeof *children);
    if (!children) return false;
    for (int i = begin, c = -1; i < end; i++) {
        if (i == begin || w->slots[i].key[depth] != w->slots[i - 1].key[depth]) children[++c].begin = i;
        children[c].end = i + 1;
        int l3 = w->machine->cores[w->slots[i].core].l3;
        if (w->machine->l3_bytes && l3 >= 0 && (i == children[c].begin || w->machine->cores[w->slots[i - 1].core].l3 != l3))
            children[c].cache_bytes += w->machine->l3_bytes[l3];
        if (w->slots[i].owner != FREE || w->slots[i].group < 0) continue;
        children[c].n_slots++;
        children[c].n_must += w->slots[i].group < w->last_group;
    }

    /* Whole ranks into children: the fewest ranks first, then the most slots that must be used, then the larger cache (a GB10's two L3 differ), then in order. */
    int n_whole = 0, n_threads = w->n_threads, n_must = n_excess(children, n_children, 0);
    for (; n_whole < k; n_whole++) {
        struct child *best = NULL;
        for (struct child *c = children; c < children + n_children; c++)
            if ((c->n_ranks + 1) * n_threads <= c->n_slots && (!best || better_child(c, best, n_threads))) best = c;
        if (!best) break;
        best->n_ranks++;
    }
    /* What must be used and lies outside of the whole ranks' children needs ranks that span. */
    int unavoidable = n_must > k * n_threads ? n_must - k * n_threads : 0;
    while (n_whole > 0 && n_excess(children, n_children, n_threads) > (k - n_whole) * n_threads + unavoidable) {
        struct child *best = NULL; /* the one that has the least to lose */
        for (struct child *c = children; c < children + n_children; c++)
            if (c->n_ranks && (!best || c->n_must - c->n_ranks * n_threads <= best->n_must - best->n_ranks * n_threads)) best = c;
        BASE_ASSERT(best);
        best->n_ranks--;
        n_whole--;
    }

    if (n_whole < k) reserve(w, children, n_children, depth, k, n_whole);

    bool ok = true;
    int next = first;
    for (int c = 0; c < n_children && ok; c++) {
        ok = place(w, children[c].begin, children[c].end, depth + 1, next, children[c].n_ranks);
        next += children[c].n_ranks;
        children[c].n_slots -= children[c].n_ranks * n_threads;
        children[c].n_ranks = 0;
    }
    if (ok && n_whole < k) {
        for (int c = 0; c < n_children; c++)
            for (int i = children[c].begin; i < children[c].end; i++)
                if (w->slots[i].owner == RESERVED(depth)) {
                    w->slots[i].owner = FREE;
                    children[c].n_slots++;
                }
        int n_list = 0, n_span = k - n_whole;
        bool runs = n_whole == 0 && n_children % n_span == 0; /* neighbours in the tree are near each other (a group of packages) */
        for (int r = 0; r < n_span && runs; r++)
            w->home[next + r] = (struct child){.begin = children[(int64_t)r * n_children / n_span].begin, .end = children[(int64_t)(r + 1) * n_children / n_span - 1].end};
        qsort(children, (size_t)n_children, sizeof *children, compare_children);
        for (int r = next; r < first + k && !runs; r++) { /* home: where most is left, counting those who begin there */
            struct child *best = children;
            for (struct child *c = children; c < children + n_children; c++)
                if (c->n_slots - c->n_ranks * n_threads > best->n_slots - best->n_ranks * n_threads) best = c;
            w->home[r] = *best;
            best->n_ranks++;
        }
        int n_near = 0;
        if (k == 1) { /* alone: on the fewest domains, but the same from each of those, because two L3 or two nodes read more per second than one */
            for (int n_slots = 0; n_near < n_children && n_slots < n_threads; n_near++) n_slots += children[n_near].n_slots;
            for (int at = 0, n_before = -1; n_list > n_before; at++) {
                n_before = n_list;
                for (int c = 0; c < n_near; c++)
                    if (children[c].begin + at < children[c].end) w->scratch[n_list++] = children[c].begin + at;
            }
        }
        for (int c = n_near; c < n_children; c++)
            for (int i = children[c].begin; i < children[c].end; i++) w->scratch[n_list++] = i;
        share(w, w->scratch, n_list, next, k - n_whole);
    }
    free(children);
    return ok;
}

static int compare_threads(const void *pa, const void *pb) { /* thread 0 on a fast core; neighbours in the tree are neighbours in rank */
    const struct slot *a = pa, *b = pb;
    if (a->kind != b->kind) return a->kind < b->kind ? -1 : 1;
    return compare_tree(a, b);
}

/* Ranks [first, first + k) with n_threads each on these slots. */
static enum st settle(const struct topo_machine *m, struct slot *slots, int n_slots, int n_threads, int first, int k, struct topo_seat *seats,
                      struct err *e) {
    int64_t n_wanted = (int64_t)k * n_threads;
    if (n_wanted > n_slots) {
        for (int r = 0; r < k; r++) {
            int *pus = seats[first + r].pus;
            BASE_ASSERT(pus);
            for (int t = 0; t < n_threads; t++) pus[t] = m->pus[slots[((int64_t)r * n_threads + t) * n_slots / n_wanted].pu].os_index;
        }
        return ST_OK;
    }
    struct work w = {.machine = m, .slots = slots, .n_slots = n_slots, .n_threads = n_threads};
    w.scratch = malloc((size_t)n_slots * sizeof *w.scratch);
    w.need = calloc((size_t)k, sizeof *w.need);
    w.turn = calloc((size_t)k, sizeof *w.turn);
    w.home = calloc((size_t)k, sizeof *w.home);
    struct slot *mine = malloc((size_t)n_slots * sizeof *mine);
    enum st st = ST_OK;
    bool have_all = w.scratch && w.need && w.turn && w.home && mine;
    if (have_all) choose_groups(&w, (int)n_wanted);
    if (!have_all || !place(&w, 0, n_slots, 0, 0, k)) st = no_memory(k, e);
    if (st == ST_OK) { /* sorted by owner in linear time, then each rank's own order */
        int *at = w.need;
        for (int r = 0; r < k; r++) at[r] = r * n_threads;
        for (int i = 0; i < n_slots; i++)
            if (slots[i].owner >= 0) mine[at[slots[i].owner]++] = slots[i];
        for (int r = 0; r < k; r++) {
            BASE_ASSERT(at[r] == (r + 1) * n_threads);
            qsort(mine + r * n_threads, (size_t)n_threads, sizeof *mine, compare_threads);
            for (int t = 0; t < n_threads; t++) seats[first + r].pus[t] = m->pus[mine[r * n_threads + t].pu].os_index;
        }
    }
    free(mine);
    free(w.home);
    free(w.turn);
    free(w.need);
    free(w.scratch);
    return st;
}

/* --- --bind ------------------------------------------------------------------------------------------------------------------- */

static int domain_of(const struct topo_machine *m, const struct slot *s, enum topo_bind bind) {
    const struct topo_core *c = &m->cores[s->core];
    return bind == TOPO_BIND_L3 ? c->l3 : bind == TOPO_BIND_NUMA ? c->numa : c->package;
}

/* Each rank inside one domain of the level that was asked for, rank r in domain ⌊r·domains ÷ ranks⌋. */
static enum st settle_in_domains(const struct topo_machine *m, struct slot *slots, int n_slots, enum topo_bind bind, int n_threads, int n_ranks,
                                 struct topo_seat *seats, struct err *e) {
    int n_domains = 0, *domains = malloc((size_t)n_slots * sizeof *domains); /* in tree order */
    struct slot *part = malloc((size_t)n_slots * sizeof *part);
    enum st st = domains && part ? ST_OK : no_memory(n_ranks, e);
    for (int i = 0; i < n_slots && st == ST_OK; i++) {
        int d = domain_of(m, &slots[i], bind), k = 0;
        while (k < n_domains && domains[k] != d) k++;
        if (k == n_domains) domains[n_domains++] = d;
    }
    for (int r = 0; r < n_ranks && st == ST_OK;) {
        int d = (int)((int64_t)r * n_domains / n_ranks), end = r, n_part = 0;
        while (end < n_ranks && (int64_t)end * n_domains / n_ranks == d) end++;
        for (int i = 0; i < n_slots; i++)
            if (domain_of(m, &slots[i], bind) == domains[d]) part[n_part++] = slots[i];
        st = settle(m, part, n_part, n_threads, r, end - r, seats, e);
        r = end;
    }
    free(part);
    free(domains);
    return st;
}

static bool is_allowed(const struct topo_machine *m, int os_index) {
    for (int i = 0; i < m->n_pus; i++)
        if (m->pus[i].os_index == os_index) return m->pus[i].allowed;
    return false;
}

static enum st settle_by_list(const struct topo_machine *m, const struct topo_place_options *o, struct topo_seat *seats, struct err *e) {
    int n_entries, n_parts = o->list ? topo_list_check(o->list, &n_entries) : -1;
    if (n_parts < 0) return err_set(e, ST_INVALID, "--bind: no list of CPUs like 0-3:4-7");
    if (n_parts > 1 && n_parts != o->n_ranks) return err_set(e, ST_INVALID, "--bind lists CPUs for %d ranks, but there are %d", n_parts, o->n_ranks);
    int *cpus = calloc((size_t)n_entries + 1, sizeof *cpus);
    if (!cpus) return no_memory(o->n_ranks, e);
    enum st st = ST_OK;
    const char *text = o->list;
    int n_all = n_parts == 1 ? topo_list_read(&text, cpus, n_entries) : 0;
    int n_each = n_all / o->n_ranks ? n_all / o->n_ranks : 1;
    for (int r = 0; r < o->n_ranks && st == ST_OK; r++) {
        int n = n_parts == 1 ? n_all : topo_list_read(&text, cpus, n_entries);
        if (n_parts > 1 && *text == ':') text++;
        BASE_ASSERT(n > 0);
        for (int i = 0; i < n && st == ST_OK; i++)
            if (!is_allowed(m, cpus[i])) st = err_set(e, ST_INVALID, "--bind: CPU %d is not there or not allowed", cpus[i]);
        if (st != ST_OK) break;
        struct topo_seat *s = &seats[r];
        s->n_threads = o->n_threads ? o->n_threads : n_parts == 1 ? n_each : n;
        if (s->n_threads > MAX_THREADS)
            st = err_set(e, ST_INVALID, "%d threads for one rank; at most %d", s->n_threads, MAX_THREADS);
        else if (!(s->pus = malloc((size_t)s->n_threads * sizeof *s->pus)))
            st = no_memory(o->n_ranks, e);
        for (int t = 0; st == ST_OK && t < s->n_threads; t++) s->pus[t] = cpus[(n_parts == 1 ? (int64_t)r * s->n_threads + t : t) % n];
    }
    free(cpus);
    return st;
}

/* --- The whole ---------------------------------------------------------------------------------------------------------------- */

struct by_os {
    int os_index, numa, core; /* numa: OS index, −1 none */
    int n_used;
};
static int compare_by_os(const void *a, const void *b) {
    int x = ((const struct by_os *)a)->os_index, y = ((const struct by_os *)b)->os_index;
    return x < y ? -1 : x > y;
}
static int compare_int(const void *a, const void *b) {
    int x = *(const int *)a, y = *(const int *)b;
    return x < y ? -1 : x > y;
}

/* Fills each seat's numa; *repeats: a PU carries more than one thread; *n_distinct: PUs in use. */
static enum st finish_seats(const struct topo_machine *m, struct topo_placement *p, bool *repeats, int *n_distinct, struct err *e) {
    struct by_os *table = malloc((size_t)m->n_pus * sizeof *table);
    if (!table) return no_memory(p->n_ranks, e);
    for (int i = 0; i < m->n_pus; i++) {
        int numa = m->cores[m->pus[i].core].numa;
        table[i] = (struct by_os){.os_index = m->pus[i].os_index, .numa = numa < 0 ? -1 : m->numa_os[numa], .core = m->pus[i].core};
    }
    qsort(table, (size_t)m->n_pus, sizeof *table, compare_by_os);
    enum st st = ST_OK;
    *repeats = false;
    *n_distinct = 0;
    for (int r = 0; r < p->n_ranks && st == ST_OK; r++) {
        struct topo_seat *s = &p->seats[r];
        s->numa = calloc((size_t)s->n_threads + 1, sizeof *s->numa);
        if (!s->numa) {
            st = no_memory(p->n_ranks, e);
            break;
        }
        int n = 0;
        for (int t = 0; t < s->n_threads; t++) {
            struct by_os *b = bsearch(&(struct by_os){.os_index = s->pus[t]}, table, (size_t)m->n_pus, sizeof *table, compare_by_os);
            BASE_ASSERT(b);
            if (b->n_used++)
                *repeats = true;
            else
                (*n_distinct)++;
            if (b->numa >= 0) s->numa[n++] = b->numa;
        }
        qsort(s->numa, (size_t)n, sizeof *s->numa, compare_int);
        for (int i = 0; i < n; i++)
            if (i == 0 || s->numa[i] != s->numa[i - 1]) s->numa[s->n_numa++] = s->numa[i];
    }
    free(table);
    return st;
}

static const char *plural(int64_t n) { return n == 1 ? "" : "s"; }

/* One sentence, the most important one. */
static void write_note(const struct topo_machine *m, const struct topo_place_options *o, int64_t n_all, bool repeats, int n_distinct,
                       struct topo_placement *p) {
    int n_cpus = topo_machine_cpus(m), n_partial = 0;
    for (int i = 0; i < m->n_cores; i++) {
        int n = 0;
        for (int k = 0; k < m->cores[i].n_pus; k++) n += m->pus[m->cores[i].first_pu + k].allowed;
        n_partial += n > 0 && n < m->cores[i].n_pus;
    }
    const char *level = o->bind == TOPO_BIND_L3 && m->n_l3 == 0 ? "L3 cache" : o->bind == TOPO_BIND_PACKAGE && m->n_packages == 0 ? "package" : NULL;
    char what[96];
    if (n_all == p->n_ranks)
        snprintf(what, sizeof what, "%d rank%s", p->n_ranks, plural(p->n_ranks));
    else
        snprintf(what, sizeof what, "%lld threads of %d rank%s", (long long)n_all, p->n_ranks, plural(p->n_ranks));
    if (repeats)
        snprintf(p->note, sizeof p->note, "%s share%s %d CPU%s", what, n_all == 1 ? "s" : "", n_distinct, plural(n_distinct));
    else if (n_all > n_cpus)
        snprintf(p->note, sizeof p->note, "%s share%s a quota of %.3g CPU%s", what, n_all == 1 ? "s" : "", m->cpu_quota,
                 m->cpu_quota == 1 ? "" : "s");
    else if (level)
        snprintf(p->note, sizeof p->note, "no shared %s is known here: the whole machine is one domain", level);
    else if (n_partial)
        snprintf(p->note, sizeof p->note, "only some hardware threads of %d core%s are allowed: bound to those", n_partial, plural(n_partial));
}

enum st topo_place(const struct topo_machine *m, const struct topo_place_options *o, struct topo_placement **out, struct err *e) {
    if (o->n_ranks < 1 || o->n_ranks > MAX_RANKS) return err_set(e, ST_INVALID, "%d ranks; 1 to %d are possible", o->n_ranks, MAX_RANKS);
    if (o->n_threads < 0 || o->n_threads > MAX_THREADS)
        return err_set(e, ST_INVALID, "%d threads per rank; 1 to %d are possible", o->n_threads, MAX_THREADS);
    if (m->n_allowed < 1) return err_set(e, ST_INVALID, "%s: no CPU is allowed there", m->name);
    int n_cpus = topo_machine_cpus(m), n_threads = o->n_threads ? o->n_threads : n_cpus / o->n_ranks;
    if (n_threads < 1) n_threads = 1;
    if (n_threads > MAX_THREADS) n_threads = MAX_THREADS;
    if ((int64_t)o->n_ranks * n_threads > TOPO_MAX_TOTAL)
        return err_set(e, ST_INVALID, "%d ranks of %d threads; at most %d threads in all are possible", o->n_ranks, n_threads, TOPO_MAX_TOTAL);

    const enum topo_bind bind = o->bind;
    struct topo_placement *p = calloc(1, sizeof *p);
    struct slot *slots = list_slots(m);
    if (p) p->seats = calloc((size_t)o->n_ranks, sizeof *p->seats);
    enum st st = p && slots && p->seats ? ST_OK : no_memory(o->n_ranks, e);
    if (st != ST_OK) goto fail;
    p->n_ranks = o->n_ranks;
    p->bound = bind != TOPO_BIND_NONE;
    for (int r = 0; r < o->n_ranks; r++) {
        p->seats[r].rank = r;
        if (bind == TOPO_BIND_LIST) continue;
        p->seats[r].n_threads = n_threads;
        if (!(p->seats[r].pus = calloc((size_t)n_threads, sizeof(int)))) {
            st = no_memory(o->n_ranks, e);
            goto fail;
        }
    }
    switch (bind) {
    case TOPO_BIND_LIST: st = settle_by_list(m, o, p->seats, e); break;
    case TOPO_BIND_L3:
    case TOPO_BIND_NUMA:
    case TOPO_BIND_PACKAGE: st = settle_in_domains(m, slots, m->n_allowed, bind, n_threads, o->n_ranks, p->seats, e); break;
    case TOPO_BIND_AUTO:
    case TOPO_BIND_CORE:
    case TOPO_BIND_NONE:
    default: st = settle(m, slots, m->n_allowed, n_threads, 0, o->n_ranks, p->seats, e); break;
    }
    bool repeats = false;
    int n_distinct = 0;
    if (st == ST_OK) st = finish_seats(m, p, &repeats, &n_distinct, e);
    if (st != ST_OK) goto fail;
    int64_t n_all = 0;
    for (int r = 0; r < p->n_ranks; r++) n_all += p->seats[r].n_threads;
    p->oversubscribed = repeats || n_all > n_cpus;
    write_note(m, o, n_all, repeats, n_distinct, p);
    st = topo_choose_progress(m, o, p, e);
    if (st != ST_OK) goto fail;
    free(slots);
    *out = p;
    return ST_OK;
fail:
    free(slots);
    topo_placement_free(p);
    return st;
}

void topo_placement_free(struct topo_placement *p) {
    if (!p) return;
    for (int r = 0; p->seats && r < p->n_ranks; r++) {
        free(p->seats[r].pus);
        free(p->seats[r].numa);
    }
    free(p->seats);
    free(p);
}
