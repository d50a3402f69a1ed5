/* view_impl.h - what the readers of records share: required keys, names, digests, grids.
 *
 * Every getter says which key is wrong and how. Records come from a store that others write to, so
 * nothing is taken unchecked: texts by character, numbers by range, counts before anything is
 * allocated for them. */
#ifndef MR_NET_VIEW_IMPL_H
#define MR_NET_VIEW_IMPL_H
#include "common/base/json.h"
#include "common/net/view.h"

enum { MR_RECORD_SCHEMA = 1 };

typedef struct {
    json_t *root;    /* owned; NULL after a failure */
    bool is_lenient; /* written by a newer version: unknown keys are ignored */
} mr_record_text;

/* Parses a text as an object of a schema we know or a newer one, with these keys (and "schema"). */
mr_status mr_record_open(mr_record_text *out, const char *text, size_t bytes,
                         const char *const *known, const char *what, mr_err *err);
mr_status mr_record_keys(const mr_record_text *t, const json_t *object, const char *const *known,
                         mr_err *err);

/* Missing keys are refused by these. */
mr_status mr_need_u64(uint64_t *out, const json_t *object, const char *key, uint64_t min,
                      uint64_t max, mr_err *err);
mr_status mr_need_u32(uint32_t *out, const json_t *object, const char *key, uint32_t min,
                      uint32_t max, mr_err *err);
mr_status mr_need_digest(mr_digest *out, const json_t *object, const char *key, mr_err *err);
mr_status mr_need_grid(uint32_t *rows, uint32_t *columns, const json_t *object, mr_err *err);
mr_status mr_need_id(char **out, const json_t *object, const char *key, mr_err *err);
/* *out (borrowed) is an array of min..max items; NULL where it is missing and min is 0. */
mr_status mr_need_array(const json_t **out, const json_t *object, const char *key, size_t min,
                        size_t max, mr_err *err);

mr_status mr_grid_check(uint64_t rows, uint64_t columns, mr_err *err);

/* Takes root over. NULL where it is NULL or too long. */
char *mr_record_write(json_t *root);
/* The integer, or NULL where JSON integers do not reach it. */
json_t *mr_record_number(uint64_t number);
json_t *mr_record_digest(const mr_digest *digest);

#endif
