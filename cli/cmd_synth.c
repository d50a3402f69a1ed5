/* cmd_synth.c - `memrack synth`: writes a random model of a named shape.
 *
 * Every number is a function of (seed, tensor name, position), so that threads fill chunks in any
 * order, nothing is held but one chunk a thread, and the same command always writes the same bytes.
 * config.json is written last: a folder that has it is complete.
 * Threads: the main thread and its helpers take chunks from one atomic counter; the writer's put is
 * safe for several; each helper's first failure is kept in its own mr_err. */
#include "cli/cli.h"
#include "common/base/file.h"
#include "common/base/mem.h"
#include "common/model/presets.h"
#include "common/model/random_fill.h"
#include "common/model/safetensors_write.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK = 1 << 18, HELPERS_MAX = 64, MEM_HEADS_MAX = 4 };

static volatile sig_atomic_t interrupted;

typedef struct {
    const mr_synth_tensor *tensors;
    const mr_dtype *dtypes;
    const uint64_t *chunk_first; /* [count + 1] prefix sums of chunks */
    uint32_t count;
    uint64_t seed;
    mr_writer *writer;
    atomic_uint_least64_t next_chunk;
    atomic_int failed;
} fill_job;

typedef struct {
    fill_job *job;
    mr_status status;
    mr_err err;
    bool shows_progress;
} filler;

typedef struct {
    double scale;
    const char *dtype, *table_dtype, *insertions;
    int64_t layers, d_model, heads, kv_heads, mlp_hidden, vocab, context;
    int64_t knum, kdim, vdim, pre_vdim, knn, mem_heads, key_expand, value_expand;
    int64_t seed, file_mib;
    double share_ratio;
    bool untied, list;
} synth_options;

/* Values as they will be read back: cores stored in bf16 are rounded before u and v are taken. */
static void stored_normal(float *out, const fill_job *job, const char *name, mr_dtype dtype,
                          uint64_t first, size_t count, float mean, float spread) {
    const mr_random random = mr_random_for(job->seed, name);
    mr_random_normal(out, &random, first, count, mean, spread);
    if (dtype != MR_DTYPE_BF16) return;
    for (size_t i = 0; i < count; i++) out[i] = mr_bf16_to_f32(mr_f32_to_bf16(out[i]));
}

/* Leading singular vectors of a small matrix by power iteration on C C^T, in double; u is turned so
 * that its entries sum to something positive, and v = C^T u / |..| follows it. */
static void leading_vectors(double u[MR_SYNTH_RANK], double v[MR_SYNTH_RANK],
                            const double core[MR_SYNTH_RANK][MR_SYNTH_RANK]) {
    for (int i = 0; i < MR_SYNTH_RANK; i++) u[i] = 1 + 0.1 * i;
    for (int round = 0; round < 500; round++) {
        double length = 0;
        for (int t = 0; t < MR_SYNTH_RANK; t++) {
            v[t] = 0;
            for (int r = 0; r < MR_SYNTH_RANK; r++) v[t] += core[r][t] * u[r];
            length += v[t] * v[t];
        }
        for (int t = 0; t < MR_SYNTH_RANK; t++) v[t] /= length > 0 ? sqrt(length) : 1;
        length = 0;
        for (int r = 0; r < MR_SYNTH_RANK; r++) {
            u[r] = 0;
            for (int t = 0; t < MR_SYNTH_RANK; t++) u[r] += core[r][t] * v[t];
            length += u[r] * u[r];
        }
        for (int r = 0; r < MR_SYNTH_RANK; r++) u[r] /= length > 0 ? sqrt(length) : 1;
    }
    double sum = 0;
    for (int r = 0; r < MR_SYNTH_RANK; r++) sum += u[r];
    if (sum >= 0) return;
    for (int r = 0; r < MR_SYNTH_RANK; r++) {
        u[r] = -u[r];
        v[r] = -v[r];
    }
}

/* tensor is [1, heads, 1, R]; both cores of its layer are drawn again. */
static void fill_vectors(float *out, const fill_job *job, const mr_synth_tensor *tensor,
                         mr_dtype dtype) {
    enum { CELLS = MR_SYNTH_RANK * MR_SYNTH_RANK };
    const uint64_t heads = tensor->shape[1];
    float drawn[2][MEM_HEADS_MAX * CELLS];
    assert(heads <= MEM_HEADS_MAX);
    for (int core = 0; core < 2; core++) {
        char name[MR_SYNTH_NAME_BYTES];
        snprintf(name, sizeof(name), "transformer.mem_blocks.%u.tucker_core.%d", tensor->layer,
                 core);
        for (uint32_t i = 0; i < job->count; i++)
            if (strcmp(job->tensors[i].name, name) == 0)
                stored_normal(drawn[core], job, name, dtype, 0, heads * CELLS, job->tensors[i].mean,
                              job->tensors[i].spread);
    }
    for (uint64_t h = 0; h < heads; h++) {
        double sum[MR_SYNTH_RANK][MR_SYNTH_RANK], u[MR_SYNTH_RANK], v[MR_SYNTH_RANK];
        for (int r = 0; r < MR_SYNTH_RANK; r++)
            for (int t = 0; t < MR_SYNTH_RANK; t++) {
                const size_t at = h * CELLS + (size_t)(r * MR_SYNTH_RANK + t);
                sum[r][t] = (double)drawn[0][at] + (double)drawn[1][at];
            }
        leading_vectors(u, v, sum);
        for (int r = 0; r < MR_SYNTH_RANK; r++)
            out[h * MR_SYNTH_RANK + (uint64_t)r] =
                (float)(tensor->fill == MR_FILL_TUCKER_U ? u[r] : v[r]);
    }
}

static void fill_floats(float *out, const fill_job *job, const mr_synth_tensor *tensor,
                        mr_dtype dtype, uint64_t first, size_t count) {
    switch (tensor->fill) {
    case MR_FILL_NORMAL:
        stored_normal(out, job, tensor->name, dtype, first, count, tensor->mean, tensor->spread);
        return;
    case MR_FILL_CONSTANT:
        for (size_t i = 0; i < count; i++) out[i] = tensor->mean;
        return;
    case MR_FILL_TUCKER_U:
    case MR_FILL_TUCKER_V:
        fill_vectors(out, job, tensor, dtype);
        return;
    case MR_FILL_PERMUTATION:
        return; /* not floats */
    }
}

/* scratch: CHUNK * 8 bytes and CHUNK * 2 bytes. */
static mr_status fill_chunk(const fill_job *job, uint32_t index, uint64_t chunk, void *scratch,
                            uint16_t *halves, mr_err *err) {
    const mr_synth_tensor *tensor = &job->tensors[index];
    const mr_dtype dtype = job->dtypes[index];
    const uint64_t elements = mr_synth_elements(tensor), first = chunk * CHUNK;
    const size_t count = elements - first < CHUNK ? (size_t)(elements - first) : CHUNK;
    const void *data = scratch;
    if (tensor->fill == MR_FILL_PERMUTATION) {
        const mr_random random = mr_random_for(job->seed, tensor->name);
        mr_random_permutation(scratch, &random, tensor->side, first, count);
    } else {
        const float *floats = scratch;
        fill_floats(scratch, job, tensor, dtype, first, count);
        if (dtype == MR_DTYPE_BF16) {
            for (size_t i = 0; i < count; i++) halves[i] = mr_f32_to_bf16(floats[i]);
            data = halves;
        }
    }
    const uint64_t width = mr_dtype_bytes(dtype);
    return mr_writer_put(job->writer, index, first * width, data, (size_t)(count * width), err);
}

static void *run_filler(void *argument) {
    filler *self = argument;
    fill_job *job = self->job;
    const uint64_t chunks = job->chunk_first[job->count];
    void *scratch = mr_alloc((size_t)CHUNK * 8);
    uint16_t *halves = mr_alloc((size_t)CHUNK * 2);
    uint32_t index = 0;
    while (!atomic_load(&job->failed)) {
        const uint64_t chunk = atomic_fetch_add(&job->next_chunk, 1);
        if (chunk >= chunks) break;
        while (chunk >= job->chunk_first[index + 1]) index++;
        self->status = interrupted ? mr_fail(&self->err, MR_ERR_CANCELLED, "interrupted")
                                   : fill_chunk(job, index, chunk - job->chunk_first[index],
                                                scratch, halves, &self->err);
        if (self->status != MR_OK) atomic_store(&job->failed, 1);
        if (self->shows_progress && self->status == MR_OK)
            mr_cli_progress(NULL, job->tensors[index].name + strlen("transformer."),
                            (double)(chunk + 1) / (double)chunks);
    }
    free(halves);
    free(scratch);
    return NULL;
}

static mr_status fill_all(fill_job *job, mr_err *err) {
    filler fillers[HELPERS_MAX];
    pthread_t threads[HELPERS_MAX];
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    int count = cores < 1 ? 1 : cores > HELPERS_MAX ? HELPERS_MAX : (int)cores;
    for (int i = 0; i < count; i++)
        fillers[i] = (filler){.job = job, .status = MR_OK, .shows_progress = i == 0};
    for (int i = 1; i < count; i++)
        if (pthread_create(&threads[i], NULL, run_filler, &fillers[i]) != 0) {
            count = i; /* fewer helpers do */
            break;
        }
    run_filler(&fillers[0]);
    for (int i = 1; i < count; i++) pthread_join(threads[i], NULL);
    mr_cli_progress(NULL, "done", 1);
    for (int i = 0; i < count; i++)
        if (fillers[i].status != MR_OK) {
            *err = fillers[i].err;
            return fillers[i].status;
        }
    return MR_OK;
}

static mr_status write_model(const char *directory, const mr_shape *shape, const char *config,
                             mr_dtype dense, mr_dtype table, const synth_options *options,
                             uint64_t *bytes, uint32_t *files, mr_err *err) {
    mr_synth_tensor *tensors;
    uint32_t count, declared;
    mr_status status = MR_OK;
    mr_shape_tensors(&tensors, &count, shape);
    mr_writer *writer = mr_writer_new();
    mr_dtype *dtypes = mr_alloc_array(count, sizeof(*dtypes));
    uint64_t *chunk_first = mr_alloc_array(count + 1u, sizeof(*chunk_first));
    for (uint32_t i = 0; i < count && status == MR_OK; i++) {
        dtypes[i] = tensors[i].role == MR_ROLE_INDEX   ? MR_DTYPE_I64
                    : tensors[i].role == MR_ROLE_TABLE ? table
                                                       : dense;
        chunk_first[i + 1] = chunk_first[i] + (mr_synth_elements(&tensors[i]) + CHUNK - 1) / CHUNK;
        status = mr_writer_declare(writer, &declared, tensors[i].name, dtypes[i], tensors[i].dims,
                                   tensors[i].shape, err);
    }
    if (status == MR_OK)
        status =
            mr_writer_begin_directory(writer, directory, (uint64_t)options->file_mib << 20, err);
    if (status == MR_OK) {
        fill_job job = {.tensors = tensors,
                        .dtypes = dtypes,
                        .chunk_first = chunk_first,
                        .count = count,
                        .seed = (uint64_t)options->seed,
                        .writer = writer};
        status = fill_all(&job, err);
    }
    if (status == MR_OK) status = mr_writer_finish(writer, err);
    *bytes = mr_writer_data_bytes(writer);
    *files = mr_writer_file_count(writer);
    mr_writer_free(writer);
    if (status == MR_OK) {
        char *path = mr_format("%s/config.json", directory);
        status = mr_file_write(path, config, strlen(config), err);
        free(path);
    }
    free(chunk_first);
    free(dtypes);
    free(tensors);
    return status;
}

static mr_status refuse_used_directory(const char *directory, mr_err *err) {
    static const char *const names[] = {"config.json", "model.safetensors",
                                        "model.safetensors.index.json"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char *path = mr_format("%s/%s", directory, names[i]);
        const bool there = access(path, F_OK) == 0;
        free(path);
        if (there)
            return mr_fail(err, MR_ERR_ARGUMENT, "%s already holds a %s; name a new folder",
                           directory, names[i]);
    }
    return MR_OK;
}

static mr_status parse_dtype(mr_dtype *out, const char *option, const char *text, mr_err *err) {
    if (strcmp(text, "f32") == 0)
        *out = MR_DTYPE_F32;
    else if (strcmp(text, "bf16") == 0)
        *out = MR_DTYPE_BF16;
    else
        return mr_fail(err, MR_ERR_ARGUMENT, "%s is '%.40s'; use f32 or bf16", option, text);
    return MR_OK;
}

static void replace(uint32_t *value, int64_t given) {
    if (given >= 0) *value = (uint32_t)given;
}

static mr_status shape_from(mr_shape *shape, const char *preset, const synth_options *o,
                            mr_err *err) {
    mr_status status = mr_preset_find(shape, preset, err);
    if (status != MR_OK) return status;
    if (o->scale != 1) mr_shape_scale(shape, o->scale);
    if (o->layers > 0) mr_shape_set_layers(shape, (uint32_t)o->layers);
    if (o->d_model > 0 || o->heads > 0)
        mr_shape_set_width(shape, o->d_model > 0 ? (uint32_t)o->d_model : shape->d_model,
                           o->heads > 0 ? (uint32_t)o->heads : 0);
    replace(&shape->kv_heads, o->kv_heads);
    replace(&shape->mlp_hidden, o->mlp_hidden);
    replace(&shape->vocab, o->vocab);
    replace(&shape->context, o->context);
    replace(&shape->knum, o->knum);
    replace(&shape->kdim, o->kdim);
    replace(&shape->vdim, o->vdim);
    replace(&shape->knn, o->knn);
    replace(&shape->mem_heads, o->mem_heads);
    replace(&shape->key_expand, o->key_expand);
    replace(&shape->value_expand, o->value_expand);
    replace(&shape->pre_vdim, o->pre_vdim);
    if (o->share_ratio > 0) shape->share_ratio = o->share_ratio;
    if (o->untied) shape->tied = false;
    if (!o->insertions) return MR_OK;
    if (shape->memory == MR_MEMORY_NONE)
        return mr_fail(err, MR_ERR_ARGUMENT, "--insert: %s has no memory layers", preset);
    if (strlen(o->insertions) >= sizeof(shape->insertions))
        return mr_fail(err, MR_ERR_ARGUMENT, "--insert is longer than %zu bytes",
                       sizeof(shape->insertions) - 1);
    strcpy(shape->insertions, o->insertions);
    return MR_OK;
}

static int list_presets(void) {
    printf("%-22s %6s %6s %-12s %6s %5s %9s %9s %9s %9s\n", "preset", "layers", "width", "memory",
           "knum", "top-m", "dense", "keys", "table", "GB bf16");
    for (uint32_t i = 0; i < mr_preset_count(); i++) {
        mr_shape shape;
        mr_preset_at(&shape, i);
        const mr_shape_counts c = mr_shape_count(&shape);
        const bool memory = shape.memory != MR_MEMORY_NONE;
        printf("%-22s %6u %6u %-12s %6u %2ux%-3u %8.1fM %8.1fM %8.0fM %9.2f\n", shape.name,
               shape.layers, shape.d_model,
               shape.experts ? "moe" : mr_memory_kind_name(shape.memory), memory ? shape.knum : 0,
               memory ? shape.mem_heads : 0, memory ? shape.knn : 0, (double)c.dense / 1e6,
               (double)c.keys / 1e6, (double)c.table / 1e6,
               (double)(2 * (c.dense + c.keys + c.table) + 8 * c.index) / 1e9);
    }
    printf("\ndense: attention, feed-forward (MoE: all experts), projections and the %d-token "
           "embedding.\nGB: everything in bf16, shuffle indices in I64.\n",
           50304);
    return 0;
}

static void on_signal(int signal_number) {
    (void)signal_number;
    interrupted = 1;
}

static int run(const char *preset, const char *directory, const synth_options *options) {
    mr_err err = {{0}};
    mr_shape shape;
    mr_dtype dense = MR_DTYPE_BF16, table = MR_DTYPE_BF16;
    char *config = NULL;
    uint64_t bytes = 0;
    uint32_t files = 0;
    mr_status status = parse_dtype(&dense, "--dtype", options->dtype, &err);
    if (status == MR_OK)
        status = parse_dtype(&table, "--table-dtype",
                             options->table_dtype ? options->table_dtype : options->dtype, &err);
    if (status == MR_OK) status = shape_from(&shape, preset, options, &err);
    if (status == MR_OK) status = mr_shape_config(&config, &shape, &err);
    if (status == MR_OK) status = refuse_used_directory(directory, &err);
    if (status == MR_OK) status = mr_make_directories(directory, &err);
    if (status == MR_OK) {
        signal(SIGINT, on_signal); /* an interrupted run removes what it began */
        signal(SIGTERM, on_signal);
        status =
            write_model(directory, &shape, config, dense, table, options, &bytes, &files, &err);
    }
    free(config);
    if (status != MR_OK) return mr_cli_fail("synth", status, &err);
    const mr_shape_counts c = mr_shape_count(&shape);
    printf("wrote %s: %s", directory, preset);
    if (options->scale != 1) printf(" at scale %g", options->scale);
    printf(" (%u layers, d_model %u, %s), %.1fM parameters (%.1fM dense, %.1fM keys, %.1fM table), "
           "%.1f MB in %u file%s, random (seed %" PRId64 "), no tokenizer\n",
           shape.layers, shape.d_model, shape.experts ? "moe" : mr_memory_kind_name(shape.memory),
           (double)(c.dense + c.keys + c.table) / 1e6, (double)c.dense / 1e6, (double)c.keys / 1e6,
           (double)c.table / 1e6, (double)bytes / 1e6, files, files == 1 ? "" : "s", options->seed);
    return 0;
}

/* -1: as the preset has it. */
static const synth_options not_given = {.scale = 1,
                                        .dtype = "bf16",
                                        .file_mib = 4096,
                                        .layers = -1,
                                        .d_model = -1,
                                        .heads = -1,
                                        .kv_heads = -1,
                                        .mlp_hidden = -1,
                                        .vocab = -1,
                                        .context = -1,
                                        .knum = -1,
                                        .kdim = -1,
                                        .vdim = -1,
                                        .pre_vdim = -1,
                                        .knn = -1,
                                        .mem_heads = -1,
                                        .key_expand = -1,
                                        .value_expand = -1};

int mr_cmd_synth(int argc, char **argv) {
    synth_options o = not_given;
    const mr_option options[] = {
        {"list", 'l', MR_OPT_FLAG, &o.list, 0, 0, NULL, "show the presets and what they weigh"},
        {"dtype", 0, MR_OPT_TEXT, &o.dtype, 0, 0, "TYPE", "f32 or bf16 (bf16)"},
        {"table-dtype", 0, MR_OPT_TEXT, &o.table_dtype, 0, 0, "TYPE",
         "type of the value tables (as --dtype)"},
        {"scale", 0, MR_OPT_DOUBLE, &o.scale, 0.001, 4, "F",
         "multiply the widths and knum (1); layers and vocabulary stay"},
        {"layers", 0, MR_OPT_INT, &o.layers, 1, MR_MAX_LAYERS, "N",
         "transformer blocks; the insertions move with them"},
        {"d-model", 0, MR_OPT_INT, &o.d_model, 2, MR_MAX_D_MODEL, "N", "width of the stream"},
        {"heads", 0, MR_OPT_INT, &o.heads, 1, MR_MAX_HEADS, "N", "attention heads"},
        {"kv-heads", 0, MR_OPT_INT, &o.kv_heads, 1, MR_MAX_HEADS, "N",
         "key and value heads (as --heads); fewer: GQA"},
        {"mlp-hidden", 0, MR_OPT_INT, &o.mlp_hidden, 2, 1 << 24, "N",
         "rows of ff_proj; MoE: twice the width of an expert"},
        {"vocab", 0, MR_OPT_INT, &o.vocab, 2, MR_MAX_VOCAB, "N", "tokens (50304)"},
        {"context", 0, MR_OPT_INT, &o.context, 1, MR_MAX_CONTEXT, "N", "positions (2048)"},
        {"insert", 0, MR_OPT_TEXT, &o.insertions, 0, 0, "MAP", "mem_insert_way: full, or 3:5/6:8"},
        {"knum", 0, MR_OPT_INT, &o.knum, 1, 65535, "N", "a memory layer has knum^2 rows"},
        {"kdim", 0, MR_OPT_INT, &o.kdim, 1, 1 << 16, "N", "elements of a key"},
        {"vdim", 0, MR_OPT_INT, &o.vdim, 1, 1 << 16, "N", "elements of a value row"},
        {"pre-vdim", 0, MR_OPT_INT, &o.pre_vdim, 0, 1 << 16, "N", "of a pre-value row (v2)"},
        {"knn", 0, MR_OPT_INT, &o.knn, 1, MR_MAX_MEM_KNN, "N", "rows a head reads for a token"},
        {"mem-head", 0, MR_OPT_INT, &o.mem_heads, 1, MR_MAX_MEM_HEADS, "N",
         "heads of the memory (v1: 1 or 2; v2: 1 to 4)"},
        {"key-expand", 0, MR_OPT_INT, &o.key_expand, 1, 16, "N", "kx of v2 (1)"},
        {"value-expand", 0, MR_OPT_INT, &o.value_expand, 1, MR_MAX_SLOTS, "N",
         "E: v1 a square number (4); v2 1 or kx^2"},
        {"share-ratio", 0, MR_OPT_DOUBLE, &o.share_ratio, 1e-6, 1, "F",
         "part of the shared ring a v2 layer reaches"},
        {"untied", 0, MR_OPT_FLAG, &o.untied, 0, 0, NULL, "an output head of its own"},
        {"seed", 0, MR_OPT_INT, &o.seed, 0, 9e18, "S", "other numbers, same shape (0)"},
        {"file-mib", 0, MR_OPT_INT, &o.file_mib, 1, 1 << 24, "N",
         "start a new safetensors file beyond this size (4096)"},
        {0}};
    const mr_command_spec spec = {
        "memrack synth PRESET OUT_DIR [options]",
        "Writes a random model: config.json and safetensors with the official tensor names, for\n"
        "benchmarks and tests. There is no tokenizer in it: feed it token ids (memrack logits).\n"
        "Example: memrack synth ultramem-151m-x12 /tmp/um --scale 0.25 --kv-heads 2",
        options, 0, 2};
    const char *positional[2] = {NULL, NULL};
    int count;
    const int code = mr_cli_parse(&spec, argc, argv, positional, &count);
    if (code >= 0) return code;
    if (o.list) return list_presets();
    if (count != 2) {
        mr_err err = {{0}};
        mr_fail(&err, MR_ERR_ARGUMENT, "it takes PRESET and OUT_DIR; --list shows the presets");
        return mr_cli_fail("synth", MR_ERR_ARGUMENT, &err);
    }
    return run(positional[0], positional[1], &o);
}
