/* draft.h - guesses of the tokens that come next. They are verified in one step, which changes no
 * answer: a step samples at every guessed position what plain decoding would have sampled there
 * (proto/wire.h), and only what agrees is kept. So a guess costs time when it is wrong, never more.
 *
 * Guesses come from two places:
 *   lookup  the longest run of match_max down to match_min tokens at the end of a text (prompt and
 *           answer) that occurs earlier in it; the guess is what follows its latest occurrence. An
 *           index of all such runs grows with the text, a bounded piece a step.
 *   ngram   a table of fixed size of what followed three tokens in answers of any request of the
 *           same model: the most frequent continuation, or the latest.
 * Where both know something the one that has been right more often is taken.
 *
 * How much is sent is decided by two estimates. Every guess is compared with what comes, sent or
 * not, so that the chance that the next guessed token is right is known for each text and kind of
 * match; it costs no step to find out that a text begins or ends to repeat itself. And a step's
 * time is taken as base + tokens * slope, fitted to the latest steps: a guessed token is worth it
 * while its chance times what one token of the step costs now (time / tokens that will come out of
 * it) is more than the slope. With few sequences, slow tables or a slow network the base is most of
 * the time, and long guesses pay; with large batches no guess does.
 *
 * Threads: one owner for all of it. Memory: nothing is allocated after opening; a text's index has
 * 40 bytes at most for each token the text may have. */
#ifndef MR_COORDINATOR_DRAFT_H
#define MR_COORDINATOR_DRAFT_H
#include "common/base/limits.h"
#include "common/base/status.h"

#include <stdbool.h>
#include <stdint.h>

typedef enum { MR_DRAFT_LOOKUP = 1, MR_DRAFT_NGRAM = 2, MR_DRAFT_BOTH = 3 } mr_draft_kind;

enum { MR_DRAFT_MATCH_MAX = 7 };

typedef struct {
    uint32_t tokens_max;           /* of one guess, <= MR_MAX_DRAFT_TOKENS; 0: no speculation */
    mr_draft_kind kind;            /* 0: both */
    uint32_t match_min, match_max; /* 1 <= min <= max <= MR_DRAFT_MATCH_MAX; 0: 2 and 4 */
    uint32_t table_entries;        /* a power of two; 0: 2^18, of 12 bytes */
} mr_draft_options;

/* --- what all texts share --------------------------------------------------------------------- */

typedef struct mr_drafts mr_drafts;

mr_drafts *mr_drafts_open(const mr_draft_options *options);
void mr_drafts_close(mr_drafts *drafts); /* NULL is fine */

/* --- one text --------------------------------------------------------------------------------- */

typedef struct mr_draft mr_draft;

/* model: keeps the table's entries of one model from those of another. tokens_max: of the text. */
mr_draft *mr_draft_open(mr_drafts *drafts, uint64_t model, uint32_t tokens_max);
void mr_draft_close(mr_draft *draft); /* NULL is fine */
/* The text goes on with tokens that nobody sampled just now. */
void mr_draft_add(mr_draft *draft, const int32_t *tokens, uint32_t count);
/* A token has been sampled: the last guess is compared with it, the table learns it. */
void mr_draft_push(mr_draft *draft, int32_t token);

typedef struct {
    const int32_t *tokens; /* [count] borrowed until the next call */
    uint32_t count;
    float chance; /* that a token of it is right where those before it are */
} mr_draft_guess;

/* What may come next; count 0: no idea. */
mr_draft_guess mr_draft_next(mr_draft *draft);

/* --- what a guess is worth -------------------------------------------------------------------- */

/* Steps of one worker group. Zeroed memory is one that knows nothing yet. */
typedef struct {
    double weight, tokens, ns, tokens2, tokens_ns; /* fading sums */
} mr_draft_cost;

/* A step of so many tokens has taken so long. */
void mr_draft_cost_note(mr_draft_cost *cost, uint32_t tokens, uint64_t step_ns);

/* A step that is being put together. */
typedef struct {
    double tokens, expected; /* in it, and that will come out of it as something new */
} mr_draft_step;

/* How many of `count` guessed tokens of that chance to add to the step, where they are counted. */
uint32_t mr_draft_worth(const mr_draft_cost *cost, mr_draft_step *step, uint32_t count,
                        float chance);

/* --- options of the command line -------------------------------------------------------------- */

typedef struct {
    int64_t tokens_max;
    const char *kind;
} mr_draft_settings;

#define MR_DRAFT_SETTINGS(s)                                                                       \
    {"speculate", 0,                                                                               \
     MR_OPT_INT,  &(s)->tokens_max,                                                                \
     0,           MR_MAX_DRAFT_TOKENS,                                                             \
     "N",         "guess up to N tokens of an answer and verify them in one step; 0"},             \
    {                                                                                              \
        "draft", 0, MR_OPT_TEXT, &(s)->kind, 0, 0, "HOW",                                          \
            "guess by lookup (in the text itself), ngram (from all answers) or both; both"         \
    }

/* MR_ERR_ARGUMENT and a sentence for an unknown kind. */
mr_status mr_draft_settings_read(mr_draft_options *out, const mr_draft_settings *settings,
                                 mr_err *err);

#endif
