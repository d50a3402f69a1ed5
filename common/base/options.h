/* options.h - command-line options as rows of a table: one row gives parsing, bounds and help.
 * Built on getopt_long. Every program of the project describes its options this way. */
#ifndef MR_BASE_OPTIONS_H
#define MR_BASE_OPTIONS_H
#include "common/base/status.h"

#include <stdint.h>

typedef enum { MR_OPT_FLAG, MR_OPT_INT, MR_OPT_DOUBLE, MR_OPT_TEXT, MR_OPT_LIST } mr_option_kind;

typedef struct {
    const char *name; /* long name without dashes */
    char letter;      /* short form, or 0 */
    mr_option_kind kind;
    void *out;            /* bool*, int64_t*, double*, const char**, mr_text_list* */
    double min, max;      /* for numbers, inclusive */
    const char *argument; /* shown in help: "N", "FILE" */
    const char *help;     /* one sentence, with the default */
} mr_option;              /* a row with name NULL ends the table */

typedef struct {
    const char **items;
    uint32_t count;
} mr_text_list;

typedef struct {
    const char *usage;   /* "memrack generate MODEL -p TEXT [options]" */
    const char *summary; /* what it does, and an example */
    const mr_option *options;
    int positional_min, positional_max;
} mr_command_spec;

/* argv[0] is the (sub)command's name. Positional arguments are collected into positional[0..max).
 * Returns MR_OK; MR_ERR_CANCELLED after --help was printed to stdout (exit 0); MR_ERR_ARGUMENT with
 * a sentence otherwise. Text results borrow from argv. */
mr_status mr_options_parse(const mr_command_spec *spec, int argc, char **argv,
                           const char **positional, int *positional_count, mr_err *err);
void mr_options_help(const mr_command_spec *spec);

#endif
