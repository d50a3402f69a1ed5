/* models.c - see models.h. */
#include "coordinator/models.h"

#include "common/base/limits.h"
#include "common/base/mem.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct mr_models {
    pthread_mutex_t lock; /* guards the table */
    mr_serving *servings[MR_MAX_MODELS];
    uint32_t count;
};

mr_serving *mr_serving_new(const char *name, const char *version, const mr_digest *digest,
                           mr_served *served) {
    mr_serving *s = mr_alloc(sizeof(*s));
    s->name = mr_strdup(name);
    s->version = mr_strdup(version ? version : "");
    if (digest) s->digest = *digest;
    s->served = s->owned = served;
    s->references = 1;
    return s;
}

mr_serving *mr_serving_borrow(const mr_served *served) {
    mr_serving *s = mr_alloc(sizeof(*s));
    s->name = mr_strdup(served->name);
    s->version = mr_strdup("");
    s->served = served;
    s->references = 1;
    return s;
}

mr_serving *mr_serving_hold(mr_serving *serving) {
    if (serving) __atomic_fetch_add(&serving->references, 1, __ATOMIC_RELAXED);
    return serving;
}

void mr_serving_release(mr_serving *serving) {
    if (!serving || __atomic_sub_fetch(&serving->references, 1, __ATOMIC_ACQ_REL) > 0) return;
    mr_served_close(serving->owned);
    free(serving->name);
    free(serving->version);
    free(serving);
}

mr_models *mr_models_open(void) {
    mr_models *models = mr_alloc(sizeof(*models));
    pthread_mutex_init(&models->lock, NULL);
    return models;
}

void mr_models_close(mr_models *models) {
    if (!models) return;
    mr_models_set(models, NULL, 0);
    pthread_mutex_destroy(&models->lock);
    free(models);
}

void mr_models_set(mr_models *models, mr_serving *const *servings, uint32_t count) {
    mr_serving *old[MR_MAX_MODELS];
    assert(count <= MR_MAX_MODELS);
    for (uint32_t i = 0; i < count; i++) mr_serving_hold(servings[i]);
    pthread_mutex_lock(&models->lock);
    const uint32_t old_count = models->count;
    memcpy(old, models->servings, sizeof(old));
    if (count > 0) memcpy(models->servings, servings, count * sizeof(*servings));
    models->count = count;
    pthread_mutex_unlock(&models->lock);
    for (uint32_t i = 0; i < old_count; i++) mr_serving_release(old[i]);
}

mr_serving *mr_models_find(mr_models *models, const char *name) {
    mr_serving *found = NULL;
    pthread_mutex_lock(&models->lock);
    if (!name && models->count == 1) found = models->servings[0];
    for (uint32_t i = 0; name && i < models->count; i++)
        if (strcmp(models->servings[i]->name, name) == 0) found = models->servings[i];
    mr_serving_hold(found);
    pthread_mutex_unlock(&models->lock);
    return found;
}

uint32_t mr_models_list(mr_models *models, mr_serving *out[MR_MAX_MODELS]) {
    pthread_mutex_lock(&models->lock);
    const uint32_t count = models->count;
    for (uint32_t i = 0; i < count; i++) out[i] = mr_serving_hold(models->servings[i]);
    pthread_mutex_unlock(&models->lock);
    return count;
}
