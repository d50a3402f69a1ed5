/* placement.c - see placement.h.
 *
 * Pure rendezvous hashing moves little but balances badly where a memshard holds a handful of
 * cells, and a slow shard slows every step. So: replicas stay where they are if the rules allow;
 * missing ones go, by random weight, to memshards below their share; then cells move from those
 * above their share to those below until no move would help. A join moves the newcomer's share, a
 * leave what the leaver had.
 *
 * Cells of one grid differ by a row or a column at most, so shares are counted in cells; capacity
 * is counted in bytes. */
#include "coordinator/placement.h"

#include "common/base/limits.h"
#include "common/base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { NONE = UINT32_MAX, SEARCH_STEPS_MAX = 20000, DISPLACE_STEPS_MAX = 2000000 };

typedef struct {
    const mr_member *member;
    uint64_t seed; /* of digest and id: what its random weights come from */
    double weight, share;
    int64_t free_bytes;
    uint32_t load; /* cells */
    uint32_t host, zone, set;
    bool may_get;     /* new cells; else it only keeps */
    bool is_overfull; /* its current cells do not fit: they are no longer free of cost */
} node;

typedef struct {
    const mr_placement_model *model;
    mr_placement_options options;
    uint32_t cells, replicas;
    node *nodes; /* by member id */
    uint32_t node_count, host_count, zone_count, set_count;
    bool zones_count;  /* there are enough of them to keep replicas apart */
    uint32_t *current; /* [cells][MR_MAX_REPLICAS] nodes of the current map, or NONE */
    uint32_t *chosen;  /* [cells][replicas], NONE behind the last */
    double *cost;      /* [node_count] scratch: lowest wins */
    uint32_t *order;   /* [node_count] scratch */
    uint32_t displace_steps;
} plan;

/* --- numbers ---------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* Exponentially distributed with the node's weight as its rate: the lowest of all wins with a
 * probability in proportion to the weight. */
static double cost_of(const node *n, uint32_t cell) {
    const uint64_t bits = mix(n->seed ^ mix(cell));
    const double uniform = ((double)(bits >> 11) + 0.5) * 0x1p-53;
    return -log(uniform) / n->weight;
}

static uint64_t bytes_of(const mr_placement_model *model, uint32_t cell) {
    if (model->cell_bytes) return model->cell_bytes[cell];
    const uint64_t cells = (uint64_t)model->grid_rows * model->grid_columns;
    return model->table_bytes / cells + (model->table_bytes % cells != 0);
}

static bool has_current(const plan *p, uint32_t cell, uint32_t n) {
    const uint32_t *list = p->current + (size_t)cell * MR_MAX_REPLICAS;
    for (uint32_t i = 0; i < MR_MAX_REPLICAS && list[i] != NONE; i++)
        if (list[i] == n) return true;
    return false;
}

/* What taking the cell adds to a node. */
static int64_t price(const plan *p, uint32_t cell, uint32_t n) {
    if (!p->nodes[n].is_overfull && has_current(p, cell, n)) return 0;
    return (int64_t)bytes_of(p->model, cell);
}

static uint32_t *chosen_of(const plan *p, uint32_t cell) {
    return p->chosen + (size_t)cell * p->replicas;
}

static uint32_t chosen_count(const plan *p, uint32_t cell) {
    const uint32_t *list = chosen_of(p, cell);
    uint32_t count = 0;
    while (count < p->replicas && list[count] != NONE) count++;
    return count;
}

static void take(plan *p, uint32_t cell, uint32_t n) {
    uint32_t *list = chosen_of(p, cell);
    list[chosen_count(p, cell)] = n;
    p->nodes[n].free_bytes -= price(p, cell, n);
    p->nodes[n].load++;
}

static void give_up(plan *p, uint32_t cell, uint32_t n) {
    uint32_t *list = chosen_of(p, cell);
    const uint32_t count = chosen_count(p, cell);
    uint32_t at = 0;
    while (list[at] != n) at++;
    list[at] = list[count - 1];
    list[count - 1] = NONE;
    p->nodes[n].free_bytes += price(p, cell, n);
    p->nodes[n].load--;
}

/* --- rules ------------------------------------------------------------------------------------ */

static bool conflict(const plan *p, uint32_t a, uint32_t b) {
    const node *x = &p->nodes[a], *y = &p->nodes[b];
    return a == b || x->set == y->set || (p->zones_count && x->zone == y->zone) ||
           (!p->options.allow_same_host && x->host == y->host);
}

/* Whether n may stand beside the cell's other replicas, `without` put aside. */
static bool fits_beside(const plan *p, uint32_t cell, uint32_t n, uint32_t without) {
    const uint32_t *list = chosen_of(p, cell);
    for (uint32_t i = 0; i < p->replicas && list[i] != NONE; i++)
        if (list[i] != without && conflict(p, list[i], n)) return false;
    return true;
}

static bool has_room(const plan *p, uint32_t cell, uint32_t n) {
    const node *to = &p->nodes[n];
    const bool is_there = has_current(p, cell, n);
    return (to->may_get || is_there) && price(p, cell, n) <= to->free_bytes;
}

/* --- filling ---------------------------------------------------------------------------------- */

/* 0: below its share by a whole cell; 1: reaches it; 2: beyond. */
static int fullness(const node *n) {
    if (n->load + 1.0 <= n->share) return 0;
    return n->load < n->share ? 1 : 2;
}

static bool is_better(const plan *p, uint32_t a, uint32_t b) {
    const int x = fullness(&p->nodes[a]), y = fullness(&p->nodes[b]);
    if (x != y) return x < y;
    return p->cost[a] < p->cost[b];
}

/* Takes the best node for one more replica, if any. */
static bool fill_greedily(plan *p, uint32_t cell) {
    uint32_t best = NONE;
    for (uint32_t n = 0; n < p->node_count; n++)
        if (has_room(p, cell, n) && fits_beside(p, cell, n, NONE) &&
            (best == NONE || is_better(p, n, best)))
            best = n;
    if (best == NONE) return false;
    take(p, cell, best);
    return true;
}

typedef struct {
    plan *p;
    uint32_t cell, steps, count;
    bool ignores_room;
    uint32_t picked[MR_MAX_REPLICAS];
} search;

/* All combinations in order of preference: where labels cross, the best first choice may leave no
 * second. */
static bool search_from(search *s, uint32_t first) {
    plan *p = s->p;
    if (s->count == p->replicas) return true;
    for (uint32_t i = first; i < p->node_count && ++s->steps < SEARCH_STEPS_MAX; i++) {
        const uint32_t n = p->order[i];
        bool fits = s->ignores_room || has_room(p, s->cell, n);
        for (uint32_t j = 0; j < s->count && fits; j++) fits = !conflict(p, s->picked[j], n);
        if (!fits) continue;
        s->picked[s->count++] = n;
        if (search_from(s, i + 1)) return true;
        s->count--;
    }
    return false;
}

/* Nodes by preference: those that have the cell, then by fullness and cost. Insertion sort: this is
 * the rare path. */
static void sort_nodes(plan *p, uint32_t cell) {
    for (uint32_t n = 0; n < p->node_count; n++) {
        uint32_t at = n;
        for (; at > 0; at--) {
            const uint32_t before = p->order[at - 1];
            const bool mine = has_current(p, cell, n), its = has_current(p, cell, before);
            if (mine != its ? its : !is_better(p, n, before)) break;
            p->order[at] = before;
        }
        p->order[at] = n;
    }
}

static bool fill_by_search(plan *p, uint32_t cell) {
    search s = {.p = p, .cell = cell};
    uint32_t had[MR_MAX_REPLICAS], had_count = chosen_count(p, cell);
    memcpy(had, chosen_of(p, cell), had_count * sizeof(*had));
    for (uint32_t i = 0; i < had_count; i++) give_up(p, cell, had[i]);
    sort_nodes(p, cell);
    const bool found = search_from(&s, 0);
    const uint32_t *to = found ? s.picked : had, count = found ? p->replicas : had_count;
    for (uint32_t i = 0; i < count; i++) take(p, cell, to[i]);
    return found;
}

/* Moves `other` from node n to some node with room; n then has more. */
static bool move_away(plan *p, uint32_t other, uint32_t n) {
    for (uint32_t to = 0; to < p->node_count; to++) {
        p->displace_steps++;
        if (to == n || !has_room(p, other, to) || !fits_beside(p, other, to, n)) continue;
        give_up(p, other, n);
        take(p, other, to);
        return true;
    }
    return false;
}

/* No node with room may have the cell: makes room on one that may, by moving one of its cells. */
static bool fill_by_displacing(plan *p, uint32_t cell) {
    for (uint32_t n = 0; n < p->node_count; n++) {
        if (!p->nodes[n].may_get || !fits_beside(p, cell, n, NONE)) continue;
        for (uint32_t other = 0; other < p->cells; other++) {
            const uint32_t *list = chosen_of(p, other);
            bool is_there = false;
            for (uint32_t i = 0; i < p->replicas && list[i] != NONE; i++) is_there |= list[i] == n;
            if (p->displace_steps++ > DISPLACE_STEPS_MAX) return false;
            if (!is_there || other == cell || price(p, other, n) == 0) continue;
            if (p->nodes[n].free_bytes + price(p, other, n) < price(p, cell, n)) continue;
            if (!move_away(p, other, n)) continue;
            take(p, cell, n);
            return true;
        }
    }
    return false;
}

static bool fill(plan *p, uint32_t cell) {
    if (chosen_count(p, cell) == p->replicas) return true;
    for (uint32_t n = 0; n < p->node_count; n++) p->cost[n] = cost_of(&p->nodes[n], cell);
    while (chosen_count(p, cell) < p->replicas)
        if (!fill_greedily(p, cell)) break;
    while (chosen_count(p, cell) < p->replicas)
        if (!fill_by_search(p, cell) && !fill_by_displacing(p, cell)) return false;
    return true;
}

/* --- keeping and balancing -------------------------------------------------------------------- */

/* The node of this member id, or NONE. */
static uint32_t node_of(const plan *p, const char *id) {
    uint32_t low = 0, high = p->node_count;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        const int order = strcmp(p->nodes[middle].member->id, id);
        if (order == 0) return middle;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NONE;
}

static bool has_grid(const mr_map_record *map, const mr_placement_model *model) {
    return map && map->grid_rows == model->grid_rows && map->grid_columns == model->grid_columns;
}

static void keep(plan *p, const mr_map_record *base) {
    if (!has_grid(base, p->model)) return;
    for (uint32_t cell = 0; cell < p->cells; cell++)
        for (uint32_t i = base->replica_first[cell]; i < base->replica_first[cell + 1]; i++) {
            const uint32_t n = node_of(p, base->replicas[i]);
            if (n == NONE || chosen_count(p, cell) == p->replicas) continue;
            if (fits_beside(p, cell, n, NONE) && has_room(p, cell, n)) take(p, cell, n);
        }
}

static double surplus(const node *n) {
    return n->load - n->share;
}

typedef struct {
    double gain;
    uint32_t cell;
} candidate;

static int compare_candidates(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    if (x->gain != y->gain) return x->gain < y->gain ? -1 : 1;
    return x->cell < y->cell ? -1 : x->cell > y->cell;
}

/* Moves up to `count` cells, those the receiver wants most beside the donor first. */
static uint32_t move_cells(plan *p, uint32_t from, uint32_t to, uint32_t count) {
    candidate *list = mr_alloc_array(p->nodes[from].load + 1u, sizeof(*list));
    uint32_t found = 0, moved = 0;
    for (uint32_t cell = 0; cell < p->cells; cell++) {
        const uint32_t *chosen = chosen_of(p, cell);
        bool is_there = false;
        for (uint32_t i = 0; i < p->replicas && chosen[i] != NONE; i++)
            is_there |= chosen[i] == from;
        if (!is_there || !has_room(p, cell, to) || !fits_beside(p, cell, to, from)) continue;
        const double gain = cost_of(&p->nodes[to], cell) / cost_of(&p->nodes[from], cell);
        list[found++] = (candidate){gain, cell};
    }
    qsort(list, found, sizeof(*list), compare_candidates);
    for (uint32_t i = 0; i < found && moved < count; i++) {
        if (!has_room(p, list[i].cell, to)) continue;
        give_up(p, list[i].cell, from);
        take(p, list[i].cell, to);
        moved++;
    }
    free(list);
    return moved;
}

/* Fills `to` from those with the largest surplus. */
static bool balance_one(plan *p, uint32_t to) {
    bool has_moved = false;
    uint32_t *tried = mr_alloc_array(p->node_count, sizeof(*tried));
    for (;;) {
        uint32_t from = NONE;
        for (uint32_t n = 0; n < p->node_count; n++)
            if (n != to && !tried[n] && p->nodes[n].load > 0 &&
                surplus(&p->nodes[n]) - surplus(&p->nodes[to]) > 1 + 1e-9 &&
                (from == NONE || surplus(&p->nodes[n]) > surplus(&p->nodes[from])))
                from = n;
        if (from == NONE) break;
        const double over = surplus(&p->nodes[from]), under = -surplus(&p->nodes[to]);
        const double want = floor(over < under ? over : under);
        const uint32_t moved = move_cells(p, from, to, want > 1 ? (uint32_t)want : 1);
        has_moved |= moved > 0;
        if (moved == 0) tried[from] = 1;
    }
    free(tried);
    return has_moved;
}

/* Every move lowers the sum of squared surpluses, so this ends; rounds are bounded all the same. */
static void balance(plan *p) {
    for (uint32_t round = 0; round < 8; round++) {
        bool has_moved = false;
        for (uint32_t n = 0; n < p->node_count; n++)
            if (p->nodes[n].may_get && surplus(&p->nodes[n]) < 0) has_moved |= balance_one(p, n);
        if (!has_moved) return;
    }
}

/* --- shares ----------------------------------------------------------------------------------- */

static uint32_t label_of(const plan *p, uint32_t n, char kind) {
    const node *x = &p->nodes[n];
    return kind == 'h' ? x->host : kind == 'z' ? x->zone : kind == 's' ? x->set : n;
}

/* Lowers the shares of every group (of this label) that has more than `most` to that. */
static bool cap_groups(plan *p, char kind, uint32_t groups, double most, bool *is_fixed) {
    double *sum = mr_alloc_array(groups, sizeof(*sum));
    bool changed = false;
    for (uint32_t n = 0; n < p->node_count; n++) sum[label_of(p, n, kind)] += p->nodes[n].share;
    for (uint32_t n = 0; n < p->node_count; n++) {
        const double has = sum[label_of(p, n, kind)];
        if (has <= most * (1 + 1e-9)) continue;
        p->nodes[n].share *= most / has;
        is_fixed[n] = changed = true;
    }
    free(sum);
    return changed;
}

/* By capacity, but no host, zone or set can have more than one replica of every cell, and none
 * more than it has room for: what they cannot take goes to the others. */
static void set_shares(plan *p) {
    bool *is_fixed = mr_alloc_array(p->node_count, sizeof(*is_fixed));
    const double all = (double)p->cells * p->replicas;
    const double cell_bytes = fmax(1, (double)bytes_of(p->model, 0));
    for (uint32_t round = 0; round < 16; round++) {
        double left = all, weights = 0;
        for (uint32_t n = 0; n < p->node_count; n++) {
            if (is_fixed[n])
                left -= p->nodes[n].share;
            else
                weights += p->nodes[n].weight;
        }
        for (uint32_t n = 0; n < p->node_count; n++)
            if (!is_fixed[n]) p->nodes[n].share = fmax(0, left) * p->nodes[n].weight / weights;
        bool changed = cap_groups(p, 'n', p->node_count, p->cells, is_fixed);
        changed |= cap_groups(p, 's', p->set_count, p->cells, is_fixed);
        if (!p->options.allow_same_host)
            changed |= cap_groups(p, 'h', p->host_count, p->cells, is_fixed);
        if (p->zones_count) changed |= cap_groups(p, 'z', p->zone_count, p->cells, is_fixed);
        for (uint32_t n = 0; n < p->node_count; n++) {
            double room = (double)p->nodes[n].free_bytes / cell_bytes;
            for (uint32_t c = 0; c < p->cells && !p->nodes[n].is_overfull; c++)
                room += has_current(p, c, n);
            if (p->nodes[n].share <= room * (1 + 1e-9)) continue;
            p->nodes[n].share = floor(room);
            is_fixed[n] = changed = true;
        }
        if (!changed) break;
    }
    free(is_fixed);
}

/* --- the cluster ------------------------------------------------------------------------------ */

static const mr_placement_model *model_of(const mr_placement_model *models, uint32_t count,
                                          const mr_map_record *map) {
    for (uint32_t i = 0; i < count; i++)
        if (memcmp(&models[i].digest, &map->digest, sizeof(map->digest)) == 0 &&
            has_grid(map, &models[i]))
            return &models[i];
    return NULL;
}

static uint64_t held_bytes(const mr_member *m, const mr_digest *digest) {
    for (uint32_t i = 0; i < m->holding_count; i++)
        if (memcmp(&m->holdings[i].digest, digest, sizeof(*digest)) == 0)
            return m->holdings[i].bytes;
    return 0;
}

static bool map_has(const mr_map_record *map, uint32_t cell, const char *id) {
    if (!map || cell >= map->grid_rows * map->grid_columns) return false;
    for (uint32_t i = map->replica_first[cell]; i < map->replica_first[cell + 1]; i++)
        if (strcmp(map->replicas[i], id) == 0) return true;
    return false;
}

/* Takes off what a map binds on the nodes; cells that `counted` has too were taken off before. */
static void charge(plan *p, const mr_map_record *map, const mr_map_record *counted,
                   const mr_placement_model *model) {
    const uint32_t cells = map->grid_rows * map->grid_columns;
    if (!model) { /* nobody told its sizes: what the members say they hold */
        for (uint32_t n = 0; n < p->node_count && !counted; n++)
            p->nodes[n].free_bytes -= (int64_t)held_bytes(p->nodes[n].member, &map->digest);
        return;
    }
    for (uint32_t cell = 0; cell < cells; cell++)
        for (uint32_t i = map->replica_first[cell]; i < map->replica_first[cell + 1]; i++) {
            const uint32_t n = node_of(p, map->replicas[i]);
            if (n != NONE && !map_has(counted, cell, map->replicas[i]))
                p->nodes[n].free_bytes -= (int64_t)bytes_of(model, cell);
        }
}

static void charge_others(plan *p, const mr_view *view, const mr_placement_model *models,
                          uint32_t model_count) {
    for (uint32_t i = 0; i < view->map_count + view->next_map_count; i++) {
        const bool is_next = i >= view->map_count;
        const mr_map_record *map = is_next ? view->next_maps[i - view->map_count] : view->maps[i];
        if (memcmp(&map->digest, &p->model->digest, sizeof(map->digest)) == 0) continue;
        const mr_map_record *counted = is_next ? mr_view_map(view, &map->digest) : NULL;
        if (counted && counted->grid_columns != map->grid_columns) counted = NULL;
        charge(p, map, counted, model_of(models, model_count, map));
    }
}

/* What the current map binds stays bound until the switch. */
static void charge_current(plan *p, const mr_map_record *current) {
    if (!current) return;
    if (!has_grid(current, p->model)) {
        mr_placement_model other = *p->model;
        other.cell_bytes = NULL;
        other.grid_rows = current->grid_rows;
        other.grid_columns = current->grid_columns;
        charge(p, current, NULL, &other);
        return;
    }
    int64_t *before = mr_alloc_array(p->node_count, sizeof(*before));
    for (uint32_t n = 0; n < p->node_count; n++) before[n] = p->nodes[n].free_bytes;
    charge(p, current, NULL, p->model);
    for (uint32_t n = 0; n < p->node_count; n++)
        if (p->nodes[n].free_bytes < 0) {
            p->nodes[n].is_overfull = true;
            p->nodes[n].free_bytes = before[n];
        }
    free(before);
    for (uint32_t cell = 0; cell < p->cells; cell++) {
        uint32_t *list = p->current + (size_t)cell * MR_MAX_REPLICAS, count = 0;
        for (uint32_t i = current->replica_first[cell]; i < current->replica_first[cell + 1]; i++) {
            const uint32_t n = node_of(p, current->replicas[i]);
            if (n != NONE) list[count++] = n;
        }
    }
}

/* A number for every different text, in order of appearance; an empty one is its own if wanted. */
static uint32_t number_labels(plan *p, size_t offset, size_t to, bool empty_is_unique) {
    uint32_t count = 0;
    for (uint32_t n = 0; n < p->node_count; n++) {
        const char *text = *(char *const *)((const char *)p->nodes[n].member + offset);
        uint32_t same = NONE;
        for (uint32_t o = 0; o < n && same == NONE && (*text || !empty_is_unique); o++)
            if (strcmp(*(char *const *)((const char *)p->nodes[o].member + offset), text) == 0)
                same = *(uint32_t *)((char *)&p->nodes[o] + to);
        *(uint32_t *)((char *)&p->nodes[n] + to) = same != NONE ? same : count++;
    }
    return count;
}

static void find_nodes(plan *p, const mr_view *view) {
    p->nodes = mr_alloc_array(view->member_count + 1u, sizeof(*p->nodes));
    for (uint32_t i = 0; i < view->member_count; i++) {
        const mr_member *m = view->members[i];
        if (m->role != MR_ROLE_MEMSHARD || m->state == MR_MEMBER_DRAINING || m->capacity_bytes == 0)
            continue;
        mr_sha256 *hash = mr_sha256_open();
        mr_sha256_add(hash, &p->model->digest, sizeof(p->model->digest));
        mr_sha256_add(hash, m->id, strlen(m->id));
        const mr_digest digest = mr_sha256_close(hash);
        node *n = &p->nodes[p->node_count++];
        *n = (node){.member = m,
                    .weight = (double)m->capacity_bytes,
                    .free_bytes = (int64_t)m->capacity_bytes,
                    .may_get = m->is_listed};
        memcpy(&n->seed, &digest, sizeof(n->seed));
    }
    p->host_count = number_labels(p, offsetof(mr_member, host), offsetof(node, host), false);
    p->zone_count = number_labels(p, offsetof(mr_member, zone), offsetof(node, zone), false);
    p->set_count = number_labels(p, offsetof(mr_member, set), offsetof(node, set), true);
    p->zones_count = p->zone_count >= p->replicas && p->replicas > 1;
    p->cost = mr_alloc_array(p->node_count + 1u, sizeof(*p->cost));
    p->order = mr_alloc_array(p->node_count + 1u, sizeof(*p->order));
}

/* --- why not ---------------------------------------------------------------------------------- */

static uint64_t gib_tenths(uint64_t bytes) {
    return bytes / (MR_GIB / 10);
}

static mr_status check_counts(const plan *p, mr_err *err) {
    const uint32_t wanted = p->options.allow_fewer_replicas ? 1 : p->replicas;
    uint32_t getters = 0;
    for (uint32_t n = 0; n < p->node_count; n++) getters += p->nodes[n].may_get;
    if (getters == 0)
        return mr_fail(err, MR_ERR_LIMIT,
                       "no memshard with a capacity takes cells: all drain or are gone");
    if (p->node_count < wanted)
        return mr_fail(err, MR_ERR_LIMIT, "%u replicas of a cell need %u memshards; there are %u",
                       wanted, wanted, p->node_count);
    if (p->host_count < wanted && !p->options.allow_same_host)
        return mr_fail(err, MR_ERR_LIMIT,
                       "%u replicas of a cell need %u hosts; the memshards lie on %u", wanted,
                       wanted, p->host_count);
    if (p->set_count < wanted)
        return mr_fail(err, MR_ERR_LIMIT,
                       "%u replicas of a cell need %u replica sets; the memshards have %u", wanted,
                       wanted, p->set_count);
    return MR_OK;
}

/* What must be there in all; before anything is placed. */
static mr_status check_room(const plan *p, mr_err *err) {
    const uint32_t wanted = p->options.allow_fewer_replicas ? 1 : p->replicas;
    uint64_t need = 0, largest = 0, room = 0, most = 0;
    for (uint32_t cell = 0; cell < p->cells; cell++) {
        const uint64_t bytes = bytes_of(p->model, cell);
        largest = bytes > largest ? bytes : largest;
        if (mr_add_overflows(need, bytes, &need) || need > INT64_MAX / MR_MAX_REPLICAS)
            return mr_fail(err, MR_ERR_RANGE, "the tables' bytes are beyond counting");
    }
    need *= wanted;
    for (uint32_t n = 0; n < p->node_count; n++) {
        uint64_t has = p->nodes[n].free_bytes > 0 ? (uint64_t)p->nodes[n].free_bytes : 0;
        for (uint32_t cell = 0; cell < p->cells && !p->nodes[n].is_overfull; cell++)
            if (has_current(p, cell, n)) has += bytes_of(p->model, cell);
        room += has;
        most = has > most ? has : most;
    }
    if (need > room)
        return mr_fail(err, MR_ERR_LIMIT,
                       "capacity: %u replicas of the tables need %llu bytes (%llu.%llu GiB); %u "
                       "memshards have room for %llu (%llu.%llu GiB)",
                       wanted, (unsigned long long)need, (unsigned long long)gib_tenths(need) / 10,
                       (unsigned long long)gib_tenths(need) % 10, p->node_count,
                       (unsigned long long)room, (unsigned long long)gib_tenths(room) / 10,
                       (unsigned long long)gib_tenths(room) % 10);
    if (largest > most)
        return mr_fail(err, MR_ERR_LIMIT,
                       "capacity: a cell has %llu bytes and no memshard has room for more than "
                       "%llu; a finer grid has smaller cells",
                       (unsigned long long)largest, (unsigned long long)most);
    return MR_OK;
}

/* The cell found no place: which rule stands in the way. */
static mr_status say_why(plan *p, uint32_t cell, mr_err *err) {
    const uint32_t count = chosen_count(p, cell);
    search s = {.p = p, .cell = cell, .ignores_room = true};
    sort_nodes(p, cell);
    if (search_from(&s, 0))
        return mr_fail(err, MR_ERR_LIMIT,
                       "capacity: cell %u finds room for %u of %u replicas; what is free lies "
                       "where replicas must not meet (%u hosts, %u zones, %u memshards)",
                       cell, count, p->replicas, p->host_count, p->zone_count, p->node_count);
    const bool zones = p->zones_count;
    p->zones_count = false;
    s = (search){.p = p, .cell = cell, .ignores_room = true};
    const bool without_zones = search_from(&s, 0);
    p->zones_count = zones;
    return mr_fail(err, MR_ERR_LIMIT,
                   "%s: cell %u finds %u of %u replicas on memshards that may stand side by side "
                   "(%u hosts, %u zones, %u sets)",
                   without_zones ? "zones" : "hosts and sets", cell, count, p->replicas,
                   p->host_count, p->zone_count, p->set_count);
}

/* --- all together ----------------------------------------------------------------------------- */

static mr_status fill_all(plan *p, uint32_t *missing, mr_err *err) {
    for (uint32_t cell = 0; cell < p->cells; cell++) {
        if (fill(p, cell)) continue;
        const uint32_t count = chosen_count(p, cell);
        if (!p->options.allow_fewer_replicas || count == 0) return say_why(p, cell, err);
        *missing += p->replicas - count;
    }
    return MR_OK;
}

/* In order of cost, so that the first of every cell is spread by weight too. */
static void order_replicas(plan *p, uint32_t cell) {
    uint32_t *list = chosen_of(p, cell);
    const uint32_t count = chosen_count(p, cell);
    for (uint32_t i = 1; i < count; i++)
        for (uint32_t j = i;
             j > 0 && cost_of(&p->nodes[list[j]], cell) < cost_of(&p->nodes[list[j - 1]], cell);
             j--) {
            const uint32_t n = list[j];
            list[j] = list[j - 1];
            list[j - 1] = n;
        }
}

static bool is_same(const plan *p, const mr_map_record *base) {
    if (!has_grid(base, p->model)) return false;
    for (uint32_t cell = 0; cell < p->cells; cell++) {
        const uint32_t count = chosen_count(p, cell);
        if (base->replica_first[cell + 1] - base->replica_first[cell] != count) return false;
        for (uint32_t i = 0; i < count; i++)
            if (!map_has(base, cell, p->nodes[chosen_of(p, cell)[i]].member->id)) return false;
    }
    return true;
}

static mr_status make_map(mr_placement *out, plan *p, uint64_t epoch, mr_err *err) {
    uint32_t *first = mr_alloc_array(p->cells + 1u, sizeof(*first));
    const char **ids = mr_alloc_array((size_t)p->cells * p->replicas, sizeof(*ids));
    uint32_t at = 0;
    for (uint32_t cell = 0; cell < p->cells; cell++) {
        const uint32_t *list = chosen_of(p, cell), count = chosen_count(p, cell);
        for (uint32_t i = 0; i < count; i++) ids[at++] = p->nodes[list[i]].member->id;
        first[cell + 1] = at;
    }
    mr_status status = mr_map_record_make(&out->map, &p->model->digest, epoch, p->model->grid_rows,
                                          p->model->grid_columns, first, ids, err);
    char *text = status == MR_OK ? mr_map_record_dump(out->map) : NULL;
    if (status == MR_OK && !text) {
        mr_map_record_free(out->map);
        out->map = NULL;
        status = mr_fail(err, MR_ERR_LIMIT,
                         "a map of %u cells with %u replicas is longer than a record may be (%d "
                         "bytes); a coarser grid has fewer cells",
                         p->cells, p->replicas, MR_MAX_RECORD_BYTES);
    }
    free(text);
    free(ids);
    free(first);
    return status;
}

/* Where fewer are allowed: not more than there are places that may hold one each. */
static void lower_replicas(mr_placement *out, plan *p) {
    uint32_t most = p->set_count < p->node_count ? p->set_count : p->node_count;
    if (!p->options.allow_same_host && p->host_count < most) most = p->host_count;
    if (most >= p->replicas) return; /* else check_counts saw that fewer are allowed */
    out->short_replicas = (p->replicas - most) * p->cells;
    p->replicas = most;
    p->zones_count = p->zone_count >= most && most > 1;
}

static void count_moves(mr_placement *out, const plan *p) {
    for (uint32_t cell = 0; cell < p->cells; cell++)
        for (uint32_t i = 0; i < chosen_count(p, cell); i++)
            if (!has_current(p, cell, chosen_of(p, cell)[i])) {
                out->moved_cells++;
                out->moved_bytes += bytes_of(p->model, cell);
            }
    out->cells_min = UINT32_MAX;
    for (uint32_t n = 0; n < p->node_count; n++) {
        const uint32_t load = p->nodes[n].load;
        out->cells_min = load < out->cells_min ? load : out->cells_min;
        out->cells_max = load > out->cells_max ? load : out->cells_max;
    }
    out->memshards = p->node_count;
}

static mr_status run(mr_placement *out, plan *p, const mr_view *view,
                     const mr_placement_model *models, uint32_t model_count, mr_err *err) {
    const mr_map_record *current = mr_view_map(view, &p->model->digest),
                        *next = mr_view_next_map(view, &p->model->digest);
    const mr_map_record *base = next ? next : current;
    uint64_t epoch = current ? current->epoch : 0;
    epoch = next && next->epoch > epoch ? next->epoch : epoch;
    find_nodes(p, view);
    mr_status status = check_counts(p, err);
    if (status != MR_OK) return status;
    lower_replicas(out, p);
    const size_t slots = (size_t)p->cells * MR_MAX_REPLICAS;
    p->current = mr_alloc_array(slots, sizeof(*p->current));
    memset(p->current, 0xff, slots * sizeof(*p->current)); /* NONE */
    p->chosen = mr_alloc_array((size_t)p->cells * p->replicas, sizeof(*p->chosen));
    memset(p->chosen, 0xff, (size_t)p->cells * p->replicas * sizeof(*p->chosen));
    charge_others(p, view, models, model_count);
    charge_current(p, current);
    status = check_room(p, err);
    if (status != MR_OK) return status;
    set_shares(p);
    keep(p, base);
    status = fill_all(p, &out->short_replicas, err);
    if (status != MR_OK) return status;
    balance(p);
    for (uint32_t cell = 0; cell < p->cells; cell++) order_replicas(p, cell);
    count_moves(out, p);
    return is_same(p, base) ? MR_OK : make_map(out, p, epoch + 1, err);
}

mr_status mr_placement_compute(mr_placement *out, const mr_view *view,
                               const mr_placement_model *models, uint32_t model_count,
                               uint32_t which, const mr_placement_options *options, mr_err *err) {
    const mr_placement_model *model = &models[which];
    const uint64_t cells = (uint64_t)model->grid_rows * model->grid_columns;
    *out = (mr_placement){0};
    if (cells < 1 || cells > MR_MAX_CELLS || model->replicas < 1 ||
        model->replicas > MR_MAX_REPLICAS)
        return mr_fail(err, MR_ERR_RANGE, "placement of %u replicas of a grid of %ux%u",
                       model->replicas, model->grid_rows, model->grid_columns);
    plan p = {
        .model = model, .options = *options, .cells = (uint32_t)cells, .replicas = model->replicas};
    const mr_status status = run(out, &p, view, models, model_count, err);
    free(p.nodes);
    free(p.current);
    free(p.chosen);
    free(p.cost);
    free(p.order);
    if (status != MR_OK) *out = (mr_placement){0};
    return status;
}

void mr_placement_free(mr_placement *placement) {
    mr_map_record_free(placement->map);
    *placement = (mr_placement){0};
}
