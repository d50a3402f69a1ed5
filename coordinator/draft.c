/* draft.c - see draft.h. */
#include "coordinator/draft.h"

#include "common/base/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum {
    MATCH_MIN = 2,
    MATCH_MAX = 4,
    TABLE_ENTRIES = 1 << 18,
    CONTEXT = 3,        /* tokens an entry of the table stands behind */
    COUNT_MAX = 255,    /* of an entry */
    PROBES_MAX = 32,    /* of the index: beyond, a run is not kept */
    INDEX_PIECE = 4096, /* tokens indexed in one call */
    COST_TOKENS_MAX = 128,
};

/* How often guesses of one kind were right lately. */
typedef struct {
    float tests, hits;
} record;

/* Kinds of guesses: by the length of the run, then by the count of the table's entry. */
enum { FROM_TABLE = MR_DRAFT_MATCH_MAX, KINDS = FROM_TABLE + 3 };

typedef struct {
    uint32_t mark; /* of its three tokens; 0: empty */
    int32_t token;
    uint32_t count;
} table_entry;

struct mr_drafts {
    mr_draft_options options;
    table_entry *table; /* [table_entries] or NULL */
    record records[KINDS];
};

/* A slot of the index is the end of a run (exclusive) and its length, end * 8 + length; 0: empty.
 */
struct mr_draft {
    mr_drafts *shared;
    uint64_t model;
    int32_t *text; /* [tokens_max] */
    uint32_t count, tokens_max;
    uint32_t *slots;             /* [slot_mask + 1] or NULL */
    uint32_t slot_mask, indexed; /* runs that end at or before `indexed` are in the index */
    record records[KINDS];
    int32_t guess[MR_MAX_DRAFT_TOKENS];
    uint32_t guessed, right; /* tokens of the last guess; of them, come true */
    int kind;                /* of it */
};

/* --- shared ----------------------------------------------------------------------------------- */

mr_drafts *mr_drafts_open(const mr_draft_options *options) {
    mr_drafts *d = mr_alloc(sizeof(*d));
    mr_draft_options *o = &d->options;
    *o = *options;
    if (o->kind == 0) o->kind = MR_DRAFT_BOTH;
    if (o->match_min == 0) o->match_min = MATCH_MIN;
    if (o->match_max == 0) o->match_max = MATCH_MAX;
    if (o->table_entries == 0) o->table_entries = TABLE_ENTRIES;
    assert(o->tokens_max > 0 && o->tokens_max <= MR_MAX_DRAFT_TOKENS);
    assert(o->match_min <= o->match_max && o->match_max <= MR_DRAFT_MATCH_MAX);
    assert((o->table_entries & (o->table_entries - 1)) == 0);
    if (o->kind & MR_DRAFT_NGRAM) d->table = mr_alloc_array(o->table_entries, sizeof(*d->table));
    return d;
}

void mr_drafts_close(mr_drafts *d) {
    if (!d) return;
    free(d->table);
    free(d);
}

static uint64_t mix(uint64_t x) {
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93ull;
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93ull;
    return x ^ (x >> 32);
}

static uint64_t hash_of(uint64_t seed, const int32_t *tokens, uint32_t count) {
    uint64_t hash = mix(seed + count);
    for (uint32_t i = 0; i < count; i++) hash = mix(hash ^ (uint32_t)tokens[i]);
    return hash;
}

/* --- the table -------------------------------------------------------------------------------- */

static table_entry *entry_of(const mr_draft *d, const int32_t *context, uint32_t *mark) {
    const uint64_t hash = hash_of(d->model, context, CONTEXT);
    *mark = (uint32_t)(hash >> 32) | 1;
    return &d->shared->table[hash & (d->shared->options.table_entries - 1)];
}

/* An entry that is contradicted, or whose place others want, fades before it goes. */
static void learn(mr_draft *d, int32_t token) {
    uint32_t mark;
    if (!d->shared->table || d->count < CONTEXT) return;
    table_entry *e = entry_of(d, d->text + d->count - CONTEXT, &mark);
    if (e->mark == mark && e->token == token) {
        if (e->count < COUNT_MAX) e->count++;
    } else if (e->count > 1)
        e->count /= 2;
    else
        *e = (table_entry){mark, token, 1};
}

static uint32_t ask_table(const mr_draft *d, int32_t *out, int *kind) {
    int32_t context[CONTEXT];
    uint32_t mark, count = 0;
    if (!d->shared->table || d->count < CONTEXT) return 0;
    memcpy(context, d->text + d->count - CONTEXT, sizeof(context));
    while (count < d->shared->options.tokens_max) {
        const table_entry *e = entry_of(d, context, &mark);
        if (e->mark != mark) break;
        if (count == 0) *kind = FROM_TABLE + (e->count > 1) + (e->count > 3);
        out[count++] = e->token;
        memmove(context, context + 1, sizeof(context) - sizeof(*context));
        context[CONTEXT - 1] = e->token;
    }
    return count;
}

/* --- the index -------------------------------------------------------------------------------- */

/* The slot of the run that ends at `end`, or the one where it would be; NULL: too many others. */
static uint32_t *find_slot(const mr_draft *d, uint32_t end, uint32_t length) {
    const int32_t *run = d->text + end - length;
    uint64_t at = hash_of(0, run, length);
    for (int probe = 0; probe < PROBES_MAX; probe++, at++) {
        uint32_t *slot = &d->slots[at & d->slot_mask];
        if (*slot == 0) return slot;
        if (*slot % 8 == length &&
            memcmp(d->text + *slot / 8 - length, run, length * sizeof(*run)) == 0)
            return slot;
    }
    return NULL;
}

/* All runs that have something behind them. Returns whether that is done. */
static bool index_more(mr_draft *d) {
    const mr_draft_options *o = &d->shared->options;
    uint32_t until = d->count > 0 ? d->count - 1 : 0;
    if (until > d->indexed + INDEX_PIECE) until = d->indexed + INDEX_PIECE;
    while (d->indexed < until) {
        const uint32_t end = ++d->indexed;
        for (uint32_t n = o->match_min; n <= o->match_max && n <= end; n++) {
            uint32_t *slot = find_slot(d, end, n);
            if (slot) *slot = end * 8 + n;
        }
    }
    return d->indexed + 1 >= d->count;
}

static uint32_t look_up(mr_draft *d, int32_t *out, int *kind) {
    const mr_draft_options *o = &d->shared->options;
    if (!d->slots || !index_more(d)) return 0;
    for (uint32_t n = o->match_max; n >= o->match_min; n--) {
        if (n >= d->count) continue;
        const uint32_t *slot = find_slot(d, d->count, n);
        if (!slot || *slot == 0) continue;
        const uint32_t end = *slot / 8;
        for (uint32_t i = 0; i < o->tokens_max; i++) /* beyond the text's end: once more around */
            out[i] = end + i < d->count ? d->text[end + i] : out[i - (d->count - end)];
        *kind = (int)n - 1;
        return o->tokens_max;
    }
    return 0;
}

/* --- a text ----------------------------------------------------------------------------------- */

mr_draft *mr_draft_open(mr_drafts *drafts, uint64_t model, uint32_t tokens_max) {
    const mr_draft_options *o = &drafts->options;
    mr_draft *d = mr_alloc(sizeof(*d));
    assert(tokens_max > 0 && tokens_max <= 2u * MR_MAX_CONTEXT);
    d->shared = drafts;
    d->model = model;
    d->tokens_max = tokens_max;
    d->text = mr_alloc_array(tokens_max, sizeof(*d->text));
    if (!(o->kind & MR_DRAFT_LOOKUP)) return d;
    const uint64_t runs = (uint64_t)tokens_max * (o->match_max - o->match_min + 1);
    uint64_t slots = 8;
    while (slots < runs + runs / 2) slots *= 2; /* at most two thirds full */
    d->slots = mr_alloc_array(slots, sizeof(*d->slots));
    d->slot_mask = (uint32_t)(slots - 1);
    return d;
}

void mr_draft_close(mr_draft *d) {
    if (!d) return;
    free(d->text);
    free(d->slots);
    free(d);
}

void mr_draft_add(mr_draft *d, const int32_t *tokens, uint32_t count) {
    assert(count <= d->tokens_max - d->count);
    if (count > 0) memcpy(d->text + d->count, tokens, count * sizeof(*tokens));
    d->count += count;
    d->guessed = 0;
}

static void note(record *r, bool is_right, float memory) {
    r->tests = r->tests * memory + 1;
    r->hits = r->hits * memory + (is_right ? 1 : 0);
}

void mr_draft_push(mr_draft *d, int32_t token) {
    assert(d->count < d->tokens_max);
    if (d->right < d->guessed) {
        const bool is_right = d->guess[d->right] == token;
        note(&d->records[d->kind], is_right, 0.9f);
        note(&d->shared->records[d->kind], is_right, 0.99f);
        d->right++;
        if (!is_right) d->guessed = 0;
    }
    learn(d, token);
    d->text[d->count++] = token;
}

/* What the text itself has shown, and as long as that is little what others have. */
static float chance_of(const mr_draft *d, int kind) {
    const record *all = &d->shared->records[kind], *own = &d->records[kind];
    const float before = (all->hits + 1) / (all->tests + 2);
    return (own->hits + 2 * before) / (own->tests + 2);
}

mr_draft_guess mr_draft_next(mr_draft *d) {
    int32_t other[MR_MAX_DRAFT_TOKENS];
    int kind = 0;
    const uint32_t most = d->shared->options.tokens_max;
    const uint32_t known = ask_table(d, other, &kind);
    d->right = 0;
    d->guessed = look_up(d, d->guess, &d->kind);
    if (known > 0 && (d->guessed == 0 || chance_of(d, kind) > chance_of(d, d->kind))) {
        memcpy(d->guess, other, known * sizeof(*other));
        d->guessed = known;
        d->kind = kind;
    }
    assert(d->guessed <= most);
    return (mr_draft_guess){d->guess, d->guessed, d->guessed ? chance_of(d, d->kind) : 0};
}

/* --- cost ------------------------------------------------------------------------------------- */

/* Least squares, leaning towards a step whose base costs as much as three tokens. */
static void fit(const mr_draft_cost *c, double *base, double *slope) {
    const double lean = 4;
    if (c->weight <= 0) {
        *base = 3;
        *slope = 1;
        return;
    }
    const double m = c->tokens / c->weight, ns = c->ns / c->weight;
    const double variance = c->tokens2 - m * c->tokens, with_ns = c->tokens_ns - m * c->ns;
    double b = (with_ns + lean * ns / (3 + m)) / (variance + lean);
    const double least = ns / 256 / m, most = ns / m;
    b = b < least ? least : b > most ? most : b;
    *slope = b;
    *base = ns - b * m;
}

/* What disturbs a step only ever makes it longer: times above the line count less, and none for
 * more than twice what the line says. */
void mr_draft_cost_note(mr_draft_cost *c, uint32_t tokens, uint64_t step_ns) {
    const double memory = 0.97, m = tokens;
    double ns = (double)step_ns, base, slope, weight = 1;
    if (tokens == 0 || tokens > COST_TOKENS_MAX) return; /* no guess is worth it there */
    fit(c, &base, &slope);
    const double expected = base + slope * m;
    if (c->weight > 4 && ns > expected) weight = 0.25;
    if (c->weight > 4 && ns > 2 * expected) ns = 2 * expected;
    c->weight = c->weight * memory + weight;
    c->tokens = c->tokens * memory + weight * m;
    c->ns = c->ns * memory + weight * ns;
    c->tokens2 = c->tokens2 * memory + weight * m * m;
    c->tokens_ns = c->tokens_ns * memory + weight * m * ns;
}

uint32_t mr_draft_worth(const mr_draft_cost *cost, mr_draft_step *step, uint32_t count,
                        float chance) {
    double base, slope, both = 1;
    uint32_t taken = 0;
    fit(cost, &base, &slope);
    for (; taken < count; taken++) {
        both *= (double)chance;
        if (both * (base + slope * step->tokens) <= slope * step->expected) break;
        step->tokens += 1;
        step->expected += both;
    }
    return taken;
}

/* --- options ---------------------------------------------------------------------------------- */

mr_status mr_draft_settings_read(mr_draft_options *out, const mr_draft_settings *s, mr_err *err) {
    static const char *const names[] = {"lookup", "ngram", "both"};
    *out = (mr_draft_options){.tokens_max = (uint32_t)s->tokens_max, .kind = MR_DRAFT_BOTH};
    if (!s->kind) return MR_OK;
    for (int i = 0; i < 3; i++)
        if (strcmp(s->kind, names[i]) == 0) {
            out->kind = (mr_draft_kind)(i + 1);
            return MR_OK;
        }
    return mr_fail(err, MR_ERR_ARGUMENT, "--draft is lookup, ngram or both, not '%s'", s->kind);
}
