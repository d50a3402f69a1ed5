/* models.h - which models are served under which names, and the versions requests are pinned to.
 *
 * A serving is one version of a model: its name, the digest that worker groups state, and what the
 * front needs of it (tokenizer, chat template). Everyone who uses one holds it, so a version that
 * is replaced lives on until its last request has ended. The table maps names to the active ones
 * and is changed as a whole: a request sees the old table or the new one. Threads: any. */
#ifndef MR_COORDINATOR_MODELS_H
#define MR_COORDINATOR_MODELS_H
#include "common/base/limits.h"
#include "coordinator/served.h"

struct mr_serving {
    char *name;              /* what clients ask for */
    char *version;           /* may be empty */
    mr_digest digest;        /* zero: any */
    const mr_served *served; /* never NULL */
    mr_served *owned;        /* the same, or NULL: borrowed */
    unsigned references;     /* atomic */
};

/* served is taken over; version and digest may be NULL. */
mr_serving *mr_serving_new(const char *name, const char *version, const mr_digest *digest,
                           mr_served *served);
/* Of any digest, under its own name; served is borrowed until the last holder is gone. */
mr_serving *mr_serving_borrow(const mr_served *served);
mr_serving *mr_serving_hold(mr_serving *serving);
void mr_serving_release(mr_serving *serving); /* NULL is fine */

typedef struct mr_models mr_models;
mr_models *mr_models_open(void);
void mr_models_close(mr_models *models); /* NULL is fine */

/* Replaces the table; each serving is held by it. Names are unique; at most MR_MAX_MODELS. */
void mr_models_set(mr_models *models, mr_serving *const *servings, uint32_t count);
/* Held for the caller; NULL: there is none of that name. name NULL: the only one, if there is one.
 */
mr_serving *mr_models_find(mr_models *models, const char *name);
/* All of them, held for the caller, in the order they were given; returns how many. */
uint32_t mr_models_list(mr_models *models, mr_serving *out[MR_MAX_MODELS]);

#endif
