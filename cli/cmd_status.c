/* cmd_status.c - `memrack status`, `drain` and `down`: looking at a running cluster, emptying a
 * member of it, ending the one that `memrack up` started here. */
#include "cli/cli.h"

#include "cli/cluster_find.h"
#include "cli/cluster_table.h"
#include "common/base/clock.h"
#include "common/base/mem.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t is_interrupted;

static void on_signal(int number) {
    (void)number;
    is_interrupted = 1;
}

static void pause_ms(int64_t ms) {
    const struct timespec time = {.tv_sec = (time_t)(ms / 1000),
                                  .tv_nsec = (long)(ms % 1000) * 1000000};
    nanosleep(&time, NULL);
}

/* --- status ----------------------------------------------------------------------------------- */

int mr_cmd_status(int argc, char **argv) {
    mr_agent_settings where = {0};
    bool is_json = false, is_live = false;
    const mr_option options[] = {
        MR_CLUSTER_FIND_OPTIONS(&where),
        {"watch", 'w', MR_OPT_FLAG, &is_live, 0, 0, NULL, "look again every second, until Ctrl-C"},
        {"json", 'j', MR_OPT_FLAG, &is_json, 0, 0, NULL, "everything there is, for programs"},
        {0}};
    const mr_command_spec spec = {
        "memrack status [options]",
        "Shows every process of a cluster: its state, what it holds, how fast it answers.\n"
        "Ends with status 0 if all is well, 3 if something is loading, draining or silent.\n"
        "Example: memrack status --watch",
        options, 0, 0};
    const char *positional[1];
    int count;
    mr_err err = {{0}};
    mr_cluster *cluster;
    const int done = mr_cli_parse(&spec, argc, argv, positional, &count);
    if (done >= 0) return done;
    const mr_status status = mr_cluster_find(&cluster, &where, NULL, &err);
    if (status != MR_OK) return mr_cli_fail("status", status, &err);
    mr_cluster_table *table = mr_cluster_table_open(cluster, &where);
    signal(SIGINT, on_signal);
    if (is_json)
        mr_cluster_table_json(table, stdout);
    else if (!is_live)
        mr_cluster_table_print(table, stdout);
    while (is_live && !is_interrupted) {
        mr_cluster_table_redraw(table, stdout);
        pause_ms(1000);
    }
    const uint32_t troubles = mr_cluster_table_troubles(table);
    mr_cluster_table_close(table);
    mr_cluster_close(cluster);
    return troubles > 0 && !is_live ? 3 : 0;
}

/* --- drain ------------------------------------------------------------------------------------ */

static const mr_member *find_member(const mr_view *view, const char *id, mr_err *err) {
    const mr_member *found = NULL;
    for (uint32_t i = 0; i < view->member_count; i++) {
        if (strcmp(view->members[i]->id, id) != 0) continue;
        if (found) {
            mr_fail(err, MR_ERR_ARGUMENT, "two members are called %s, of different roles", id);
            return NULL;
        }
        found = view->members[i];
    }
    if (!found) mr_fail(err, MR_ERR_ARGUMENT, "this cluster has no member %s", id);
    return found;
}

static mr_status order_drain(mr_cluster *cluster, const mr_agent_settings *where, const char *id,
                             const mr_drain_order *order, int64_t timeout_s, mr_err *err) {
    const mr_view *view = mr_cluster_view(cluster);
    const mr_member *m = find_member(view, id, err);
    mr_control_client *client = NULL;
    mr_status status = m ? MR_OK : MR_ERR_ARGUMENT;
    if (m && !m->control)
        status = mr_fail(err, MR_ERR_UNAVAILABLE, "%s has no control service", id);
    if (status == MR_OK) {
        const mr_control_client_options options = {
            .address = m->control,
            .security = where->ca ? (mr_rpc_security){where->ca, where->cert, where->key, false}
                                  : (mr_rpc_security){.is_plain = true},
            .role = where->ca ? m->role : 0,
            .id = m->id};
        status = mr_control_client_open(&client, &options, err);
    }
    if (status == MR_OK)
        status = mr_control_drain(client, order, mr_now_ns() + (timeout_s + 10) * 1000000000, err);
    mr_control_client_close(client);
    mr_view_release(view);
    return status;
}

int mr_cmd_drain(int argc, char **argv) {
    mr_agent_settings where = {0};
    int64_t timeout_s = 300;
    bool stays = false;
    const mr_option options[] = {
        MR_CLUSTER_FIND_OPTIONS(&where),
        {"timeout", 0, MR_OPT_INT, &timeout_s, 1, 86400, "S", "seconds it may take (300)"},
        {"stays", 0, MR_OPT_FLAG, &stays, 0, 0, NULL, "the process goes on, empty"},
        {0}};
    const mr_command_spec spec = {
        "memrack drain ID [options]",
        "Empties a member so that it can be taken away: a memshard's cells move to others, a "
        "worker\n"
        "or coordinator finishes what it has. No request fails. Then the process ends.\n"
        "Example: memrack drain m2",
        options, 1, 1};
    const char *id;
    int count;
    mr_err err = {{0}};
    mr_cluster *cluster;
    const int done = mr_cli_parse(&spec, argc, argv, &id, &count);
    if (done >= 0) return done;
    mr_status status = mr_cluster_find(&cluster, &where, NULL, &err);
    if (status != MR_OK) return mr_cli_fail("drain", status, &err);
    const mr_drain_order order = {.timeout_s = (uint32_t)timeout_s, .ends = !stays};
    status = order_drain(cluster, &where, id, &order, timeout_s, &err);
    mr_cluster_close(cluster);
    if (status != MR_OK) return mr_cli_fail("drain", status, &err);
    printf("%s is drained%s\n", id, stays ? "" : " and ends");
    return 0;
}

/* --- down ------------------------------------------------------------------------------------- */

int mr_cmd_down(int argc, char **argv) {
    mr_agent_settings where = {0};
    int64_t timeout_s = 30, pid = 0;
    const mr_option options[] = {
        {"cluster-name", 0, MR_OPT_TEXT, &where.name, 0, 0, "NAME", "which one (default)"},
        {"timeout", 0, MR_OPT_INT, &timeout_s, 1, 3600, "S", "seconds it may take (30)"},
        {0}};
    const mr_command_spec spec = {
        "memrack down [options]",
        "Ends the cluster that `memrack up` runs on this machine, as Ctrl-C there would.\n"
        "Example: memrack down",
        options, 0, 0};
    const char *positional[1];
    int count;
    mr_err err = {{0}};
    mr_cluster *cluster = NULL;
    const int done = mr_cli_parse(&spec, argc, argv, positional, &count);
    if (done >= 0) return done;
    unsetenv("MEMRACK_CLUSTER"); /* only one that runs here can be ended from here */
    mr_status status = mr_cluster_find(&cluster, &where, &pid, &err);
    mr_cluster_close(cluster);
    if (pid == 0) return mr_cli_fail("down", status, &err);
    if (kill((pid_t)pid, SIGTERM) != 0) {
        status = mr_fail(&err, MR_ERR_IO, "process %lld: %s", (long long)pid, strerror(errno));
        return mr_cli_fail("down", status, &err);
    }
    const int64_t deadline = mr_now_ns() + timeout_s * 1000000000;
    while (kill((pid_t)pid, 0) == 0 && mr_now_ns() < deadline) pause_ms(50);
    if (kill((pid_t)pid, 0) == 0) {
        status = mr_fail(&err, MR_ERR_TIMEOUT, "process %lld has not ended within %lld s",
                         (long long)pid, (long long)timeout_s);
        return mr_cli_fail("down", status, &err);
    }
    printf("ended\n");
    return 0;
}
