/* stage.c - see stage.h. */
#include "worker/stage.h"

#include "common/base/clock.h"
#include "common/base/mem.h"

#include <stdlib.h>
#include <string.h>

/* One pending slot, overwritten by a new reading even when the old one is due at that very block.
 */
void mr_stage_schedule(int32_t *at, bool *added, const mr_model *model) {
    const uint32_t blocks = mr_model_config(model)->n_layers, count = mr_model_memory_count(model);
    int32_t slot = -1;
    for (uint32_t i = 0; i < count; i++) added[i] = false;
    for (uint32_t b = 0; b < blocks; b++) {
        at[b] = -1;
        for (uint32_t i = 0; i < count; i++)
            if (mr_model_memory(model, i)->source == b) at[b] = (int32_t)i;
        if (at[b] >= 0) slot = at[b];
        if (slot >= 0 && mr_model_memory(model, (uint32_t)slot)->destination == b)
            added[slot] = true;
    }
}

/* Schedules are small: made where they are asked for. */
typedef struct {
    int32_t *at;
    bool *added;
} schedule;

static schedule make_schedule(const mr_model *model) {
    const schedule s = {
        mr_alloc_array(mr_model_config(model)->n_layers, sizeof(int32_t)),
        mr_alloc_array(mr_model_memory_count(model) + 1ull, sizeof(bool)),
    };
    mr_stage_schedule(s.at, s.added, model);
    return s;
}

static void free_schedule(schedule *s) {
    free(s->at);
    free(s->added);
}

static int32_t pending_at(const mr_model *model, const schedule *s, uint32_t block) {
    for (uint32_t i = 0; i < mr_model_memory_count(model); i++) {
        const mr_memory_layer *l = mr_model_memory(model, i);
        if (s->added[i] && l->source < block && l->destination >= block) return (int32_t)i;
    }
    return -1;
}

int32_t mr_stage_pending(const mr_model *model, uint32_t block) {
    if (block >= mr_model_config(model)->n_layers) return -1;
    schedule s = make_schedule(model);
    const int32_t layer = pending_at(model, &s, block);
    free_schedule(&s);
    return layer;
}

bool mr_stage_reads_memory(const mr_model *model, mr_block_range range) {
    for (uint32_t i = 0; i < mr_model_memory_count(model); i++)
        if (mr_range_has(range, mr_model_memory(model, i)->source)) return true;
    return false;
}

/* --- cutting ---------------------------------------------------------------------------------- */

typedef struct {
    uint32_t blocks, stages;
    uint64_t *before; /* [blocks + 1] cost of the blocks before */
    bool *inside;     /* [blocks + 1] a cut before this block lies inside a skip window */
    /* [stages + 1][blocks + 1]: the best way to cut the blocks before into so many stages */
    uint32_t *cuts_inside, *last_first;
    uint64_t *slowest;
} cutting;

static void cost_blocks(cutting *c, const mr_model *model) {
    schedule s = make_schedule(model);
    uint64_t *bytes = mr_alloc_array(c->blocks, sizeof(*bytes));
    mr_weights_by_block(bytes, model);
    for (uint32_t i = 0; i < mr_model_memory_count(model); i++) {
        const mr_memory_layer *l = mr_model_memory(model, i);
        const mr_table_shape *t = mr_model_table(model, l->table);
        if (s.added[i]) /* selection, packing and adding up, in bytes moved */
            bytes[l->source] += 64ull * l->entries * l->cores + 16ull * l->slots_out * t->width;
    }
    for (uint32_t b = 0; b < c->blocks; b++) {
        c->before[b + 1] = c->before[b] + bytes[b];
        c->inside[b] = pending_at(model, &s, b) >= 0;
    }
    free(bytes);
    free_schedule(&s);
}

/* Cuts so that no stage costs more than `most`: fewest cuts inside windows first (where they
 * count), then the cheapest slowest stage. Returns that stage's cost; UINT64_MAX: there is no such
 * cut. */
static uint64_t find_cut(cutting *c, uint64_t most, bool windows_count) {
    const size_t width = c->blocks + 1ull;
    for (size_t i = 0; i < (c->stages + 1ull) * width; i++) c->slowest[i] = UINT64_MAX;
    c->slowest[0] = 0;
    c->cuts_inside[0] = 0;
    for (uint32_t s = 1; s <= c->stages; s++)
        for (uint32_t end = s; end <= c->blocks; end++)
            for (uint32_t first = s - 1; first < end; first++) {
                const size_t from = (s - 1) * width + first, to = s * width + end;
                const uint64_t own = c->before[end] - c->before[first];
                if (c->slowest[from] == UINT64_MAX || own > most) continue;
                const uint64_t slow = own > c->slowest[from] ? own : c->slowest[from];
                const uint32_t inside =
                    c->cuts_inside[from] + (windows_count && s > 1 && c->inside[first]);
                const bool better = c->slowest[to] == UINT64_MAX || inside < c->cuts_inside[to] ||
                                    (inside == c->cuts_inside[to] && slow < c->slowest[to]);
                if (!better) continue;
                c->slowest[to] = slow;
                c->cuts_inside[to] = inside;
                c->last_first[to] = first;
            }
    return c->slowest[c->stages * width + c->blocks];
}

mr_status mr_stage_cut(mr_block_range *out, const mr_model *model, uint32_t stages, mr_err *err) {
    cutting c = {.blocks = mr_model_config(model)->n_layers, .stages = stages};
    if (stages == 0 || stages > MR_MAX_STAGES || stages > c.blocks)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "%u pipeline stages; 1 to %u are possible for a model of %u blocks", stages,
                       c.blocks < MR_MAX_STAGES ? c.blocks : (uint32_t)MR_MAX_STAGES, c.blocks);
    const size_t width = c.blocks + 1ull, all = (stages + 1ull) * width;
    c.before = mr_alloc_array(width, sizeof(*c.before));
    c.inside = mr_alloc_array(width, sizeof(*c.inside));
    c.cuts_inside = mr_alloc_array(all, sizeof(*c.cuts_inside));
    c.last_first = mr_alloc_array(all, sizeof(*c.last_first));
    c.slowest = mr_alloc_array(all, sizeof(*c.slowest));
    cost_blocks(&c, model);
    const uint64_t best = find_cut(&c, UINT64_MAX, false);
    find_cut(&c, best + best / 4, true);
    for (uint32_t s = stages, end = c.blocks; s > 0; s--) {
        const uint32_t first = c.last_first[s * width + end];
        out[s - 1] = (mr_block_range){first, end - first};
        end = first;
    }
    free(c.before);
    free(c.inside);
    free(c.cuts_inside);
    free(c.last_first);
    free(c.slowest);
    return MR_OK;
}

mr_status mr_stage_range(mr_block_range *out, const mr_model *model, const mr_engine_options *o,
                         mr_err *err) {
    const uint32_t all = mr_model_config(model)->n_layers, stages = o->stages ? o->stages : 1;
    mr_block_range cut[MR_MAX_STAGES];
    *out = (mr_block_range){0, all};
    if (o->stage >= stages)
        return mr_fail(err, MR_ERR_ARGUMENT, "stage %u of %u: stages count from 0", o->stage,
                       stages);
    if (o->block_count == 0) {
        const mr_status status = mr_stage_cut(cut, model, stages, err);
        if (status == MR_OK) *out = cut[o->stage];
        return status;
    }
    const uint64_t end = (uint64_t)o->block_first + o->block_count;
    if (end > all || (o->stage == 0) != (o->block_first == 0) ||
        (o->stage + 1 == stages) != (end == all))
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "stage %u of %u cannot be blocks %u to %llu: the model has %u, the first "
                       "stage begins with block 0, the last one ends with the model",
                       o->stage, stages, o->block_first, (unsigned long long)end, all);
    *out = (mr_block_range){o->block_first, o->block_count};
    return MR_OK;
}

/* --- a pipeline in one process ---------------------------------------------------------------- */

mr_status mr_stages_step(mr_engine *const *stages, uint32_t count, const mr_step *step,
                         const mr_step_sink *sink, mr_wire_done *done, mr_err *err) {
    const int64_t began = mr_now_ns();
    mr_wire_done sum = {0};
    mr_step now = *step;
    mr_status status = MR_OK;
    for (uint32_t i = 0; i < count && status == MR_OK; i++) {
        mr_wire_done one = {0};
        status = mr_engine_step(stages[i], &now, sink, &one, err);
        const mr_engine_output output = mr_engine_hidden(stages[i]);
        now.hidden = output.hidden;
        now.pending = output.pending;
        sum.retrieval_wait_ns += one.retrieval_wait_ns;
        sum.retrieval_bytes_up += one.retrieval_bytes_up;
        sum.retrieval_bytes_down += one.retrieval_bytes_down;
    }
    sum.step_ns = (uint64_t)(mr_now_ns() - began);
    if (done) *done = sum;
    return status;
}
