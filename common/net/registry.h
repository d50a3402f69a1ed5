/* registry.h - who serves what, as a static file: one JSON object, written once by `memrack up` or
 * by hand, read by every process of the cluster.
 *
 *   {"cluster": "demo", "model": "models/demo", "digest": "<64 hex digits>", "grid": "2x1",
 *    "memshards": [{"id": 0, "address": "127.0.0.1:7001"}, ...],
 *    "workers": [...], "coordinators": [...]}
 *
 * Ids count from 0 without gaps, in any order; an address may appear once. Unknown keys are
 * refused: a misspelt one would otherwise be a member that nobody finds.
 * Threads: plain values.
 * Memory: all owned; mr_registry_free. */
#ifndef MR_NET_REGISTRY_H
#define MR_NET_REGISTRY_H
#include "common/base/hash.h"
#include "common/base/status.h"

#include <stddef.h>
#include <stdint.h>

typedef struct {
    char **addresses; /* [count], by id */
    uint32_t count;
} mr_members;

typedef struct {
    char *cluster, *model, *grid;
    mr_digest digest;
    mr_members memshards, workers, coordinators;
} mr_registry;

/* what: how the text is called in sentences. *out is zeroed on failure. */
mr_status mr_registry_parse(mr_registry *out, const char *text, size_t bytes, const char *what,
                            mr_err *err);
mr_status mr_registry_load(mr_registry *out, const char *path, mr_err *err);
/* Written beside path, then renamed over it: a reader sees the old file or the new one. */
mr_status mr_registry_save(const mr_registry *registry, const char *path, mr_err *err);
void mr_registry_free(mr_registry *registry);

void mr_members_add(mr_members *members, const char *address); /* copied; its id is the old count */

#endif
