/* main.c - `memrack`, the tool people type: finds the subcommand and hands over. */
#include "cli/cli.h"

#include "common/base/log.h"

#include <fenv.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} commands[] = {
    {"serve", mr_cmd_serve, "serve a model over HTTP, all roles in this process"},
    {"up", mr_cmd_up, "start a cluster of processes on this machine and show it"},
    {"status", mr_cmd_status, "show every process of a running cluster"},
    {"load", mr_cmd_load, "add a model, or a version of one, to a running cluster"},
    {"switch", mr_cmd_switch, "make a loaded version the active one"},
    {"rollback", mr_cmd_rollback, "go back to the version before the last switch"},
    {"unload", mr_cmd_unload, "take a model or a version out of a cluster"},
    {"drain", mr_cmd_drain, "empty a member of a cluster, so that it can leave"},
    {"down", mr_cmd_down, "end the cluster that `memrack up` runs here"},
    {"generate", mr_cmd_generate, "continue a text"},
    {"chat", mr_cmd_chat, "talk with a model in the terminal"},
    {"logits", mr_cmd_logits, "compute logits of token ids in a safetensors file"},
    {"selftest", mr_cmd_selftest, "prove same answers, measure the fabrics, on these hosts"},
    {"inspect", mr_cmd_inspect, "show what a model is and what it needs"},
    {"convert", mr_cmd_convert, "write a model in other storage types, and say what it costs"},
    {"split", mr_cmd_split, "write a model's manifest: grid, maxima, norms, checksums"},
    {"plan", mr_cmd_plan, "predict memory, bytes, step time and the best grid on a rack"},
    {"replay", mr_cmd_replay, "ask again for recorded rows, of other shards, caches, tiers"},
    {"import", mr_cmd_import, "make a model directory from a GGUF file"},
    {"synth", mr_cmd_synth, "write a random model of a named shape"},
};
enum { COMMAND_COUNT = sizeof(commands) / sizeof(commands[0]) };

static void help(FILE *out) {
    fprintf(out, "memrack %s - serve memory-layer models\n\nusage: memrack COMMAND [options]\n\n",
            MR_VERSION);
    for (int i = 0; i < COMMAND_COUNT; i++)
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].help);
    fprintf(out, "\n'memrack COMMAND --help' explains a command. Try: memrack chat models/demo\n");
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN); /* a closed pipe is an error to report, not a death */
    mr_log_setup("memrack", MR_LOG_INFO, 1);
    if (argc < 2) {
        help(stderr);
        return 2;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        help(stdout);
        return 0;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("memrack %s\n", MR_VERSION);
        return 0;
    }
    for (int i = 0; i < COMMAND_COUNT; i++)
        if (!strcmp(argv[1], commands[i].name)) return commands[i].run(argc - 1, argv + 1);
    fprintf(stderr, "memrack: there is no command '%s'; 'memrack --help' lists them\n", argv[1]);
    return 2;
}
