/* convert_impl.h - parts of the conversion, for the files of common/model/convert*.c only. */
#ifndef MR_MODEL_CONVERT_IMPL_H
#define MR_MODEL_CONVERT_IMPL_H
#include "common/model/convert.h"
#include "common/model/pack.h"

/* convert_rows.c: rows [first, first + count) of a tensor in another format, into to [count]
 * [mr_storage_bytes]. Codes of the same format are copied. Numbers that are not finite, or that
 * would not be, are refused by name. */
mr_status mr_convert_rows(uint8_t *to, mr_storage format, const mr_model *model,
                          const mr_tensor *tensor, uint64_t first, uint64_t count, mr_team *team,
                          mr_err *err);
/* Outputs [first, first + count) of a matrix into panels under way: w has n = count and was
 * cleared; first is a multiple of MR_PANEL. */
mr_status mr_convert_panels(const mr_packed *w, const mr_model *model, const mr_matrix *matrix,
                            uint32_t first, uint32_t count, mr_team *team, mr_err *err);

/* convert_files.c: config.json of the result, and the small files beside it. type: of every U8
 * tensor by name. */
mr_status mr_convert_config(const mr_model *model, const char *directory,
                            const mr_quant_config *quant, mr_err *err);
mr_status mr_convert_copy_files(const char *from, const char *to, mr_err *err);
/* A folder and the files in it. */
void mr_convert_remove(const char *directory);

#endif
