/* view.h - one snapshot of a cluster: its members, models, table maps and owners.
 *
 * A view is what a process knows at one moment. It is built by a cluster home (cluster.h) out of
 * records, each a small JSON text: from etcd keys, or from one static file. Records are untrusted
 * input; the parsers here are the only readers, and a record that is not good is refused with one
 * sentence and left out of the view (the last good one stays).
 *
 *   members/ROLE/ID   a process: addresses, labels, capacity, state, what it holds
 *   models/NAME       versions of a model, and which one is active
 *   maps/DIGEST       epoch, grid, and which memshards hold each cell of a model's tables
 *   owners/GROUP      which coordinator schedules a worker group, fenced by an epoch
 *
 * Threads: a published view never changes and may be read anywhere; references are counted
 * atomically.
 * Memory: records own their texts; mr_view_release frees the last reference. */
#ifndef MR_NET_VIEW_H
#define MR_NET_VIEW_H
#include "common/base/hash.h"
#include "common/base/status.h"
#include "proto/wire.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MR_ID_BYTES_MAX = 64, MR_LABEL_BYTES_MAX = 128, MR_SOURCE_BYTES_MAX = 4096 };

typedef enum { MR_MEMBER_LOADING = 1, MR_MEMBER_READY = 2, MR_MEMBER_DRAINING = 3 } mr_member_state;

/* References beside the first; zero in a record made by hand. Only view*.c touches it. */
typedef atomic_uint mr_record_refs;

/* Cells of one model that a memshard holds, ready to answer. */
typedef struct {
    mr_digest digest;
    uint32_t grid_rows, grid_columns;
    uint32_t *cells; /* [cell_count] ascending */
    uint32_t cell_count;
    uint64_t bytes;
} mr_holding;

/* A pipeline stage that a worker serves. */
typedef struct {
    mr_digest digest;
    char *group;            /* name of its worker group: unique for one pipeline */
    uint32_t stage, stages; /* stage < stages */
    uint32_t block_first, block_count;
} mr_stage_record;

typedef struct {
    char *id; /* [A-Za-z0-9._-]{1,64}, unique within the role */
    mr_role role;
    mr_member_state state;
    bool is_listed;      /* false: its record is gone, but nobody has found it dead */
    char *address;       /* data plane: "host:port" or "unix:PATH"; a coordinator's: NULL */
    char *ucx;           /* data plane over UCX: "host:port", or NULL */
    char *control;       /* gRPC "host:port", or NULL */
    char *http;          /* coordinators: "host:port", or NULL */
    char *machine;       /* equal for processes that can share memory; never empty */
    char *host, *zone;   /* failure domains by label; host is never empty, zone may be */
    char *set;           /* replica-set label; may be empty */
    char *numeric_class; /* workers; else empty */
    bool has_verbs;
    uint64_t capacity_bytes; /* memshards: for tables, all tiers */
    uint64_t incarnation;    /* Unix time of the start in ms: a restart is told from a blip */
    uint32_t wire_min, wire_max;
    uint64_t map_epoch;   /* workers: the lowest map epoch any step under way uses; 0: none */
    mr_holding *holdings; /* [holding_count]; memshards */
    uint32_t holding_count;
    mr_stage_record *stages; /* [stage_count]; workers, one for each model loaded */
    uint32_t stage_count;
    mr_record_refs refs;
} mr_member;

typedef struct {
    char *version; /* [A-Za-z0-9._-]{1,64} */
    mr_digest digest;
    char *source; /* a model source: directory, URL, or "peer" */
    uint32_t grid_rows, grid_columns;
    uint32_t replicas;
    uint64_t *table_bytes_of_cell; /* NULL; room for planning, never sent */
} mr_model_version;

typedef struct {
    char *name; /* as versions */
    uint64_t epoch;
    char *active;               /* a version's name */
    char *previous;             /* for a rollback; NULL: none */
    mr_model_version *versions; /* [version_count] */
    uint32_t version_count;
    mr_record_refs refs;
} mr_model_record;

/* Which memshards hold which cell. replica_first[c] .. replica_first[c + 1] index `replicas`. */
typedef struct {
    mr_digest digest;
    uint64_t epoch; /* >= 1; a lower one than was seen is refused */
    uint32_t grid_rows, grid_columns;
    uint32_t *replica_first; /* [cells + 1] */
    char **replicas;         /* member ids; every cell has at least one, none twice; the pointers
                              * are owned here, the texts lie in names */
    char **names;            /* [name_count] ascending: every id once */
    uint32_t name_count;
    mr_record_refs refs;
} mr_map_record;

typedef struct {
    char *group;
    char *coordinator; /* member id */
    uint64_t epoch;    /* >= 1 */
    mr_record_refs refs;
} mr_owner_record;

typedef struct {
    uint64_t number;  /* grows with every change this process saw */
    int64_t revision; /* etcd's; 0 for a static file */
    char *cluster;
    char *leader;          /* coordinator id; NULL: none */
    uint64_t leader_epoch; /* grows with every election: fences the orders of an older leader */
    mr_member **members;   /* [member_count] by role, then id */
    uint32_t member_count;
    mr_model_record **models;
    uint32_t model_count;
    mr_map_record **maps;      /* current: one for each digest */
    mr_map_record **next_maps; /* being loaded: at most one for each digest */
    uint32_t map_count, next_map_count;
    mr_owner_record **owners;
    uint32_t owner_count;
    mr_record_refs refs;
} mr_view;

/* Views and their records are counted: a record is shared by all views that have it. */
const mr_view *mr_view_retain(const mr_view *view);
void mr_view_release(const mr_view *view); /* NULL is fine */

const mr_member *mr_view_member(const mr_view *view, mr_role role, const char *id); /* or NULL */
const mr_map_record *mr_view_map(const mr_view *view, const mr_digest *digest);
const mr_map_record *mr_view_next_map(const mr_view *view, const mr_digest *digest);
const mr_model_record *mr_view_model(const mr_view *view, const char *name);
const mr_owner_record *mr_view_owner(const mr_view *view, const char *group);

bool mr_member_holds(const mr_member *member, const mr_digest *digest, uint32_t cell);

/* --- records ----------------------------------------------------------------------------------
 * As text and back. what: how the text is called in sentences. A parsed record belongs to the
 * caller, with one reference; put into a view it goes over to the view. Texts have at most
 * MR_MAX_RECORD_BYTES; unknown keys are ignored if the record's schema is newer than ours, else
 * refused.
 * A dump is owned by the caller; it is NULL where the record cannot be written: longer than
 * MR_MAX_RECORD_BYTES, not UTF-8, or a number above 2^63 - 1. What else is wrong with a record made
 * by hand shows when it is read: the copies check by writing and reading again. They keep
 * is_listed, which is no part of the text. */
mr_status mr_member_parse(mr_member **out, const char *text, size_t bytes, const char *what,
                          mr_err *err);
char *mr_member_dump(const mr_member *member);
mr_status mr_member_copy(mr_member **out, const mr_member *member, mr_err *err);
void mr_member_free(mr_member *member); /* gives one reference back; NULL is fine; so below */
mr_status mr_model_record_parse(mr_model_record **out, const char *text, size_t bytes,
                                const char *what, mr_err *err);
char *mr_model_record_dump(const mr_model_record *record);
mr_status mr_model_record_copy(mr_model_record **out, const mr_model_record *record, mr_err *err);
void mr_model_record_free(mr_model_record *record);
mr_status mr_map_record_parse(mr_map_record **out, const char *text, size_t bytes, const char *what,
                              mr_err *err);
char *mr_map_record_dump(const mr_map_record *record);
void mr_map_record_free(mr_map_record *record);
mr_status mr_owner_record_parse(mr_owner_record **out, const char *text, size_t bytes,
                                const char *what, mr_err *err);
char *mr_owner_record_dump(const mr_owner_record *record);
void mr_owner_record_free(mr_owner_record *record);

/* A map out of parts, checked as a parsed one: replica_first[cells + 1] and replicas as in the
 * record. All is copied. */
mr_status mr_map_record_make(mr_map_record **out, const mr_digest *digest, uint64_t epoch,
                             uint32_t grid_rows, uint32_t grid_columns,
                             const uint32_t *replica_first, const char *const *replicas,
                             mr_err *err);

/* One more reference to a record, for another view or another thread. */
const mr_member *mr_member_retain(const mr_member *member);
const mr_model_record *mr_model_record_retain(const mr_model_record *record);
const mr_map_record *mr_map_record_retain(const mr_map_record *record);
const mr_owner_record *mr_owner_record_retain(const mr_owner_record *record);

/* Pieces of records, for options and messages that carry the same things. */
mr_status mr_id_check(const char *id, const char *what, mr_err *err); /* 1..64, see mr_member */
mr_status mr_label_check(const char *label, const char *what, mr_err *err); /* may be empty */
/* An address others connect to: mr_address_check, and no port 0, no "any" host, no multicast, no
 * link-local one (169.254.169.254 answers secrets to whoever asks). Unix sockets where allowed. */
mr_status mr_peer_address_check(const char *address, bool may_be_unix, mr_err *err);
/* Where a model comes from: a directory, "peer", or a URL of http, https or s3 whose host is as
 * above. Which of them can be read is for its reader to say. */
mr_status mr_source_check(const char *source, mr_err *err);
const char *mr_member_state_name(mr_member_state state); /* "ready" */

/* --- building ---------------------------------------------------------------------------------
 * What cluster homes do: start from the last view (or NULL: an empty one), put and remove records,
 * publish. A builder belongs to one thread. Unchanged records are shared with the old view.
 *
 *     mr_view_builder *b = mr_view_builder_open(old, "default");
 *     status = mr_view_put_member(b, member, &err);        takes the reference, also on failure
 *     const mr_view *view = mr_view_publish(b);            frees b; the caller has one reference
 *
 * Refused: a map, model or owner whose epoch is lower than the one in the builder (MR_ERR_STALE),
 * or is equal and says something else (MR_ERR_MISMATCH); more records than limits.h allows
 * (MR_ERR_LIMIT). What was there stays then. A next map needs an epoch above the current map's. */
typedef struct mr_view_builder mr_view_builder;
mr_view_builder *mr_view_builder_open(const mr_view *from, const char *cluster);
void mr_view_builder_close(mr_view_builder *builder);     /* drops all of it; NULL is fine */
const mr_view *mr_view_publish(mr_view_builder *builder); /* number is one more than from's */

mr_status mr_view_put_member(mr_view_builder *b, mr_member *member, mr_err *err);
mr_status mr_view_put_model(mr_view_builder *b, mr_model_record *record, mr_err *err);
/* A current map drops a next one of the same digest whose epoch is not higher. */
mr_status mr_view_put_map(mr_view_builder *b, mr_map_record *record, mr_err *err);
mr_status mr_view_put_next_map(mr_view_builder *b, mr_map_record *record, mr_err *err);
mr_status mr_view_put_owner(mr_view_builder *b, mr_owner_record *record, mr_err *err);
/* true: it was there. */
bool mr_view_remove_member(mr_view_builder *b, mr_role role, const char *id);
bool mr_view_remove_model(mr_view_builder *b, const char *name);
bool mr_view_remove_map(mr_view_builder *b, const mr_digest *digest);
bool mr_view_remove_next_map(mr_view_builder *b, const mr_digest *digest);
bool mr_view_remove_owner(mr_view_builder *b, const char *group);
bool mr_view_set_listed(mr_view_builder *b, mr_role role, const char *id, bool is_listed);
void mr_view_set_leader(mr_view_builder *b, const char *id, uint64_t epoch); /* NULL: none */
void mr_view_set_revision(mr_view_builder *b, int64_t revision);

#endif
