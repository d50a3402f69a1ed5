/* truth.h - the models of the simulation and the requests made of them, each with the tokens that
 * an undisturbed engine in this process answers: what every cluster must answer, too. */
#ifndef MR_TESTS_SIM_TRUTH_H
#define MR_TESTS_SIM_TRUTH_H
#include "common/model/manifest.h"
#include "common/model/model.h"
#include "memshard/holdings.h"

enum { SIM_MODELS = 4, SIM_ASKS = 24, SIM_PROMPT_MAX = 56, SIM_ANSWER_MAX = 14, SIM_CHOICES = 2 };

typedef struct {
    int32_t prompt[SIM_PROMPT_MAX];
    uint32_t prompt_count, new_tokens, choices;
    float temperature;
    uint64_t seed;
    int32_t answer[SIM_CHOICES][SIM_ANSWER_MAX]; /* [new_tokens] */
} sim_ask;

typedef struct {
    const char *name;
    mr_model *model;
    mr_manifest manifest;
    mr_model_tables *tables; /* NULL: it has no memory layers */
    uint32_t block_count;
    uint64_t table_bytes;
    sim_ask asks[SIM_ASKS];
} sim_model;

/* Once, before any world is begun; kept until the program ends. */
void sim_truth_open(void);
sim_model *sim_model_at(uint32_t index);
/* A mr_source_opener: the tables of the model of that digest, as often as wanted. */
mr_status sim_open_tables(void *context, mr_table_source *out, const mr_load_order *order,
                          mr_progress progress, void *progress_context, mr_err *err);

#endif
