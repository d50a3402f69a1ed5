/* fuzz_view.c - any bytes as records of a cluster: a record that survives being written and read
 * again, or a sentence.
 *
 * The first byte chooses the kind: 'm' member, 'p' map, 'o' owner, anything else a model. */
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/net/view.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

#define CHECK(type, parse, dump, free_it)                                                          \
    do {                                                                                           \
        type *record, *again;                                                                      \
        if (parse(&record, text, bytes, "what", &err) != MR_OK) {                                  \
            assert(!record && strncmp(err.text, "what", 4) == 0);                                  \
            return 0;                                                                              \
        }                                                                                          \
        char *first = dump(record);                                                                \
        assert(first);                                                                             \
        if (parse(&again, first, strlen(first), "what", &err) != MR_OK) abort();                   \
        char *second = dump(again);                                                                \
        assert(second &&strcmp(first, second) == 0);                                               \
        free(first);                                                                               \
        free(second);                                                                              \
        free_it(again);                                                                            \
        free_it(record);                                                                           \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    mr_err err = {{0}};
    mr_log_setup("fuzz", MR_LOG_ERROR, 1);
    if (bytes == 0) return 0;
    const char kind = (char)data[0], *text = (const char *)data + 1;
    bytes--;
    if (kind == 'm')
        CHECK(mr_member, mr_member_parse, mr_member_dump, mr_member_free);
    else if (kind == 'p')
        CHECK(mr_map_record, mr_map_record_parse, mr_map_record_dump, mr_map_record_free);
    else if (kind == 'o')
        CHECK(mr_owner_record, mr_owner_record_parse, mr_owner_record_dump, mr_owner_record_free);
    else
        CHECK(mr_model_record, mr_model_record_parse, mr_model_record_dump, mr_model_record_free);
    return 0;
}
