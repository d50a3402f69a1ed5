/* cmd_generate.c - `memrack generate MODEL -p TEXT`: continues a text on stdout as it is made. */
#include "cli/cli.h"
#include "cli/local.h"
#include "common/base/limits.h"
#include "coordinator/openai_reply.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    const char *prompt, *grid, *isa, *numeric;
    int64_t threads;
    bool json, chat;
    mr_local_sampling sampling;
    mr_draft_settings speculation;
} arguments;

static void print(const char *text, size_t bytes) {
    fwrite(text, 1, bytes, stdout);
    fflush(stdout);
}

static mr_status read_stdin(mr_text *out, mr_err *err) {
    char piece[65536];
    size_t got;
    while ((got = fread(piece, 1, sizeof(piece), stdin)) > 0) {
        if (out->bytes + got > MR_MAX_HTTP_BODY_BYTES)
            return mr_fail(err, MR_ERR_ARGUMENT, "the prompt is longer than %d bytes",
                           MR_MAX_HTTP_BODY_BYTES);
        mr_text_add(out, piece, got);
    }
    if (ferror(stdin)) return mr_fail(err, MR_ERR_IO, "read stdin: %s", strerror(errno));
    while (out->bytes > 0 &&
           (out->data[out->bytes - 1] == '\n' || out->data[out->bytes - 1] == '\r'))
        out->data[--out->bytes] = '\0'; /* what echo and editors add */
    return MR_OK;
}

static mr_status read_prompt(mr_text *out, const char *given, mr_err *err) {
    mr_status status = MR_OK;
    if (given && strcmp(given, "-") != 0)
        mr_text_add_string(out, given);
    else {
        if (isatty(STDIN_FILENO)) fprintf(stderr, "reading the prompt; end it with Ctrl-D\n");
        status = read_stdin(out, err);
    }
    if (status == MR_OK && out->bytes == 0)
        status = mr_fail(err, MR_ERR_ARGUMENT, "the prompt is empty; give one with -p TEXT");
    return status;
}

static void print_json(const mr_local_answer *answer) {
    static const char *const finishes[] = {"cancelled", "stop", "length"};
    mr_text json = {0};
    const double after = answer->seconds - answer->first_token_seconds;
    mr_text_add_string(&json, "{\"text\":");
    mr_reply_string(&json, mr_text_string(&answer->text), answer->text.bytes);
    mr_text_format(
        &json,
        ",\"finish_reason\":\"%s\",\"seed\":%llu,\"usage\":{\"prompt_tokens\":%llu,"
        "\"completion_tokens\":%llu,\"total_tokens\":%llu},\"seconds\":%.6f,"
        "\"first_token_seconds\":%.6f,\"tokens_per_second\":%.3f}\n",
        finishes[answer->finish], (unsigned long long)answer->seed,
        (unsigned long long)answer->prompt_tokens, (unsigned long long)answer->generated_tokens,
        (unsigned long long)(answer->prompt_tokens + answer->generated_tokens), answer->seconds,
        answer->first_token_seconds,
        answer->generated_tokens > 1 && after > 0 ? (double)(answer->generated_tokens - 1) / after
                                                  : 0.0);
    print(json.data, json.bytes);
    mr_text_free(&json);
}

static mr_status generate(mr_local *local, const mr_text *prompt, const arguments *a,
                          mr_local_answer *answer, mr_err *err) {
    mr_token_list tokens = {0};
    const mr_served *served = mr_local_served(local);
    json_t *messages = json_array();
    const mr_chat_input input = {
        .messages = messages, .generation = true, .now = (int64_t)time(NULL)};
    mr_chat_message_add(messages, "user", mr_text_string(prompt), prompt->bytes);
    mr_status status =
        a->chat ? mr_served_encode_chat(served, &input, &tokens, err)
                : mr_served_encode(served, mr_text_string(prompt), prompt->bytes, &tokens, err);
    json_decref(messages);
    if (status == MR_OK)
        status =
            mr_local_generate(answer, local, &tokens, &a->sampling, a->json ? NULL : print, err);
    mr_token_list_free(&tokens);
    if (status != MR_OK) return status;
    if (a->json)
        print_json(answer);
    else if (answer->text.bytes == 0 || answer->text.data[answer->text.bytes - 1] != '\n')
        print("\n", 1);
    if (answer->text.bytes == 0 && !a->chat && !answer->interrupted &&
        mr_chat_template_check(served->chat, NULL) == MR_OK)
        fprintf(stderr, "the model ended at once; it is made for chat: try --chat\n");
    if (ferror(stdout)) return mr_fail(err, MR_ERR_IO, "write stdout: %s", strerror(errno));
    return MR_OK;
}

static int run(const char *command, const char *model, const arguments *a) {
    mr_err err = {{0}};
    mr_text prompt = {0};
    mr_local *local = NULL;
    mr_local_answer answer = {0};
    const mr_local_options options = {.embedded = {.model_directory = model,
                                                   .threads = (uint32_t)a->threads,
                                                   .isa = a->isa,
                                                   .numeric = a->numeric,
                                                   .grid = a->grid,
                                                   .quiet = a->json},
                                      .speculation = a->speculation};
    mr_status status = mr_local_sampling_check(&a->sampling, &err);
    if (status == MR_OK) status = read_prompt(&prompt, a->prompt, &err);
    if (status == MR_OK) status = mr_local_open(&local, &options, &err);
    if (status == MR_OK) status = generate(local, &prompt, a, &answer, &err);
    mr_local_close(local);
    mr_text_free(&prompt);
    mr_text_free(&answer.text);
    if (status != MR_OK) return mr_cli_fail(command, status, &err);
    return answer.interrupted ? 130 : 0;
}

int mr_cmd_generate(int argc, char **argv) {
    arguments a = {0};
    mr_local_sampling *s = &a.sampling;
    mr_local_sampling_init(s);
    const mr_option options[] = {
        {"prompt", 'p', MR_OPT_TEXT, &a.prompt, 0, 0, "TEXT",
         "text to continue; '-' or none: read from stdin"},
        {"max-tokens", 'n', MR_OPT_INT, &s->max_tokens, 1, MR_MAX_CONTEXT, "N",
         "most tokens to generate; 128"},
        {"temperature", 0, MR_OPT_DOUBLE, &s->temperature, 0, 100, "X",
         "0 always takes the likeliest token; the model's own default, or 0.8"},
        {"top-p", 0, MR_OPT_DOUBLE, &s->top_p, 0, 1, "X", "the model's own default, or 0.95"},
        {"top-k", 0, MR_OPT_INT, &s->top_k, 0, MR_MAX_VOCAB, "N",
         "0: all; the model's own default, or 40"},
        {"min-p", 0, MR_OPT_DOUBLE, &s->min_p, 0, 1, "X", "the model's own default, or 0.05"},
        {"seed", 0, MR_OPT_INT, &s->seed, 0, 9e18, "N",
         "the same seed gives the same text; random"},
        {"stop", 0, MR_OPT_LIST, &s->stops, 0, 0, "TEXT", "end before this text; may be repeated"},
        {"chat", 'c', MR_OPT_FLAG, &a.chat, 0, 0, NULL,
         "the text is a user's message: answer it, by the model's chat template"},
        {"json", 0, MR_OPT_FLAG, &a.json, 0, 0, NULL, "print one JSON object at the end"},
        MR_DRAFT_SETTINGS(&a.speculation),
        {"threads", 't', MR_OPT_INT, &a.threads, 0, MR_MAX_THREADS, "N",
         "compute threads; 0: one per core"},
        {"grid", 0, MR_OPT_TEXT, &a.grid, 0, 0, "GxW", "cut the tables; 1x1 (the text is equal)"},
        {"numeric", 0, MR_OPT_TEXT, &a.numeric, 0, 0, "KIND",
         "exact, or fast: bf16 products where the processor has them (exact)"},
        {"isa", 0, MR_OPT_TEXT, &a.isa, 0, 0, "NAME",
         "ref, avx2, avx512 or neon; the best there is"},
        {0}};
    const mr_command_spec spec = {
        "memrack generate MODEL [-p TEXT] [options]",
        "Continues a text and prints it as it is made.\n"
        "example: memrack generate models/demo --chat -p 'define river'\n"
        "         echo 'Once upon a time' | memrack generate MODEL -n 40 --seed 7",
        options, 1, 1};
    const char *model;
    int count;
    const int code = mr_cli_parse(&spec, argc, argv, &model, &count);
    const int result = code >= 0 ? code : run(argv[0], model, &a);
    free(s->stops.items);
    return result;
}
