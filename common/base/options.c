/* options.c - see options.h. */
#include "common/base/options.h"

#include "common/base/mem.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OPTIONS_MAX = 64 };

void mr_options_help(const mr_command_spec *spec) {
    printf("usage: %s\n\n%s\n\noptions:\n", spec->usage, spec->summary);
    for (const mr_option *o = spec->options; o->name; o++) {
        char left[64];
        snprintf(left, sizeof(left), "%s%c%s--%s%s%s", o->letter ? "-" : "  ",
                 o->letter ? o->letter : ' ', o->letter ? ", " : " ", o->name,
                 o->argument ? " " : "", o->argument ? o->argument : "");
        printf("  %-30s %s\n", left, o->help);
    }
    printf("  %-30s %s\n", "-h, --help", "show this text");
}

static mr_status store(const mr_option *o, const char *text, mr_err *err) {
    char *end;
    errno = 0;
    switch (o->kind) {
    case MR_OPT_FLAG:
        *(bool *)o->out = true;
        return MR_OK;
    case MR_OPT_TEXT:
        *(const char **)o->out = text;
        return MR_OK;
    case MR_OPT_LIST: {
        mr_text_list *list = o->out;
        list->items = mr_realloc_array(list->items, list->count + 1, sizeof(*list->items));
        list->items[list->count++] = text;
        return MR_OK;
    }
    case MR_OPT_INT: {
        const long long value = strtoll(text, &end, 10);
        if (*text == '\0' || *end || errno)
            return mr_fail(err, MR_ERR_ARGUMENT, "--%s takes a whole number, not '%s'", o->name,
                           text);
        if ((double)value < o->min || (double)value > o->max)
            return mr_fail(err, MR_ERR_ARGUMENT, "--%s is %lld; it must lie in [%.0f, %.0f]",
                           o->name, value, o->min, o->max);
        *(int64_t *)o->out = value;
        return MR_OK;
    }
    case MR_OPT_DOUBLE: {
        const double value = strtod(text, &end);
        if (*text == '\0' || *end || errno)
            return mr_fail(err, MR_ERR_ARGUMENT, "--%s takes a number, not '%s'", o->name, text);
        if (!(value >= o->min && value <= o->max))
            return mr_fail(err, MR_ERR_ARGUMENT, "--%s is %g; it must lie in [%g, %g]", o->name,
                           value, o->min, o->max);
        *(double *)o->out = value;
        return MR_OK;
    }
    }
    return MR_ERR_ARGUMENT;
}

mr_status mr_options_parse(const mr_command_spec *spec, int argc, char **argv,
                           const char **positional, int *positional_count, mr_err *err) {
    struct option table[OPTIONS_MAX + 2] = {0};
    char letters[2 * OPTIONS_MAX + 8] = ":h";
    int count = 0, code, at = 0;
    for (const mr_option *o = spec->options; o->name && count < OPTIONS_MAX; o++, count++) {
        const bool takes = o->kind != MR_OPT_FLAG;
        table[count] =
            (struct option){o->name, takes ? required_argument : no_argument, NULL, 256 + count};
        if (o->letter) {
            const size_t used = strlen(letters);
            letters[used] = o->letter;
            if (takes) letters[used + 1] = ':';
        }
    }
    table[count] = (struct option){"help", no_argument, NULL, 'h'};
    *positional_count = 0;
    optind = 0; /* glibc: start anew, so that several tables can be parsed in one process */
    opterr = 0;
    while ((code = getopt_long(argc, argv, letters, table, NULL)) != -1) {
        const mr_option *o = NULL;
        if (code == 'h') {
            mr_options_help(spec);
            return MR_ERR_CANCELLED;
        }
        if (code == ':')
            return mr_fail(err, MR_ERR_ARGUMENT, "%s needs a value; try --help", argv[optind - 1]);
        if (code == '?')
            return mr_fail(err, MR_ERR_ARGUMENT, "unknown option %s; try --help", argv[optind - 1]);
        if (code >= 256)
            o = &spec->options[code - 256];
        else
            for (const mr_option *p = spec->options; p->name; p++)
                if (p->letter == code) o = p;
        if (!o) return mr_fail(err, MR_ERR_ARGUMENT, "unknown option; try --help");
        const mr_status status = store(o, optarg, err);
        if (status != MR_OK) return status;
    }
    for (at = optind; at < argc; at++) {
        if (*positional_count >= spec->positional_max)
            return mr_fail(err, MR_ERR_ARGUMENT, "unexpected argument '%s'; try --help", argv[at]);
        positional[(*positional_count)++] = argv[at];
    }
    if (*positional_count < spec->positional_min)
        return mr_fail(err, MR_ERR_ARGUMENT, "usage: %s; try --help", spec->usage);
    return MR_OK;
}
