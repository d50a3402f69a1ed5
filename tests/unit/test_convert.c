/* test_convert.c - models in other storage types.
 *
 * Goal: what is written is read back as the same numbers, whatever the family and the type; packed
 * matrices give the same bits and are not copied; checkpoints with fp8 weights and separate scales
 * are the same model as ours with them inside; spoilt ones are refused by name, and a refused
 * conversion leaves nothing behind. Method: golden models converted there and back, their logits
 * compared; files written by hand; the kernel's account of resident memory. */
#include "cli/embedded.h"
#include "common/base/file.h"
#include "common/base/mem.h"
#include "common/model/convert.h"
#include "common/model/pack.h"
#include "common/model/rows.h"
#include "common/model/safetensors_write.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TOKENS = 24 };

static char folder[256];
static mr_team *team;

typedef struct {
    float *values; /* [TOKENS][columns] */
    uint32_t columns;
} logits;

static const char *in(const char *name) {
    static char paths[4][512];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof(paths[0]), "%s/%s", folder, name);
    return path;
}

static const char *golden(const char *name) {
    static char path[512];
    snprintf(path, sizeof(path), "%s/tests/golden/%s", MR_SOURCE_DIR, name);
    return path;
}

static void on_logits(void *context, uint32_t sequence, uint32_t position, const float *values,
                      uint32_t columns) {
    logits *l = context;
    (void)sequence;
    memcpy(l->values + (size_t)position * columns, values, columns * sizeof(float));
}

static logits run(const char *directory) {
    mr_embedded cluster;
    mr_err err = {{0}};
    const mr_embedded_options o = {.model_directory = directory,
                                   .threads = 2,
                                   .kv_blocks = 4,
                                   .step_tokens_max = TOKENS,
                                   .step_sequences_max = 1,
                                   .quiet = true};
    if (mr_embedded_open(&cluster, &o, &err) != MR_OK) fail_msg("%s", err.text);
    const mr_config *c = mr_model_config(cluster.model);
    logits l = {.columns = c->head_rows};
    l.values = calloc((size_t)TOKENS * l.columns, sizeof(float));
    int32_t tokens[TOKENS];
    const uint32_t blocks[4] = {0, 1, 2, 3};
    for (uint32_t i = 0; i < TOKENS; i++)
        tokens[i] = (int32_t)((7 * i * i + 3 * i) % c->vocab_size);
    const mr_wire_sequence sequence = {
        .token_count = TOKENS, .block_count = 4, .flags = MR_SEQUENCE_LOGITS, .top_p = 1};
    const mr_step step = {.sequence_count = 1,
                          .token_count = TOKENS,
                          .block_count = 4,
                          .sequences = &sequence,
                          .tokens = tokens,
                          .blocks = blocks};
    const mr_step_sink sink = {.logits = on_logits, .context = &l};
    if (mr_embedded_step(&cluster, &step, &sink, &err) != MR_OK) fail_msg("%s", err.text);
    mr_embedded_close(&cluster);
    return l;
}

static bool same_bits(const logits *a, const logits *b) {
    return a->columns == b->columns &&
           memcmp(a->values, b->values, (size_t)TOKENS * a->columns * sizeof(float)) == 0;
}

/* rms of the difference, as a part of the rms of a. */
static double distance(const logits *a, const logits *b) {
    double off = 0, all = 0;
    for (size_t i = 0; i < (size_t)TOKENS * a->columns; i++) {
        const double d = (double)a->values[i] - (double)b->values[i];
        off += d * d;
        all += (double)a->values[i] * (double)a->values[i];
    }
    return sqrt(off / all);
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at) {
    (void)st, (void)kind, (void)at;
    return remove(path);
}

static void remove_all(const char *path) {
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static mr_status try_convert(const char *from, const char *to, mr_convert_options o, mr_err *err) {
    mr_model *model;
    mr_convert_report report;
    o.team = team;
    mr_status status = mr_model_open(&model, from, err);
    if (status != MR_OK) return status;
    status = mr_convert(&report, model, to, &o, err);
    mr_model_close(model);
    return status;
}

static void convert(const char *from, const char *to, mr_storage_type dense, bool pack) {
    mr_err err = {{0}};
    remove_all(to);
    if (try_convert(from, to,
                    (mr_convert_options){.dense = dense, .tables = MR_STORE_COUNT, .pack = pack},
                    &err) != MR_OK)
        fail_msg("%s", err.text);
}

/* Bounds on what each type may do to the logits of the dense golden model, whose random weights are
 * far more sensitive than trained ones. */
static const double loss_bounds[MR_STORE_COUNT] = {
    [MR_STORE_F32] = 0,     [MR_STORE_BF16] = 0.015,      [MR_STORE_F16] = 0.002,
    [MR_STORE_INT8] = 0.08, [MR_STORE_INT8_BLOCK] = 0.06, [MR_STORE_INT4] = 0.7,
    [MR_STORE_FP8] = 0.25,  [MR_STORE_FP8_BLOCK] = 0.25};

/* Every type: near the original; as floats again, the same numbers: what is left is how x is
 * rounded (int8, int4) or when the scale is applied (fp8). */
static void test_there_and_back(void **state) {
    (void)state;
    logits before = run(golden("dense"));
    for (int type = 0; type < MR_STORE_COUNT; type++) {
        convert(golden("dense"), in("there"), (mr_storage_type)type, false);
        convert(in("there"), in("back"), MR_STORE_F32, false);
        logits there = run(in("there")), back = run(in("back"));
        const double loss = distance(&before, &there), kernel = distance(&back, &there);
        print_message("%s: loss %.2g, against the same numbers in f32 %.2g\n",
                      mr_storage_name((mr_storage_type)type), loss, kernel);
        assert_true(loss <= loss_bounds[type]);
        const mr_element element = mr_storage_of((mr_storage_type)type).element;
        assert_true(kernel <= (element == MR_I8 || element == MR_I4 ? 0.06
                               : element == MR_F8                   ? 1e-5
                                                                    : 0));
        free(there.values);
        free(back.values);
    }
    free(before.values);
}

/* Every kind of model: floats stay what they are, panels give the same bits as rows. */
static void test_families(void **state) {
    static const char *const models[] = {"dense",         "moe_topk_norm", "v1_ive4_skip",
                                         "v2_glu_kx2_e4", "memory_plus",   "pkm",
                                         "hf_qwen2_moe",  "hf_olmo2"};
    static const mr_storage_type types[] = {MR_STORE_F32,  MR_STORE_BF16, MR_STORE_INT8_BLOCK,
                                            MR_STORE_INT4, MR_STORE_FP8,  MR_STORE_FP8_BLOCK};
    (void)state;
    for (size_t m = 0; m < sizeof(models) / sizeof(*models); m++) {
        logits before = run(golden(models[m]));
        for (size_t t = 0; t < sizeof(types) / sizeof(*types); t++) {
            convert(golden(models[m]), in("rows"), types[t], false);
            convert(golden(models[m]), in("panels"), types[t], true);
            logits rows = run(in("rows")), panels = run(in("panels"));
            /* the official experts' w2 is converted only when it is packed */
            const bool differs = m == 1 && mr_storage_of(types[t]).block;
            if (same_bits(&rows, &panels) == differs)
                fail_msg("%s as %s: packed and not: %g apart", models[m], mr_storage_name(types[t]),
                         distance(&rows, &panels));
            if (types[t] == MR_STORE_F32) assert_true(same_bits(&before, &rows));
            free(rows.values);
            free(panels.values);
        }
        free(before.values);
    }
}

/* Parts of one matrix in different types: all of their numbers are there, as rows and as panels. */
static void test_mixed_parts(void **state) {
    static const char *const keys[] = {"k_proj"}, *const values[] = {"v_proj", "q_proj"};
    mr_convert_options o = {.dense = MR_STORE_INT8_BLOCK, .tables = MR_STORE_COUNT};
    mr_model *model;
    mr_matrix matrix;
    mr_err err = {{0}};
    (void)state;
    convert(golden("hf_llama"), in("four"), MR_STORE_INT4, false);
    o.keep = keys; /* int4 and int8-block */
    o.keep_count = 1;
    assert_int_equal(try_convert(in("four"), in("mixed"), o, &err), MR_OK);
    assert_int_equal(mr_model_open(&model, in("mixed"), &err), MR_OK);
    mr_matrix_of(&matrix, model, (mr_matrix_id){MR_MATRIX_ATT_PROJ, 0, 0});
    assert_int_equal(mr_storage_type_of(mr_matrix_storage(model, &matrix)), MR_STORE_INT8_BLOCK);
    mr_model_close(model);
    logits four = run(in("four")), mixed = run(in("mixed"));
    assert_true(same_bits(&four, &mixed)); /* the codes are the same */
    o.dense = MR_STORE_FP8;
    o.keep = values; /* int4, f32 and fp8 */
    o.keep_count = 2;
    assert_int_equal(try_convert(in("mixed"), in("three"), o, &err), MR_OK);
    convert(in("three"), in("three-panels"), MR_STORE_COUNT, true);
    logits three = run(in("three")), panels = run(in("three-panels"));
    assert_true(same_bits(&three, &panels));
    free(four.values);
    free(mixed.values);
    free(three.values);
    free(panels.values);
}

/* --- checkpoints with scales beside them -------------------------------------------------------
 */

static void copy_config(const char *from, const char *to, const char *old, const char *new) {
    char path[512], *text;
    size_t bytes;
    mr_err err;
    snprintf(path, sizeof(path), "%s/config.json", from);
    assert_int_equal(mr_file_read(&text, &bytes, path, 1 << 20, &err), MR_OK);
    char *at = strstr(text, old);
    assert_non_null(at);
    char *changed = mr_format("%.*s%s%s", (int)(at - text), text, new, at + strlen(old));
    snprintf(path, sizeof(path), "%s/config.json", to);
    assert_int_equal(mr_file_write(path, changed, strlen(changed), &err), MR_OK);
    free(changed);
    free(text);
}

/* The U8 tensors of `from` as F8_E4M3 with scales in a tensor of their own. */
static void write_fp8(const char *from, const char *to, bool tiles, const char *method) {
    mr_model *model;
    mr_err err = {{0}};
    uint32_t out[512][2], count = 0;
    remove_all(to);
    mkdir(to, 0700);
    copy_config(from, to, "\"quantization_config\": {", method);
    assert_int_equal(mr_model_open(&model, from, &err), MR_OK);
    mr_writer *w = mr_writer_new();
    for (uint32_t i = 0; i < mr_model_tensor_count(model); i++, count++) {
        const mr_tensor *t = mr_model_tensor(model, i);
        char name[256];
        const bool is_fp8 = t->dtype == MR_DTYPE_U8;
        const uint64_t shape[2] = {t->shape[0], t->columns};
        const uint64_t scales[2] = {tiles ? (t->shape[0] + 127) / 128 : t->shape[0],
                                    tiles ? (t->columns + 127) / 128 : 1};
        assert_int_equal(mr_writer_declare(w, &out[i][0], t->name,
                                           is_fp8 ? MR_DTYPE_F8_E4M3 : t->dtype, t->dims,
                                           is_fp8 ? shape : t->shape, &err),
                         MR_OK);
        snprintf(name, sizeof(name), "%s_scale%s", t->name, tiles ? "_inv" : "");
        if (is_fp8)
            assert_int_equal(mr_writer_declare(w, &out[i][1], name, MR_DTYPE_F32, 2, scales, &err),
                             MR_OK);
    }
    assert_int_equal(mr_writer_begin_directory(w, to, 0, &err), MR_OK);
    for (uint32_t i = 0; i < count; i++) {
        const mr_tensor *t = mr_model_tensor(model, i);
        mr_mapping map;
        assert_int_equal(mr_tensor_map(&map, model, t, 0, t->bytes, &err), MR_OK);
        const uint64_t row_bytes = t->bytes / t->shape[0];
        const uint32_t block = tiles ? 128 : (uint32_t)t->columns;
        if (t->dtype != MR_DTYPE_U8)
            mr_writer_put(w, out[i][0], 0, map.data, t->bytes, &err);
        else
            for (uint64_t r = 0; r < t->shape[0]; r++) {
                const uint8_t *at = map.data + r * row_bytes;
                const uint64_t blocks = (t->columns + block - 1) / block;
                for (uint64_t b = 0; b < blocks; b++) {
                    const uint64_t left = t->columns - b * block;
                    const uint64_t size = left < block ? left : block;
                    if (!tiles || r % 128 == 0)
                        mr_writer_put(w, out[i][1], ((tiles ? r / 128 : r) * blocks + b) * 4, at, 4,
                                      &err);
                    mr_writer_put(w, out[i][0], r * t->columns + b * block, at + 4, size, &err);
                    at += 4 + size;
                }
            }
        mr_mapping_close(&map);
    }
    if (mr_writer_finish(w, &err) != MR_OK) fail_msg("%s", err.text);
    mr_writer_free(w);
    mr_model_close(model);
}

/* memrack's own rows and other people's tensors with the same codes are the same model; and
 * converting those gives panels and rows of the same bits again. */
static void test_fp8_checkpoints(void **state) {
    (void)state;
    for (int tiles = 0; tiles < 2; tiles++) {
        convert(golden("dense"), in("rows"), tiles ? MR_STORE_FP8_BLOCK : MR_STORE_FP8, false);
        write_fp8(in("rows"), in("fp8"), tiles,
                  tiles ? "\"quantization_config\": {\"quant_method\": \"fp8\", "
                          "\"activation_scheme\": \"dynamic\", \"weight_block_size\": [128, 128]},"
                          "\"_ours\": {"
                        : "\"quantization_config\": {\"quant_method\": \"compressed-tensors\", "
                          "\"format\": \"float-quantized\"}, \"_ours\": {");
        convert(in("fp8"), in("panels"), MR_STORE_COUNT, true);
        logits rows = run(in("rows")), fp8 = run(in("fp8")), panels = run(in("panels"));
        assert_true(same_bits(&rows, &fp8));
        assert_true(same_bits(&rows, &panels));
        free(rows.values);
        free(fp8.values);
        free(panels.values);
    }
}

/* --- bad input -------------------------------------------------------------------------------- */

static void refuses(const char *directory, const char *wanted) {
    mr_model *model;
    mr_manifest manifest;
    mr_err err = {{0}};
    mr_status status = mr_model_open(&model, directory, &err);
    if (status == MR_OK) {
        status = mr_manifest_make(&manifest, model, (mr_grid){0}, NULL, NULL, &err);
        if (status == MR_OK) mr_manifest_free(&manifest);
        mr_model_close(model);
    }
    if (status == MR_OK || !strstr(err.text, wanted))
        fail_msg("'%s' lacks '%s'", status == MR_OK ? "(accepted)" : err.text, wanted);
}

static void change(const char *directory, const char *old, const char *new) {
    copy_config(directory, directory, old, new);
}

/* Bytes at `at` of a tensor, in its file. */
static void poke(const char *directory, const char *tensor, uint64_t at, const void *data,
                 size_t bytes) {
    mr_model *model;
    mr_err err;
    assert_int_equal(mr_model_open(&model, directory, &err), MR_OK);
    const mr_tensor *t = mr_model_find(model, tensor);
    FILE *file = fopen(mr_model_file(model, t), "r+b");
    assert_non_null(file);
    fseek(file, (long)(t->offset + at), SEEK_SET);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    fclose(file);
    mr_model_close(model);
}

static void test_refused_models(void **state) {
    const float nan = NAN;
    const uint16_t half_nan = 0x7e00;
    (void)state;
    convert(golden("dense"), in("x"), MR_STORE_INT4, false);
    change(in("x"), "\"int4\"", "\"int8\"");
    refuses(in("x"), "expected [");
    change(in("x"), "\"int8\"", "\"int5\"");
    refuses(in("x"), "int5");
    change(in("x"), "\"int5\"", "\"bf16\"");
    refuses(in("x"), "U8");
    change(in("x"), "\"memrack\"", "\"gptq\"");
    refuses(in("x"), "gptq");
    convert(golden("dense"), in("x"), MR_STORE_INT4, false);
    poke(in("x"), "transformer.blocks.1.attn_out.weight", 0, &half_nan, 2);
    refuses(in("x"), "transformer.blocks.1.attn_out.weight");
    convert(golden("dense"), in("x"), MR_STORE_FP8, false);
    poke(in("x"), "transformer.blocks.0.ff_out.weight", 0, &nan, 4);
    refuses(in("x"), "transformer.blocks.0.ff_out.weight");
    convert(golden("dense"), in("x"), MR_STORE_FP8, false);
    poke(in("x"), "transformer.blocks.0.ff_out.weight", 4, "\x7f", 1);
    refuses(in("x"), "transformer.blocks.0.ff_out.weight");
    convert(golden("dense"), in("x"), MR_STORE_INT8, false);
    assert_int_equal(truncate(in("x/model.safetensors"), 40000), 0);
    refuses(in("x"), "cut short");
}

static void test_refused_packs(void **state) {
    char *text;
    size_t bytes;
    mr_err err;
    const uint16_t half_nan = 0x7e00;
    (void)state;
    convert(golden("dense"), in("x"), MR_STORE_INT8_BLOCK, true);
    change(in("x"), "\"version\": 1", "\"version\": 2");
    refuses(in("x"), "version 1");
    change(in("x"), "\"version\": 2", "\"version\": 1, \"more\": 1");
    refuses(in("x"), "more");
    change(in("x"), "\"version\": 1, \"more\": 1", "\"version\": 1");
    change(in("x"), "\"int8-block\"", "\"int4\"");
    refuses(in("x"), "expected [");
    change(in("x"), "\"int4\"", "\"int8\"");
    refuses(in("x"), ".scales");
    change(in("x"), "\"int8\"", "\"int8-block\"");
    poke(in("x"), "blocks.0.att_proj.scales", 6, &half_nan, 2);
    refuses(in("x"), "blocks.0.att_proj.scales");
    convert(golden("dense"), in("x"), MR_STORE_FP8, true);
    poke(in("x"), "head", 5, "\xff", 1);
    refuses(in("x"), "head");

    /* a name spoilt in the header, and one byte more before the data */
    convert(golden("dense"), in("x"), MR_STORE_BF16, true);
    assert_int_equal(mr_file_read(&text, &bytes, in("x/model.safetensors"), 1 << 24, &err), MR_OK);
    uint64_t length;
    memcpy(&length, text, 8);
    char *name = NULL;
    for (uint64_t i = 8; i < 8 + length && !name; i++)
        if (!memcmp(text + i, "\"blocks.0.ff_out\"", 17)) name = text + i;
    assert_non_null(name);
    name[10] = '_';
    assert_int_equal(mr_file_write(in("x/model.safetensors"), text, bytes, &err), MR_OK);
    refuses(in("x"), "blocks.0.ff_out is missing");
    name[10] = 'f';
    length++;
    char *longer = malloc(bytes + 1);
    memcpy(longer, &length, 8);
    memcpy(longer + 8, text + 8, length - 1);
    longer[8 + length - 1] = ' ';
    memcpy(longer + 8 + length, text + 8 + length - 1, bytes - 8 - (length - 1));
    assert_int_equal(mr_file_write(in("x/model.safetensors"), longer, bytes + 1, &err), MR_OK);
    refuses(in("x"), "multiple of 64");
    free(longer);
    free(text);
}

static void test_refused_conversions(void **state) {
    const char *const nothing[] = {"no_such_tensor"};
    const float large = 1e6f;
    mr_err err = {{0}};
    mr_convert_options o = {.dense = MR_STORE_INT8, .tables = MR_STORE_COUNT};
    (void)state;
    convert(golden("dense"), in("there"), MR_STORE_F32, false);
    assert_int_equal(try_convert(golden("dense"), in("there"), o, &err), MR_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "not empty"));
    o.keep = nothing;
    o.keep_count = 1;
    assert_int_equal(try_convert(golden("dense"), in("new"), o, &err), MR_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "no_such_tensor"));
    o.keep_count = 0;
    o.dense = MR_STORE_F16;
    poke(in("there"), "transformer.blocks.1.att_proj.weight", 64, &large, 4);
    assert_int_equal(try_convert(in("there"), in("new"), o, &err), MR_ERR_RANGE);
    assert_non_null(strstr(err.text, "transformer.blocks.1.att_proj.weight"));
    convert(golden("dense"), in("panels"), MR_STORE_F32, true);
    assert_int_equal(try_convert(in("panels"), in("new"), o, &err), MR_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "packed"));
    assert_int_not_equal(access(in("new"), F_OK), 0);
    char partial[600];
    snprintf(partial, sizeof(partial), "%s.partial-%ld", in("new"), (long)getpid());
    assert_int_not_equal(access(partial, F_OK), 0);
}

/* --- memory ----------------------------------------------------------------------------------- */

/* KiB of /proc/self/status. */
static uint64_t status_of(const char *key) {
    char line[256];
    unsigned long long value = 0;
    FILE *file = fopen("/proc/self/status", "r");
    while (fgets(line, sizeof(line), file))
        if (!strncmp(line, key, strlen(key))) value = strtoull(line + strlen(key) + 1, NULL, 10);
    fclose(file);
    return value;
}

/* A packed model is held once: as pages of its file. */
static void test_resident_memory(void **state) {
    mr_embedded cluster;
    mr_engine_memory plan;
    mr_err err = {{0}};
    char demo[512];
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip();
#endif
    snprintf(demo, sizeof(demo), "%s/models/demo", MR_SOURCE_DIR);
    convert(demo, in("panels"), MR_STORE_F32, true);
    for (int packed = 0; packed < 2; packed++) {
        const mr_embedded_options o = {.model_directory = packed ? in("panels") : demo,
                                       .threads = 2,
                                       .kv_blocks = 16,
                                       .step_tokens_max = 16,
                                       .step_sequences_max = 1,
                                       .quiet = true};
        const uint64_t anonymous = status_of("RssAnon:"), all = status_of("VmRSS:");
        assert_int_equal(mr_embedded_open(&cluster, &o, &err), MR_OK);
        const mr_engine_options options = {.model = cluster.model,
                                           .kv_blocks = 16,
                                           .step_tokens_max = 16,
                                           .step_sequences_max = 1};
        assert_int_equal(mr_engine_plan(&plan, &options, &err), MR_OK);
        const uint64_t own = plan.kv_bytes + plan.buffer_bytes + plan.index_bytes + (2 << 20);
        const int32_t token = 1;
        const uint32_t block = 0;
        const mr_wire_sequence sequence = {
            .token_count = 1, .block_count = 1, .top_p = 1, .flags = MR_SEQUENCE_SAMPLE};
        const mr_step step = {1, 1, 1, .sequences = &sequence, .tokens = &token, .blocks = &block};
        assert_int_equal(mr_embedded_step(&cluster, &step, &(mr_step_sink){0}, &err), MR_OK);
        const int64_t grown = (int64_t)(status_of("RssAnon:") - anonymous) * 1024;
        const int64_t grown_all = (int64_t)(status_of("VmRSS:") - all) * 1024;
        print_message("%s: weights %.1f MiB, anonymous %+.1f MiB, resident %+.1f MiB\n",
                      packed ? "packed" : "rows", (double)plan.weight_bytes / 0x1p20,
                      (double)grown / 0x1p20, (double)grown_all / 0x1p20);
        assert_true(grown_all <=
                    (int64_t)(own + plan.table_bytes + plan.weight_bytes + plan.weight_bytes / 10));
        if (packed) assert_true(grown <= (int64_t)(own + plan.weight_bytes / 4));
        mr_embedded_close(&cluster);
    }
}

static int set_up(void **state) {
    mr_err err;
    (void)state;
    snprintf(folder, sizeof(folder), "%s/memrack-convert-XXXXXX",
             getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    return mkdtemp(folder) && mr_team_open(&team, 2, &err) == MR_OK ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    mr_team_close(team);
    remove_all(folder);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_there_and_back),      cmocka_unit_test(test_families),
        cmocka_unit_test(test_mixed_parts),         cmocka_unit_test(test_fp8_checkpoints),
        cmocka_unit_test(test_refused_models),      cmocka_unit_test(test_refused_packs),
        cmocka_unit_test(test_refused_conversions), cmocka_unit_test(test_resident_memory),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
