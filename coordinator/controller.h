/* controller.h - what the leader does next: a pure state machine over views.
 *
 * Called about once a second and after every new view, it compares what should be (models and their
 * versions, replicas, members and their labels) with what is (maps, holdings) and says what to do:
 * publish a next map, order loads, switch, order unloads. It does nothing by itself: conductor.c
 * carries the actions out, the simulation (tests/sim) runs the same code over its own cluster.
 *
 * Everything can be interrupted at any point. A new leader starts from the view alone: the next map
 * lies in etcd, loading what is loaded is ready at once, and unloading names only cells that no map
 * gives to the member.
 *
 * A memshard whose record is gone and that does not answer for replace_after_ms is reported dead
 * and replaced; until then its cells stay where they are: a restart must not move terabytes.
 *
 * Threads: one owner. Memory: actions are owned by the list until the next decide. */
#ifndef MR_COORDINATOR_CONTROLLER_H
#define MR_COORDINATOR_CONTROLLER_H
#include "common/net/view.h"

typedef struct mr_controller mr_controller;

typedef struct {
    uint32_t replace_after_ms; /* 0: 30000 */
    uint32_t unload_after_ms;  /* after a switch, before old cells go; 0: 5000 */
    bool allow_same_host;      /* replicas may share a machine: all of a test cluster is one */
} mr_controller_options;

typedef enum {
    MR_ACT_PUT_NEXT_MAP = 1, /* map */
    MR_ACT_SWITCH_MAP,       /* digest, epoch */
    MR_ACT_DELETE_MAP,       /* digest: its model is gone */
    MR_ACT_LOAD,             /* member, digest, version, cells */
    MR_ACT_UNLOAD,           /* member, digest, cells (none: all) */
    MR_ACT_REPORT_DEAD,      /* member, role */
} mr_action_kind;

typedef struct {
    mr_action_kind kind;
    mr_digest digest;
    uint64_t epoch;
    mr_map_record *map;
    mr_role role;
    char *member;
    const mr_model_version *version; /* borrowed from the view; LOAD */
    uint32_t grid_rows, grid_columns;
    uint32_t *cells;
    uint32_t cell_count;
} mr_action;

typedef struct {
    const mr_action *items;
    uint32_t count;
    /* What cannot be done, one sentence each, for logs and status: "model demo: 3 replicas need 3
     * hosts, there are 2". */
    const char *const *complaints;
    uint32_t complaint_count;
} mr_actions;

typedef struct {
    const mr_view *view;
    int64_t now_ns;
    /* Seconds since a listed or unlisted member last answered us; negative: never asked yet. */
    double (*silent_s)(void *context, const mr_member *member);
    /* Bytes of all tables of a version; 0: it has none; UINT64_MAX: not known yet, wait. */
    uint64_t (*table_bytes)(void *context, const mr_model_version *version);
    void *context;
} mr_controller_input;

mr_controller *mr_controller_open(const mr_controller_options *options);
void mr_controller_close(mr_controller *controller); /* NULL is fine */

/* The list is valid until the next call. */
const mr_actions *mr_controller_decide(mr_controller *controller, const mr_controller_input *input);

#endif
