/* up.h - inside of `memrack up`: what is asked for, and the two ways a cluster is started.
 *
 * With etcd (up_cluster.c): every role joins a real etcd, a leader places the tables, dead
 * processes are started again. Without (up_static.c, --static): one worker, a registry file, fixed
 * places; the twin for machines that have no etcd-server. */
#ifndef MR_CLI_UP_H
#define MR_CLI_UP_H
#include "cli/up_process.h"
#include "common/model/manifest.h"
#include "common/model/model.h"
#include "coordinator/draft.h"

enum { MR_UP_GRACE_MS = 3000, MR_UP_LOG_LINES = 8 };

typedef struct {
    const char *model, *grid, *host, *isa, *numeric, *name, *run_folder, *hosts, *ssh, *table,
        *fabric;
    int64_t memshards, replicas, workers, stages, coordinators, threads, port, kv_blocks;
    int64_t ready_timeout_s;
    mr_draft_settings speculation;
    bool is_static, no_restart, is_run;
} mr_up_settings;

/* What both ways share: the model, the folder of the run, our programs. */
typedef struct {
    mr_up_settings s;
    mr_model *model;
    mr_manifest manifest;
    char *grid;       /* as given, or Mx1 */
    char *programs;   /* folder of our executables */
    char *run_folder; /* NULL until made */
    int signals;
} mr_up;

/* Arguments of a program; texts are owned. */
typedef struct {
    char *items[MR_CHILD_ARGUMENTS_MAX + 1]; /* [0] is the program */
    uint32_t count;
} mr_up_arguments;

void mr_up_program(mr_up_arguments *list, const mr_up *up, const char *role);
void mr_up_add(mr_up_arguments *list, const char *name, const char *value); /* NULL: left out */
void mr_up_add_number(mr_up_arguments *list, const char *name, int64_t value);
/* What `up` passes on to every coordinator. */
void mr_up_add_speculation(mr_up_arguments *list, const mr_up *up);
void mr_up_arguments_free(mr_up_arguments *list);

/* Threads for each of `count` workers beside `shards` memshards on this machine. */
int64_t mr_up_worker_threads(const mr_up *up, uint32_t count, uint32_t shards);
void mr_up_show_example(const mr_up *up, const char *address);
void mr_up_report_death(const mr_child *child, int64_t pid);

/* Both return when asked to end (MR_OK), or with what went wrong; they end what they started. */
mr_status mr_up_static(mr_up *up, mr_err *err);
mr_status mr_up_cluster(mr_up *up, mr_err *err);

#endif
