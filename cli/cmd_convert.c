/* cmd_convert.c - `memrack convert`: a model in other storage types, and what that costs. */
#include "cli/cli.h"
#include "cli/convert_loss.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/model/convert.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    const char *dtype, *table_dtype, *keep, *samples;
    int64_t threads, file_mib;
    bool pack, no_loss, json;
} arguments;

enum { KEEP_MAX = 64 };

static mr_status parse_type(mr_storage_type *out, const char *option, const char *text,
                            mr_err *err) {
    *out = MR_STORE_COUNT;
    if (!text || mr_storage_parse(out, text) == 0) return MR_OK;
    return mr_fail(err, MR_ERR_ARGUMENT,
                   "%s '%.40s' is not one of f32, bf16, f16, int8, int8-block, int4, fp8, "
                   "fp8-block",
                   option, text);
}

/* NAME,NAME,... cut in place. */
static mr_status parse_keep(const char **names, uint32_t *count, char *text, mr_err *err) {
    char *rest = NULL;
    *count = 0;
    for (char *name = strtok_r(text, ",", &rest); name; name = strtok_r(NULL, ",", &rest)) {
        if (*count >= KEEP_MAX)
            return mr_fail(err, MR_ERR_LIMIT, "--keep takes at most %d names", KEEP_MAX);
        names[(*count)++] = name;
    }
    return MR_OK;
}

/* Before the work, not after it. */
static mr_status check_samples(const char *model, const char *samples, mr_err *err) {
    char *tokenizer = mr_format("%s/tokenizer.json", model);
    mr_status status = MR_OK;
    if (access(tokenizer, R_OK) != 0)
        status = mr_fail(err, MR_ERR_ARGUMENT, "--samples needs %s", tokenizer);
    else if (access(samples, R_OK) != 0)
        status = mr_fail(err, MR_ERR_IO, "open %s: %s", samples, strerror(errno));
    free(tokenizer);
    return status;
}

static mr_status convert(mr_convert_report *report, const char *from, const char *to,
                         const arguments *a, mr_err *err) {
    const char *keep[KEEP_MAX];
    char *text = mr_strdup(a->keep ? a->keep : "");
    mr_model *model = NULL;
    mr_convert_options o = {.pack = a->pack,
                            .keep = keep,
                            .file_bytes_max = (uint64_t)a->file_mib * MR_MIB,
                            .progress = mr_cli_progress};
    mr_status status = parse_type(&o.dense, "--dtype", a->dtype, err);
    if (status == MR_OK) status = parse_type(&o.tables, "--table-dtype", a->table_dtype, err);
    if (status == MR_OK) status = parse_keep(keep, &o.keep_count, text, err);
    if (status == MR_OK && o.dense == MR_STORE_COUNT && o.tables == MR_STORE_COUNT && !o.pack)
        status =
            mr_fail(err, MR_ERR_ARGUMENT, "nothing to do: give --dtype, --table-dtype or --pack");
    if (status == MR_OK) status = mr_model_open(&model, from, err);
    if (status == MR_OK && a->samples) status = check_samples(from, a->samples, err);
    if (status == MR_OK && o.tables != MR_STORE_COUNT && mr_model_table_count(model) == 0)
        status = mr_fail(err, MR_ERR_ARGUMENT, "%s has no tables for --table-dtype", from);
    if (status == MR_OK) status = mr_team_open(&o.team, (uint32_t)a->threads, err);
    if (status == MR_OK) {
        status = mr_convert(report, model, to, &o, err);
        mr_team_close(o.team);
    }
    mr_model_close(model);
    free(text);
    return status;
}

static void print_report(const mr_convert_report *r, const char *to) {
    printf("wrote %s: %.1f MiB of tensors, %.1f before (%u converted)\n", to,
           (double)r->bytes_after / (double)MR_MIB, (double)r->bytes_before / (double)MR_MIB,
           r->converted);
    if (r->from_codes) printf("%u of them were codes before: their errors add up\n", r->from_codes);
    if (r->kept_transposed)
        printf("%u tensors are used transposed and stayed floats; --pack converts them, too\n",
               r->kept_transposed);
}

static void print_loss(const mr_convert_loss *l) {
    printf("loss over %u positions: KL divergence mean %.3g, p99 %.3g, max %.3g nats; the same "
           "first choice %.2f %%; logits differ by at most %.3g\n",
           l->positions, l->kl_mean, l->kl_p99, l->kl_max, 100 * l->top1_agreement,
           l->logit_error_max);
    if (l->has_text)
        printf("perplexity of the text: %.4f, before %.4f\n", l->perplexity_after,
               l->perplexity_before);
}

static void print_json(const mr_convert_report *r, const mr_convert_loss *l, const char *to) {
    json_t *root = json_pack("{s:s, s:I, s:I, s:i, s:i, s:i}", "model", to, "bytes_before",
                             (json_int_t)r->bytes_before, "bytes_after", (json_int_t)r->bytes_after,
                             "converted", (int)r->converted, "kept_transposed",
                             (int)r->kept_transposed, "from_codes", (int)r->from_codes);
    if (l->positions) {
        json_t *loss =
            json_pack("{s:i, s:f, s:f, s:f, s:f, s:f}", "positions", (int)l->positions, "kl_mean",
                      l->kl_mean, "kl_p99", l->kl_p99, "kl_max", l->kl_max, "top1_agreement",
                      l->top1_agreement, "logit_error_max", l->logit_error_max);
        if (l->has_text) {
            json_object_set_new(loss, "perplexity_before", json_real(l->perplexity_before));
            json_object_set_new(loss, "perplexity_after", json_real(l->perplexity_after));
        }
        json_object_set_new(root, "loss", loss);
    }
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    puts(text);
    free(text);
    json_decref(root);
}

int mr_cmd_convert(int argc, char **argv) {
    arguments a = {0};
    const char *folders[2];
    int count;
    const mr_option options[] = {
        {"dtype", 'd', MR_OPT_TEXT, &a.dtype, 0, 0, "TYPE",
         "of matrices: f32, bf16, f16, int8, int8-block, int4, fp8, fp8-block (as they are)"},
        {"table-dtype", 0, MR_OPT_TEXT, &a.table_dtype, 0, 0, "TYPE",
         "of the tables of memory layers (as they are)"},
        {"pack", 0, MR_OPT_FLAG, &a.pack, 0, 0, NULL,
         "write panels that workers map instead of packing weights at load"},
        {"keep", 0, MR_OPT_TEXT, &a.keep, 0, 0, "NAME,...",
         "leave tensors as they are whose names contain one of these"},
        {"samples", 0, MR_OPT_TEXT, &a.samples, 0, 0, "FILE",
         "text to measure the loss on (a short built-in one)"},
        {"no-loss", 0, MR_OPT_FLAG, &a.no_loss, 0, 0, NULL, "do not run the models to compare"},
        {"threads", 't', MR_OPT_INT, &a.threads, 0, MR_MAX_THREADS, "N", "(one per core)"},
        {"file-mib", 0, MR_OPT_INT, &a.file_mib, 0, 1 << 20, "N", "largest shard (4096)"},
        {"json", 0, MR_OPT_FLAG, &a.json, 0, 0, NULL, "print one JSON object"},
        {0}};
    const mr_command_spec spec = {
        "memrack convert MODEL OUT [--dtype TYPE] [--table-dtype TYPE] [--pack]",
        "Writes a model in other storage types, then runs both and prints what was lost. Norms,\n"
        "biases, routers, queries, keys and cores stay as they are. OUT appears when all of it is\n"
        "there.\n\n"
        "  memrack convert models/demo /tmp/demo-int4 --dtype int4 --table-dtype int8",
        options, 2, 2};
    mr_convert_report report;
    mr_convert_loss loss = {0};
    mr_err err = {{0}};
    const int code = mr_cli_parse(&spec, argc, argv, folders, &count);
    if (code >= 0) return code;
    mr_status status = convert(&report, folders[0], folders[1], &a, &err);
    if (status != MR_OK) return mr_cli_fail("convert", status, &err);
    if (!a.json) print_report(&report, folders[1]);
    if (!a.no_loss)
        status = mr_convert_loss_measure(&loss, folders[0], folders[1], a.samples,
                                         (uint32_t)a.threads, &err);
    if (status != MR_OK) return mr_cli_fail("convert", status, &err);
    if (a.json)
        print_json(&report, &loss, folders[1]);
    else if (!a.no_loss)
        print_loss(&loss);
    return 0;
}
