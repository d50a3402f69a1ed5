/* common.c - what all subcommands share: parsing, failing, progress. */
#include "cli/cli.h"

#include <stdio.h>
#include <unistd.h>

int mr_cli_fail(const char *name, mr_status status, const mr_err *err) {
    fprintf(stderr, "memrack %s: %s\n", name, err->text);
    return status == MR_ERR_ARGUMENT ? 2 : 1;
}

int mr_cli_parse(const mr_command_spec *spec, int argc, char **argv, const char **positional,
                 int *positional_count) {
    mr_err err = {{0}};
    const mr_status status = mr_options_parse(spec, argc, argv, positional, positional_count, &err);
    if (status == MR_OK) return -1;
    if (status == MR_ERR_CANCELLED) return 0;
    return mr_cli_fail(argv[0], status, &err);
}

void mr_cli_progress(void *context, const char *what, double fraction) {
    static int last = -1;
    (void)context;
    if (!isatty(STDERR_FILENO)) return;
    const int percent = (int)(fraction * 100);
    if (percent == last) return;
    last = percent;
    char bar[31];
    for (int i = 0; i < 30; i++) bar[i] = i * 100 < percent * 30 ? '#' : '.';
    bar[30] = '\0';
    fprintf(stderr, "\r%-28.28s [%s] %3d %%", what, bar, percent);
    if (fraction >= 1.0) fprintf(stderr, "\r%70s\r", "");
    fflush(stderr);
}
