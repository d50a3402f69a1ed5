/* cmd_import.c - `memrack import`: a GGUF file becomes a model directory. */
#include "cli/cli.h"
#include "common/base/limits.h"
#include "common/model/gguf_import.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static volatile sig_atomic_t interrupted;

static void on_signal(int signal_number) {
    (void)signal_number;
    interrupted = 1;
}

static mr_status parse_dtype(mr_import_dtype *out, const char *text, mr_err *err) {
    static const char *const names[] = {[MR_IMPORT_KEEP] = "keep",
                                        [MR_IMPORT_F32] = "f32",
                                        [MR_IMPORT_BF16] = "bf16",
                                        [MR_IMPORT_F16] = "f16"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(text, names[i]) == 0) {
            *out = (mr_import_dtype)i;
            return MR_OK;
        }
    return mr_fail(err, MR_ERR_ARGUMENT, "--dtype is '%.40s'; use keep, bf16, f16 or f32", text);
}

static void print_report(const char *directory, const mr_import_report *r) {
    printf("wrote %s: %s (from %s), %u tensors, %.1f MB in %u file%s, ", directory, r->model_type,
           r->architecture, r->tensors, (double)r->bytes / 1e6, r->files, r->files == 1 ? "" : "s");
    if (r->tokenizer[0])
        printf("tokenizer %s\n", r->tokenizer);
    else
        printf("no tokenizer: feed it token ids (memrack logits)\n");
    if (r->block_tensors > 0)
        printf("%u tensors keep their 8-bit or 4-bit blocks\n", r->block_tensors);
    if (r->rounded_tensors > 0)
        printf("note: %u tensors (%s) do not fit the type they are stored in; values changed by up "
               "to %.2g of themselves. --dtype f32 keeps every bit, in %.1f MB\n",
               r->rounded_tensors, r->rounded_types, r->rounded_most, (double)r->f32_bytes / 1e6);
}

int mr_cmd_import(int argc, char **argv) {
    const char *dtype = "keep", *positional[2];
    int64_t file_mib = 4096;
    int count;
    mr_import_options o = {.progress = mr_cli_progress, .interrupted = &interrupted};
    const mr_option options[] = {{"dtype", 0, MR_OPT_TEXT, &dtype, 0, 0, "TYPE",
                                  "keep, bf16, f16 or f32 (keep: Q8_0 and Q4_0 rows as they are)"},
                                 {"no-tokenizer", 0, MR_OPT_FLAG, &o.no_tokenizer, 0, 0, NULL,
                                  "leave the tokenizer and the chat template out"},
                                 {"file-mib", 0, MR_OPT_INT, &file_mib, 1, 1 << 24, "N",
                                  "start a new safetensors file beyond this size (4096)"},
                                 {0}};
    const mr_command_spec spec = {
        "memrack import FILE.gguf OUT_DIR [options]",
        "Writes a model directory with Hugging Face names from a GGUF file: config.json,\n"
        "safetensors, tokenizer and chat template. Nothing appears under OUT_DIR before it is "
        "whole.\n"
        "\n"
        "  memrack import Llama-3.2-1B-Instruct-Q8_0.gguf models/llama-1b",
        options, 2, 2};
    mr_err err = {{0}};
    mr_import_report report;
    const int code = mr_cli_parse(&spec, argc, argv, positional, &count);
    if (code >= 0) return code;
    o.file = positional[0];
    o.directory = positional[1];
    o.file_bytes_max = (uint64_t)file_mib << 20;
    mr_status status = parse_dtype(&o.dtype, dtype, &err);
    if (status == MR_OK) {
        signal(SIGINT, on_signal); /* an interrupted run removes what it began */
        signal(SIGTERM, on_signal);
        status = mr_gguf_import(&o, &report, &err);
    }
    if (status != MR_OK) return mr_cli_fail("import", status, &err);
    print_report(o.directory, &report);
    return 0;
}
