/* sizes.h - amounts of memory as people write them: "512", "64MiB", "1.5 GiB", "2TB". */
#ifndef MR_BASE_SIZES_H
#define MR_BASE_SIZES_H
#include "common/base/status.h"

#include <stdbool.h>
#include <stdint.h>

/* what: how the text is called in the sentence ("--capacity"). Powers of 1024 for KiB .. PiB, of
 * 1000 for kB .. PB; a plain number is bytes. Fractions are cut to whole bytes. */
mr_status mr_bytes_parse(uint64_t *out, const char *text, const char *what, mr_err *err);

#endif
