/* cli.h - the subcommands of `memrack`: one file each, called with argv[0] = the subcommand's name.
 * They return the process's exit status: 0 done, 1 failed, 2 wrong usage. */
#ifndef MR_CLI_CLI_H
#define MR_CLI_CLI_H
#include "common/base/options.h"

int mr_cmd_serve(int argc, char **argv);
int mr_cmd_up(int argc, char **argv);
int mr_cmd_generate(int argc, char **argv);
int mr_cmd_chat(int argc, char **argv);
int mr_cmd_logits(int argc, char **argv);
int mr_cmd_inspect(int argc, char **argv);
int mr_cmd_selftest(int argc, char **argv);
int mr_cmd_convert(int argc, char **argv);
int mr_cmd_split(int argc, char **argv);
int mr_cmd_plan(int argc, char **argv);
int mr_cmd_synth(int argc, char **argv);
int mr_cmd_import(int argc, char **argv);
int mr_cmd_replay(int argc, char **argv);
int mr_cmd_load(int argc, char **argv);
int mr_cmd_unload(int argc, char **argv);
int mr_cmd_switch(int argc, char **argv);
int mr_cmd_rollback(int argc, char **argv);
int mr_cmd_status(int argc, char **argv);
int mr_cmd_drain(int argc, char **argv);
int mr_cmd_down(int argc, char **argv);

/* Prints "memrack NAME: sentence" to stderr and returns the exit status that suits it. */
int mr_cli_fail(const char *name, mr_status status, const mr_err *err);
/* Parses options; returns -1 to go on, else the exit status to return at once. */
int mr_cli_parse(const mr_command_spec *spec, int argc, char **argv, const char **positional,
                 int *positional_count);
/* A progress bar on stderr where stderr is a terminal; an mr_progress. */
void mr_cli_progress(void *context, const char *what, double fraction);

#endif
