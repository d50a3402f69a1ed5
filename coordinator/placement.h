/* placement.h - which memshards hold which cells: from a view to the next map of a model. Pure
 * functions: no clock, no I/O, the same inputs give the same map.
 *
 * Rules, never broken: no two replicas of a cell in one process, on one host (unless allowed), in
 * one zone (where there are as many zones as replicas), in one replica set (label `set`); never
 * more bytes than a memshard's capacity, counting all models and, while a map is being replaced,
 * what the current map still needs there; nothing to members that drain or are not listed any more
 * (the latter keep what they have).
 * Aims, in this order: keep cells where they are; give every memshard its share by capacity, within
 * one cell; among equals, highest random weight (weighted rendezvous hashing), so that the same
 * cluster gets the same map whatever order its members came in. */
#ifndef MR_COORDINATOR_PLACEMENT_H
#define MR_COORDINATOR_PLACEMENT_H
#include "common/net/view.h"

typedef struct {
    mr_digest digest;
    uint32_t grid_rows, grid_columns;
    uint32_t replicas;
    uint64_t table_bytes;       /* of one copy of all cells; even over them unless cell_bytes */
    const uint64_t *cell_bytes; /* [cells], borrowed; or NULL */
} mr_placement_model;

typedef struct {
    bool allow_same_host;      /* replicas may share a host: a cluster on one machine */
    bool allow_fewer_replicas; /* as many as there is room for, at least one */
} mr_placement_options;

typedef struct {
    mr_map_record *map;   /* owned; NULL: the map (next, else current) is as it should be */
    uint32_t moved_cells; /* (cell, member) pairs that the current map lacks: to be loaded */
    uint64_t moved_bytes;
    uint32_t short_replicas;       /* missing ones, where fewer are allowed */
    uint32_t cells_min, cells_max; /* held by the memshards that take part */
    uint32_t memshards;            /* that take part */
} mr_placement;

/* The next map of models[which]. models: all that share the memshards; of others that have a map in
 * the view, their holdings are counted. The epoch is one more than the highest of this digest.
 * MR_ERR_LIMIT: impossible; the sentence says which limit: capacity, memshards, hosts, zones, sets.
 * On failure *out is empty. */
mr_status mr_placement_compute(mr_placement *out, const mr_view *view,
                               const mr_placement_model *models, uint32_t model_count,
                               uint32_t which, const mr_placement_options *options, mr_err *err);
void mr_placement_free(mr_placement *placement);

#endif
