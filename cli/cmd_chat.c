/* cmd_chat.c - `memrack chat MODEL`: a conversation in the terminal, or over a pipe: one line in,
 * one answer out. The whole conversation is encoded anew for each turn. */
#include "cli/cli.h"
#include "cli/local.h"
#include "common/base/limits.h"
#include "common/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    const char *system, *grid, *isa, *numeric;
    int64_t threads;
    mr_local_sampling sampling;
    mr_draft_settings speculation;
} arguments;

static void unsay(json_t *messages) {
    json_array_remove(messages, json_array_size(messages) - 1);
}

static void reset(json_t *messages, const char *system) {
    json_array_clear(messages);
    if (system) mr_chat_message_add(messages, "system", system, strlen(system));
}

static void print(const char *text, size_t bytes) {
    fwrite(text, 1, bytes, stdout);
    fflush(stdout);
}

/* One turn; a failure is told and the turn forgotten, so that the user can go on. */
static mr_status answer(mr_local *local, json_t *messages, const arguments *a, mr_err *err) {
    mr_token_list tokens = {0};
    mr_local_answer got = {0};
    const mr_chat_input input = {
        .messages = messages, .generation = true, .now = (int64_t)time(NULL)};
    mr_status status = mr_served_encode_chat(mr_local_served(local), &input, &tokens, err);
    if (status == MR_OK) status = mr_local_generate(&got, local, &tokens, &a->sampling, print, err);
    if (status == MR_OK) {
        print("\n", 1);
        mr_chat_message_add(messages, "assistant", mr_text_string(&got.text), got.text.bytes);
    }
    mr_text_free(&got.text);
    mr_token_list_free(&tokens);
    return status;
}

static void help(void) {
    fprintf(stderr,
            "  /reset  forget the conversation\n  /quit   end (or Ctrl-D)\n"
            "  /help   this text\n  Ctrl-C stops an answer; a line that ends in \\ goes on\n");
}

/* A line from stdin without its line break; lines that end in a backslash are put together. */
static bool read_line(mr_text *out, bool is_terminal) {
    char *line = NULL;
    size_t room = 0;
    ssize_t bytes;
    bool goes_on = true, got_any = false;
    mr_text_clear(out);
    if (is_terminal) fputs("> ", stderr);
    while (goes_on && (bytes = getline(&line, &room, stdin)) >= 0) {
        got_any = true;
        while (bytes > 0 && (line[bytes - 1] == '\n' || line[bytes - 1] == '\r')) bytes--;
        goes_on = bytes > 0 && line[bytes - 1] == '\\';
        if (out->bytes + (size_t)bytes > MR_MAX_HTTP_BODY_BYTES) break;
        mr_text_add(out, line, (size_t)(goes_on ? bytes - 1 : bytes));
        if (goes_on) mr_text_add(out, "\n", 1);
        if (goes_on && is_terminal) fputs(". ", stderr);
    }
    free(line);
    return got_any;
}

/* false: the end. */
static bool take_line(mr_local *local, json_t *messages, const arguments *a, const mr_text *line,
                      mr_status *last) {
    const char *text = mr_text_string(line);
    mr_err err = {{0}};
    if (strcmp(text, "/quit") == 0 || strcmp(text, "/exit") == 0) return false;
    if (strcmp(text, "/help") == 0)
        help();
    else if (strcmp(text, "/reset") == 0)
        reset(messages, a->system);
    else if (text[0] == '/')
        fprintf(stderr, "no command %.40s; /help lists them\n", text);
    else if (line->bytes > 0) {
        mr_chat_message_add(messages, "user", text, line->bytes);
        *last = answer(local, messages, a, &err);
        if (*last != MR_OK) {
            unsay(messages);
            fprintf(stderr, "memrack chat: %s%s\n", err.text,
                    strstr(err.text, "context") ? " (/reset starts anew)" : "");
        }
    }
    return true;
}

static int run(const char *command, const char *model, const arguments *a) {
    mr_err err = {{0}};
    mr_local *local;
    mr_text line = {0};
    mr_status last = MR_OK;
    const bool is_terminal = isatty(STDIN_FILENO) && isatty(STDERR_FILENO);
    const mr_local_options options = {.embedded = {.model_directory = model,
                                                   .threads = (uint32_t)a->threads,
                                                   .isa = a->isa,
                                                   .numeric = a->numeric,
                                                   .grid = a->grid,
                                                   .quiet = !is_terminal},
                                      .speculation = a->speculation};
    mr_status status = mr_local_sampling_check(&a->sampling, &err);
    if (status == MR_OK) status = mr_local_open(&local, &options, &err);
    if (status != MR_OK) return mr_cli_fail(command, status, &err);
    const mr_served *served = mr_local_served(local);
    json_t *messages = json_array();
    status = mr_chat_template_check(served->chat, &err);
    if (status == MR_OK && !served->tokenizer)
        status = mr_fail(&err, MR_ERR_UNSUPPORTED, "%s has no tokenizer.json", model);
    if (status == MR_OK) {
        if (is_terminal) fprintf(stderr, "%s is listening; /help lists commands\n", served->name);
        reset(messages, a->system);
        while (read_line(&line, is_terminal) && take_line(local, messages, a, &line, &last))
            ;
        if (is_terminal) fputs("\n", stderr);
    }
    json_decref(messages);
    mr_text_free(&line);
    mr_local_close(local);
    if (status != MR_OK) return mr_cli_fail(command, status, &err);
    return last == MR_OK || is_terminal ? 0 : 1; /* a script learns that its last turn failed */
}

int mr_cmd_chat(int argc, char **argv) {
    arguments a = {0};
    mr_local_sampling *s = &a.sampling;
    mr_local_sampling_init(s);
    s->max_tokens = 512;
    const mr_option options[] = {
        {"system", 's', MR_OPT_TEXT, &a.system, 0, 0, "TEXT", "begin with this system message"},
        {"max-tokens", 'n', MR_OPT_INT, &s->max_tokens, 1, MR_MAX_CONTEXT, "N",
         "most tokens of an answer; 512"},
        {"temperature", 0, MR_OPT_DOUBLE, &s->temperature, 0, 100, "X",
         "0 always takes the likeliest token; the model's own default, or 0.8"},
        {"top-p", 0, MR_OPT_DOUBLE, &s->top_p, 0, 1, "X", "the model's own default, or 0.95"},
        {"top-k", 0, MR_OPT_INT, &s->top_k, 0, MR_MAX_VOCAB, "N",
         "0: all; the model's own default, or 40"},
        {"min-p", 0, MR_OPT_DOUBLE, &s->min_p, 0, 1, "X", "the model's own default, or 0.05"},
        {"seed", 0, MR_OPT_INT, &s->seed, 0, 9e18, "N", "the same seed gives the same answers"},
        {"stop", 0, MR_OPT_LIST, &s->stops, 0, 0, "TEXT", "end before this text; may be repeated"},
        MR_DRAFT_SETTINGS(&a.speculation),
        {"threads", 't', MR_OPT_INT, &a.threads, 0, MR_MAX_THREADS, "N",
         "compute threads; 0: one per core"},
        {"grid", 0, MR_OPT_TEXT, &a.grid, 0, 0, "GxW", "cut the tables; 1x1 (answers are equal)"},
        {"numeric", 0, MR_OPT_TEXT, &a.numeric, 0, 0, "KIND",
         "exact, or fast: bf16 products where the processor has them (exact)"},
        {"isa", 0, MR_OPT_TEXT, &a.isa, 0, 0, "NAME",
         "ref, avx2, avx512 or neon; the best there is"},
        {0}};
    const mr_command_spec spec = {"memrack chat MODEL [options]",
                                  "Talks with a model; over a pipe, every line is a turn.\n"
                                  "example: memrack chat models/demo\n"
                                  "         echo 'define river' | memrack chat models/demo",
                                  options, 1, 1};
    const char *model;
    int count;
    const int code = mr_cli_parse(&spec, argc, argv, &model, &count);
    const int result = code >= 0 ? code : run(argv[0], model, &a);
    free(s->stops.items);
    return result;
}
