/* grid.c - see grid.h. */
#include "common/model/grid.h"

#include "common/base/limits.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

mr_status mr_grid_parse(mr_grid *out, const char *text, mr_err *err) {
    unsigned long parts[2];
    const char *at = text;
    for (int i = 0; i < 2; i++) {
        char *end;
        if (*at < '0' || *at > '9') goto malformed;
        parts[i] = strtoul(at, &end, 10);
        if (*end != (i == 0 ? 'x' : '\0')) goto malformed;
        at = end + 1;
    }
    if (parts[0] == 0 || parts[1] == 0 || parts[0] > MR_MAX_CELLS || parts[1] > MR_MAX_CELLS ||
        parts[0] * parts[1] > MR_MAX_CELLS)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "grid '%.40s': both sides must be at least 1 and their product at most %d",
                       text, MR_MAX_CELLS);
    *out = (mr_grid){(uint32_t)parts[0], (uint32_t)parts[1]};
    return MR_OK;
malformed:
    return mr_fail(
        err, MR_ERR_ARGUMENT,
        "grid '%.40s' is not ROWSxCOLUMNS, for example 2x4: 2 row groups, 4 width slices", text);
}
