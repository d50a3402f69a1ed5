/* convert_loss.c - see convert_loss.h. The first model's logits are kept, so that two models are
 * never in memory together; that bounds the number of positions. */
#include "cli/convert_loss.h"

#include "cli/embedded.h"
#include "common/base/file.h"
#include "common/base/mem.h"
#include "common/model/tokenizer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    POSITIONS_MAX = 1024,
    SEQUENCE_TOKENS = 128,
    SEQUENCES_OF_IDS = 4,
    KEPT_BYTES = 256 << 20, /* of logits */
    SAMPLE_BYTES_MAX = 64 << 20
};

static const char built_in_text[] =
    "The river rises in the hills and runs slowly to the sea. In spring, when the snow melts, it "
    "carries more water than in any other season, and the people who live beside it keep their "
    "boats high on the bank. A good boat lasts thirty years. It is built of oak and pine, it is "
    "painted every summer, and it is given to the eldest child when the parents no longer fish.\n\n"
    "A word is a sound with a meaning. A noun is the name of a person, an animal, a place or a "
    "thing: teacher, horse, village, hammer. A verb says what somebody does or what happens: to "
    "run, to read, to fall. Most dictionaries give the sounds of a word, its parts, its meanings "
    "and a sentence in which it is used.\n\n"
    "To measure the distance between two cities, count the hours a train needs and multiply them "
    "by its speed. If the train travels at 120 kilometres an hour and needs two and a half hours, "
    "the cities are 300 kilometres apart. The answer is exact only if the train never stops, and "
    "trains stop often: at stations, at signals, and sometimes for no reason that anybody can "
    "see.\n\nShe opened the letter, read it twice, and put it back in the drawer. \"It is "
    "nothing,\" "
    "she said. \"They write every year.\" Outside it had begun to rain, and the light in the "
    "kitchen was the only light in the street.\n";

typedef struct {
    int32_t *tokens; /* [count], cut in sequences of `sequence` */
    uint32_t count, sequence;
    uint32_t columns; /* of the logits; ids below vocab */
    float *kept;      /* [count][columns] of the first model */
    double *kl;       /* [count] */
    bool has_text;
    bool is_second;
    uint32_t first; /* of the sequence under way */
    uint32_t agree;
    double error_max, log_before, log_after; /* sums of log probabilities of the next token */
    uint32_t predicted;
    bool is_finite;
} measure;

/* log of the sum of e^x. */
static double log_sum(const float *x, uint32_t n) {
    double most = (double)x[0], sum = 0;
    for (uint32_t i = 1; i < n; i++)
        if ((double)x[i] > most) most = (double)x[i];
    for (uint32_t i = 0; i < n; i++) sum += exp((double)x[i] - most);
    return most + log(sum);
}

static uint32_t largest(const float *x, uint32_t n) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

static void compare(measure *m, uint32_t at, const float *before, const float *after) {
    const double z0 = log_sum(before, m->columns), z1 = log_sum(after, m->columns);
    double kl = 0;
    for (uint32_t i = 0; i < m->columns; i++) {
        const double a = (double)before[i], b = (double)after[i];
        kl += exp(a - z0) * ((a - z0) - (b - z1));
        if (fabs(a - b) > m->error_max) m->error_max = fabs(a - b);
    }
    m->kl[at] = kl > 0 ? kl : 0; /* rounding */
    m->is_finite &= isfinite(kl) != 0;
    m->agree += largest(before, m->columns) == largest(after, m->columns);
    if ((at + 1) % m->sequence == 0 || at + 1 >= m->count) return;
    const uint32_t next = (uint32_t)m->tokens[at + 1];
    m->log_before += (double)before[next] - z0;
    m->log_after += (double)after[next] - z1;
    m->predicted++;
}

static void on_logits(void *context, uint32_t sequence, uint32_t position, const float *logits,
                      uint32_t columns) {
    measure *m = context;
    const uint32_t at = m->first + position;
    (void)sequence;
    if (m->is_second)
        compare(m, at, m->kept + (size_t)at * columns, logits);
    else
        memcpy(m->kept + (size_t)at * columns, logits, columns * sizeof(float));
}

static mr_status run(measure *m, const char *directory, uint32_t threads, mr_err *err) {
    enum { BLOCKS = SEQUENCE_TOKENS / MR_KV_BLOCK_TOKENS };
    mr_embedded cluster;
    uint32_t blocks[BLOCKS];
    const mr_embedded_options options = {.model_directory = directory,
                                         .threads = threads,
                                         .kv_blocks = BLOCKS,
                                         .step_tokens_max = SEQUENCE_TOKENS,
                                         .step_sequences_max = 1,
                                         .quiet = true};
    const mr_step_sink sink = {.logits = on_logits, .context = m};
    mr_status status = mr_embedded_open(&cluster, &options, err);
    if (status != MR_OK) return status;
    for (uint32_t i = 0; i < BLOCKS; i++) blocks[i] = i;
    for (m->first = 0; m->first < m->count && status == MR_OK; m->first += m->sequence) {
        const uint32_t left = m->count - m->first;
        mr_wire_sequence sequence = {.token_count = left < m->sequence ? left : m->sequence,
                                     .block_count = BLOCKS,
                                     .flags = MR_SEQUENCE_LOGITS,
                                     .top_p = 1};
        const mr_step step = {.sequence_count = 1,
                              .token_count = sequence.token_count,
                              .block_count = BLOCKS,
                              .sequences = &sequence,
                              .tokens = m->tokens + m->first,
                              .blocks = blocks};
        status = mr_embedded_step(&cluster, &step, &sink, err);
    }
    mr_embedded_close(&cluster);
    return status;
}

static mr_status encode(measure *m, const char *directory, const char *samples, uint32_t vocab,
                        mr_err *err) {
    char *path = mr_format("%s/tokenizer.json", directory), *read = NULL;
    mr_tokenizer *tokenizer = NULL;
    mr_token_list list = {0};
    size_t bytes = strlen(built_in_text);
    mr_status status = mr_tokenizer_open(&tokenizer, path, err);
    if (status == MR_OK && samples)
        status = mr_file_read(&read, &bytes, samples, SAMPLE_BYTES_MAX, err);
    if (status == MR_OK)
        status = mr_tokenizer_encode(tokenizer, read ? read : built_in_text, bytes,
                                     &(mr_encode_options){.no_special = !samples}, &list, err);
    if (status == MR_OK && list.count < 2)
        status = mr_fail(err, MR_ERR_ARGUMENT, "%s has fewer than two tokens", samples);
    for (size_t i = 0; i < list.count && m->count < POSITIONS_MAX && status == MR_OK; i++)
        if ((uint32_t)list.items[i] < vocab) m->tokens[m->count++] = list.items[i];
    m->has_text = true;
    mr_token_list_free(&list);
    mr_tokenizer_close(tokenizer);
    free(read);
    free(path);
    return status;
}

/* Ids that only look random: the same for every run. */
static void draw(measure *m, uint32_t vocab) {
    uint64_t state = 1;
    for (; m->count < SEQUENCES_OF_IDS * m->sequence; m->count++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        m->tokens[m->count] = (int32_t)((state >> 33) % vocab);
    }
}

static mr_status choose_tokens(measure *m, const char *directory, const char *samples,
                               mr_err *err) {
    mr_model *model;
    mr_status status = mr_model_open(&model, directory, err);
    if (status != MR_OK) return status;
    const mr_config *c = mr_model_config(model);
    char *path = mr_format("%s/tokenizer.json", directory);
    m->columns = c->head_rows;
    m->sequence = c->context_tokens < SEQUENCE_TOKENS ? c->context_tokens : SEQUENCE_TOKENS;
    m->tokens = mr_alloc_array(POSITIONS_MAX, sizeof(*m->tokens));
    if (samples || access(path, F_OK) == 0)
        status = encode(m, directory, samples, c->vocab_size, err);
    else
        draw(m, c->vocab_size);
    free(path);
    mr_model_close(model);
    const uint64_t room = KEPT_BYTES / (m->columns * sizeof(float));
    if (m->count > room) m->count = (uint32_t)(room > 16 ? room : 16);
    return status;
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void summarise(mr_convert_loss *out, measure *m) {
    *out = (mr_convert_loss){.positions = m->count,
                             .top1_agreement = (double)m->agree / m->count,
                             .logit_error_max = m->error_max,
                             .has_text = m->has_text && m->predicted > 0};
    qsort(m->kl, m->count, sizeof(*m->kl), ascending);
    for (uint32_t i = 0; i < m->count; i++) out->kl_mean += m->kl[i] / m->count;
    out->kl_p99 = m->kl[(uint32_t)((m->count - 1) * 0.99)];
    out->kl_max = m->kl[m->count - 1];
    if (!out->has_text) return;
    out->perplexity_before = exp(-m->log_before / m->predicted);
    out->perplexity_after = exp(-m->log_after / m->predicted);
}

mr_status mr_convert_loss_measure(mr_convert_loss *out, const char *before, const char *after,
                                  const char *samples, uint32_t threads, mr_err *err) {
    measure m = {.is_finite = true};
    void *kept = NULL;
    mr_status status = choose_tokens(&m, before, samples, err);
    if (status == MR_OK)
        status = mr_try_alloc(&kept, (size_t)m.count * m.columns, sizeof(float), "logits", err);
    m.kept = kept;
    m.kl = mr_alloc_array(m.count + 1ull, sizeof(*m.kl));
    if (status == MR_OK) status = run(&m, before, threads, err);
    m.is_second = true;
    if (status == MR_OK) status = run(&m, after, threads, err);
    if (status == MR_OK && !m.is_finite)
        status = mr_fail(err, MR_ERR_RANGE, "%s gives logits that are not finite", after);
    if (status == MR_OK) summarise(out, &m);
    free(m.kl);
    free(m.kept);
    free(m.tokens);
    return status;
}
