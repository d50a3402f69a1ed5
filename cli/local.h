/* local.h - an embedded cluster with a core in front: what `serve`, `generate` and `chat` share.
 *
 * The engine runs its steps in a thread of its own, at one end of a socket pair; the core has the
 * other end, exactly as it would have a link to a worker process.
 * Threads: open, generate and close from one thread. */
#ifndef MR_CLI_LOCAL_H
#define MR_CLI_LOCAL_H
#include "cli/embedded.h"
#include "common/base/options.h"
#include "coordinator/core.h"
#include "coordinator/served.h"

typedef struct mr_local mr_local;

typedef struct {
    mr_embedded_options embedded; /* kv_blocks 0: four contexts or so, by their size */
    const char *name;             /* for clients; NULL: the folder's */
    uint32_t queue_max;
    mr_draft_settings speculation;
    uint32_t answers_wanted; /* contexts the KV cache should hold, if that is not too much; 0: 1 */
} mr_local_options;

mr_status mr_local_open(mr_local **out, const mr_local_options *options, mr_err *err);
void mr_local_close(mr_local *local); /* NULL is fine */
mr_core *mr_local_core(mr_local *local);
const mr_served *mr_local_served(const mr_local *local);

/* How tokens are chosen, as options of the command line; mr_local_sampling_defaults first. */
typedef struct {
    double temperature, top_p, min_p;
    int64_t top_k, seed; /* seed -1: a new one each time */
    int64_t max_tokens;
    mr_text_list stops;
} mr_local_sampling;

/* -1 (NaN is not parsed) where the user said nothing: filled from the model's
 * generation_config.json or, without one, temperature 0.8, top_p 0.95, top_k 40, min_p 0.05. */
void mr_local_sampling_init(mr_local_sampling *out);
mr_status mr_local_sampling_check(const mr_local_sampling *sampling, mr_err *err);

typedef struct {
    mr_text text; /* all of it; mr_text_free */
    mr_finish finish;
    uint64_t prompt_tokens, generated_tokens, seed;
    double seconds, first_token_seconds;
    bool interrupted; /* by SIGINT */
} mr_local_answer;

/* Answers tokens; text is handed to on_text as it comes (in the caller's thread). SIGINT ends the
 * answer early. */
mr_status mr_local_generate(mr_local_answer *out, mr_local *local, const mr_token_list *prompt,
                            const mr_local_sampling *sampling,
                            void (*on_text)(const char *text, size_t bytes), mr_err *err);

#endif
