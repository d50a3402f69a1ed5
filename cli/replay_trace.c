/* replay_trace.c - a recording is made sure of before anything is asked, or made up. */
#include "cli/replay.h"

#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/model/model.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t next_random(uint64_t *state) {
    uint64_t x = *state += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* --- checking --------------------------------------------------------------------------------- */

static int by_row(const void *a, const void *b) {
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static uint64_t count_distinct(uint32_t *room, const uint32_t *row, size_t count) {
    uint64_t distinct = 0;
    memcpy(room, row, count * sizeof(*row));
    qsort(room, count, sizeof(*room), by_row);
    for (size_t i = 0; i < count; i++) distinct += i == 0 || room[i] != room[i - 1];
    return distinct;
}

static mr_status check_one(const mr_recorded *r, uint64_t number, const mr_model *model,
                           mr_err *err) {
    const unsigned long long n = number;
    if (r->layer >= mr_model_memory_count(model))
        return mr_fail(err, MR_ERR_RANGE, "record %llu is of memory layer %u; the model has %u", n,
                       r->layer, mr_model_memory_count(model));
    const mr_memory_layer *layer = mr_model_memory(model, r->layer);
    const uint64_t rows = mr_model_table(model, layer->table)->rows;
    if (r->entries != layer->entries)
        return mr_fail(err, MR_ERR_RANGE, "record %llu has %u entries a token; layer %u has %u", n,
                       r->entries, r->layer, layer->entries);
    for (size_t j = 0; j < (size_t)r->tokens * r->entries; j++) {
        if (r->row[j] >= rows)
            return mr_fail(err, MR_ERR_RANGE, "record %llu asks for row %u of a table of %llu", n,
                           r->row[j], (unsigned long long)rows);
        if (r->slot && r->slot[j] >= layer->slots_out)
            return mr_fail(err, MR_ERR_RANGE, "record %llu has slot %u; layer %u has %u", n,
                           r->slot[j], r->layer, layer->slots_out);
    }
    return MR_OK;
}

mr_status mr_replay_check(mr_replay_facts *out, mr_recording *recording, const mr_model *model,
                          const mr_digest *digest, mr_err *err) {
    const uint64_t ours = mr_recorded_model(digest);
    bool seen[MR_MAX_LAYERS] = {0}, is_end = false;
    uint32_t *room = NULL;
    size_t room_count = 0;
    mr_recorded r;
    mr_status status = MR_OK;
    *out = (mr_replay_facts){0};
    for (;;) {
        status = mr_recording_next(recording, &r, &is_end, err);
        if (status != MR_OK || is_end) break;
        out->dropped += r.dropped;
        if (r.model != ours) {
            out->others++;
            continue;
        }
        status = check_one(&r, recording->records - 1, model, err);
        if (status != MR_OK) break;
        const size_t all = (size_t)r.tokens * r.entries;
        if (all > room_count) room = mr_realloc_array(room, room_count = all, sizeof(*room));
        out->retrievals++;
        out->rows += all;
        out->tokens += r.tokens;
        out->distinct += count_distinct(room, r.row, all);
        out->layers += !seen[r.layer];
        seen[r.layer] = true;
        if (r.at_ns > out->span_ns) out->span_ns = r.at_ns;
    }
    free(room);
    mr_recording_rewind(recording);
    if (status == MR_OK && out->retrievals == 0)
        status =
            mr_fail(err, MR_ERR_MISMATCH,
                    out->others ? "the recording has no retrieval of this model, %llu of others"
                                : "the recording is empty (%llu retrievals)",
                    (unsigned long long)out->others);
    return status;
}

/* --- making one up ---------------------------------------------------------------------------- */

/* A rank by Zipf's law of any skew >= 0, 0 the most frequent: the inverse of the continuous law's
 * distribution, which differs from the discrete one in the first few ranks only. */
static uint64_t zipf(double skew, uint64_t count, uint64_t *state) {
    const double u = (double)(next_random(state) >> 11) * 0x1p-53, n = (double)count;
    double rank;
    if (fabs(skew - 1) < 1e-9)
        rank = exp(u * log(n + 1));
    else
        rank = pow(u * (pow(n + 1, 1 - skew) - 1) + 1, 1 / (1 - skew));
    const uint64_t found = rank < 1 ? 0 : (uint64_t)rank - 1;
    return found < count ? found : count - 1;
}

/* Ranks lie scattered over the table, in another order for every layer. */
static uint64_t stride_of(uint64_t rows, uint64_t *state) {
    for (;;) {
        const uint64_t stride = next_random(state) % rows;
        uint64_t a = rows, b = stride;
        while (b) {
            const uint64_t c = a % b;
            a = b;
            b = c;
        }
        if (a == 1) return stride;
    }
}

typedef struct {
    double skew;
    uint64_t tokens;
} made_up;

static mr_status parse_spec(made_up *out, const char *spec, mr_err *err) {
    char *end;
    const char *rest = spec + 5;
    if (strncmp(spec, "zipf:", 5) != 0) goto refuse;
    out->skew = strtod(rest, &end);
    if (end == rest || *end != ':' || !(out->skew >= 0 && out->skew <= 4)) goto refuse;
    rest = end + 1;
    if (*rest < '0' || *rest > '9') goto refuse;
    out->tokens = strtoull(rest, &end, 10);
    if (*end == 0 && out->tokens >= 1 && out->tokens <= 1000000000) return MR_OK;
refuse:
    return mr_fail(err, MR_ERR_ARGUMENT,
                   "--make '%.40s': zipf:SKEW:TOKENS is wanted, skew 0 (even) to 4 (zipf:0.8:1000)",
                   spec);
}

typedef struct {
    uint32_t *row;
    uint8_t *slot, *bytes;
    uint64_t *stride; /* [layers] */
    uint64_t state;
} making;

static bool make_one(FILE *file, making *m, const mr_model *model, mr_recorded *r, double skew) {
    const mr_memory_layer *layer = mr_model_memory(model, r->layer);
    const uint64_t rows = mr_model_table(model, layer->table)->rows;
    for (size_t j = 0; j < (size_t)r->tokens * r->entries; j++) {
        const uint64_t rank = zipf(skew, layer->reach_rows, &m->state);
        const uint64_t index =
            (uint64_t)((unsigned __int128)rank * m->stride[r->layer] % layer->reach_rows);
        m->row[j] = (uint32_t)((index + layer->row_offset) % rows);
        m->slot[j] = (uint8_t)(next_random(&m->state) % layer->slots_out);
    }
    r->row = m->row;
    r->slot = layer->slots_out > 1 ? m->slot : NULL;
    const size_t bytes = mr_record_bytes(r);
    mr_record_encode(m->bytes, r);
    return fwrite(m->bytes, 1, bytes, file) == bytes;
}

static bool make_all(FILE *file, making *m, const mr_model *model, const made_up *spec,
                     uint32_t batch, mr_recorded r) {
    uint8_t header[MR_RECORDING_HEADER_BYTES];
    mr_recording_header(header);
    bool good = fwrite(header, 1, sizeof(header), file) == sizeof(header);
    for (uint64_t at = 0; good && at < spec->tokens; at += batch) {
        r.tokens = spec->tokens - at < batch ? (uint32_t)(spec->tokens - at) : batch;
        for (r.layer = 0; good && r.layer < mr_model_memory_count(model); r.layer++) {
            r.entries = mr_model_memory(model, r.layer)->entries;
            r.at_ns += 1000000; /* as if each took a millisecond */
            good = make_one(file, m, model, &r, spec->skew);
        }
    }
    return good;
}

mr_status mr_replay_make(const char *path, const char *spec, uint32_t batch, uint64_t seed,
                         const mr_model *model, const mr_digest *digest, mr_err *err) {
    made_up want = {0};
    const uint32_t layers = mr_model_memory_count(model);
    uint32_t entries = 0;
    mr_status status = parse_spec(&want, spec, err);
    if (status != MR_OK) return status;
    FILE *file = fopen(path, "wxe");
    if (!file) return mr_fail(err, MR_ERR_IO, "%s: %s", path, strerror(errno));
    for (uint32_t i = 0; i < layers; i++)
        if (mr_model_memory(model, i)->entries > entries)
            entries = mr_model_memory(model, i)->entries;
    const size_t all = (size_t)batch * entries;
    making m = {.row = mr_alloc_array(all, sizeof(uint32_t)),
                .slot = mr_alloc_array(all, 1),
                .bytes = mr_alloc(sizeof(mr_record_head) + 5 * all + 8),
                .stride = mr_alloc_array(layers, sizeof(uint64_t)),
                .state = seed};
    for (uint32_t i = 0; i < layers; i++)
        m.stride[i] = stride_of(mr_model_memory(model, i)->reach_rows, &m.state);
    const mr_recorded first = {.model = mr_recorded_model(digest)};
    const bool good = make_all(file, &m, model, &want, batch, first);
    if (fclose(file) != 0 || !good)
        status = mr_fail(err, MR_ERR_IO, "%s: %s", path, strerror(errno));
    free(m.row);
    free(m.slot);
    free(m.bytes);
    free(m.stride);
    return status;
}
