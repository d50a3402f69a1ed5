/* sizes.c - see sizes.h. */
#include "common/base/sizes.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

mr_status mr_bytes_parse(uint64_t *out, const char *text, const char *what, mr_err *err) {
    static const struct {
        const char *name;
        double bytes;
    } units[] = {{"", 1},         {"B", 1},        {"KiB", 0x1p10}, {"MiB", 0x1p20},
                 {"GiB", 0x1p30}, {"TiB", 0x1p40}, {"PiB", 0x1p50}, {"kB", 1e3},
                 {"MB", 1e6},     {"GB", 1e9},     {"TB", 1e12},    {"PB", 1e15}};
    char *end = NULL;
    *out = 0;
    const bool is_number = text[0] >= '0' && text[0] <= '9' && text[1] != 'x' && text[1] != 'X';
    const double value = is_number ? strtod(text, &end) : -1;
    if (is_number && isfinite(value)) {
        while (*end == ' ') end++;
        for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
            if (strcmp(end, units[i].name) != 0) continue;
            if (value * units[i].bytes >= 0x1p63)
                return mr_fail(err, MR_ERR_RANGE, "%s %.40s is more than any machine has", what,
                               text);
            *out = (uint64_t)(value * units[i].bytes);
            return MR_OK;
        }
    }
    return mr_fail(err, MR_ERR_ARGUMENT, "%s '%.40s' is not a size such as 512MiB or 1.5TiB", what,
                   text);
}
