/* up_static.c - `memrack up --static`: a cluster without etcd, one worker, a registry file.
 *
 * Memshards come first, then the registry file that names them, then a worker, then a coordinator:
 * each waits for the one before. A memshard that dies is reported and the others go on, answering
 * errors that name it; without its worker or its coordinator a cluster has no purpose and ends. */
#include "cli/up.h"

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/net/registry.h"
#include "memshard/serve.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

enum { TEXT_BYTES = 64 };

/* The cluster: memshards first, then the worker, then the coordinator. */
typedef struct {
    mr_up *up;
    mr_store_plan *plans; /* [shard_count] */
    mr_registry registry;
    mr_child *children;
    uint32_t shard_count, child_count; /* children: started so far */
} cluster;

/* All or nothing: every shard's split and their sum are checked before the first process starts. */
static mr_status plan_shards(cluster *c, mr_err *err) {
    mr_grid grid;
    mr_store_plan all = {0};
    const mr_model *model = c->up->model;
    c->shard_count = mr_model_table_count(model) > 0 ? (uint32_t)c->up->s.memshards : 0;
    mr_status status = mr_grid_parse(&grid, c->up->grid, err);
    if (status != MR_OK) return status;
    c->plans = mr_alloc_array(c->shard_count, sizeof(*c->plans));
    for (uint32_t i = 0; i < c->shard_count; i++) {
        mr_store_plan *p = &c->plans[i];
        status = mr_memshard_plan(p, model, &c->up->manifest, grid, i, c->shard_count, err);
        if (status != MR_OK) return status;
        all.mapped_bytes += p->mapped_bytes;
        all.kept_bytes += p->kept_bytes;
    }
    if (c->shard_count == 0)
        fprintf(stderr, "memrack up: %s has no memory layers: starting no memshards\n",
                c->up->s.model);
    status = mr_store_fits(&all, mr_memory_available(), err);
    return status == MR_OK ? MR_OK : mr_fail_prefix(err, status, "all memshards together");
}

/* --- starting --------------------------------------------------------------------------------- */

/* Starts a child and waits until it is ready. list is freed. */
static mr_status start(cluster *c, const char *role, uint32_t id, mr_up_arguments *list,
                       mr_err *err) {
    const mr_status status =
        mr_child_start(&c->children[c->child_count++], role, id, c->up->run_folder,
                       (const char *const *)list->items, true, err);
    mr_up_arguments_free(list);
    return status;
}

static mr_status wait_ready(cluster *c, mr_err *err) {
    return mr_children_wait_ready(c->children, c->child_count, c->up->signals,
                                  mr_now_ns() + c->up->s.ready_timeout_s * 1000000000, err);
}

static mr_status start_memshards(cluster *c, mr_err *err) {
    mr_status status = MR_OK;
    for (uint32_t i = 0; status == MR_OK && i < c->shard_count; i++) {
        mr_up_arguments list;
        mr_up_program(&list, c->up, "memshard");
        mr_up_add(&list, "--model", c->up->s.model);
        mr_up_add(&list, "--grid", c->up->grid);
        mr_up_add_number(&list, "--index", i);
        mr_up_add_number(&list, "--of", c->shard_count);
        mr_up_add(&list, "--isa", c->up->s.isa);
        status = start(c, "memshard", i, &list, err);
    }
    if (status == MR_OK) status = wait_ready(c, err);
    for (uint32_t i = 0; status == MR_OK && i < c->shard_count; i++)
        mr_members_add(&c->registry.memshards, c->children[i].address);
    return status;
}

static mr_status save_registry(cluster *c, mr_err *err) {
    char *path = mr_format("%s/registry.json", c->up->run_folder);
    const mr_status status = mr_registry_save(&c->registry, path, err);
    free(path);
    return status;
}

static mr_status start_worker(cluster *c, mr_err *err) {
    char *registry = mr_format("%s/registry.json", c->up->run_folder);
    mr_up_arguments list;
    mr_up_program(&list, c->up, "worker");
    mr_up_add(&list, "--model", c->up->s.model);
    mr_up_add(&list, "--registry", registry);
    mr_up_add_number(&list, "--threads", mr_up_worker_threads(c->up, 1, c->shard_count));
    mr_up_add_number(&list, "--kv-blocks", c->up->s.kv_blocks);
    mr_up_add(&list, "--isa", c->up->s.isa);
    mr_up_add(&list, "--numeric", c->up->s.numeric);
    free(registry);
    mr_status status = start(c, "worker", 0, &list, err);
    if (status == MR_OK) status = wait_ready(c, err);
    if (status == MR_OK) mr_members_add(&c->registry.workers, c->children[c->shard_count].address);
    return status;
}

static mr_status start_coordinator(cluster *c, mr_err *err) {
    mr_up_arguments list;
    mr_up_program(&list, c->up, "coordinator");
    mr_up_add(&list, "--model", c->up->s.model);
    mr_up_add(&list, "--worker", c->children[c->shard_count].address);
    mr_up_add(&list, "--host", c->up->s.host);
    mr_up_add_number(&list, "--port", c->up->s.port);
    mr_up_add_speculation(&list, c->up);
    mr_status status = start(c, "coordinator", 0, &list, err);
    if (status == MR_OK) status = wait_ready(c, err);
    if (status == MR_OK)
        mr_members_add(&c->registry.coordinators, c->children[c->shard_count + 1].address);
    return status;
}

static mr_status start_all(cluster *c, mr_err *err) {
    mr_status status = start_memshards(c, err);
    if (status == MR_OK) status = save_registry(c, err);
    if (status == MR_OK) status = start_worker(c, err);
    if (status == MR_OK) status = start_coordinator(c, err);
    if (status == MR_OK) status = save_registry(c, err);
    for (uint32_t i = 0; status == MR_ERR_UNAVAILABLE && i < c->child_count; i++)
        if (c->children[i].is_dead) mr_child_print_log_tail(&c->children[i], MR_UP_LOG_LINES);
    return status;
}

/* --- showing and watching --------------------------------------------------------------------- */

/* "cells 0, 2 .. 8": a shard's cells are evenly spaced. */
static void describe_cells(const cluster *c, uint32_t shard, char *out, size_t room) {
    const uint32_t count = c->plans[shard].cell_count, step = c->shard_count;
    if (count == 1)
        snprintf(out, room, "cell %u", shard);
    else if (count == 2)
        snprintf(out, room, "cells %u, %u", shard, shard + step);
    else
        snprintf(out, room, "cells %u, %u .. %u", shard, shard + step, shard + (count - 1) * step);
}

static void show(const cluster *c) {
    printf("%-11s %3s %8s  %-22s %-34s %12s  %s\n", "role", "id", "pid", "address", "holds",
           "bytes", "state");
    for (uint32_t i = 0; i < c->child_count; i++) {
        const mr_child *child = &c->children[i];
        char holds[80] = "-", cells[48], bytes[TEXT_BYTES] = "-";
        if (i < c->shard_count) {
            const mr_store_plan *p = &c->plans[i];
            describe_cells(c, i, cells, sizeof(cells));
            snprintf(holds, sizeof(holds), "%s of %s, %" PRIu64 " rows", cells, c->up->grid,
                     p->rows);
            snprintf(bytes, sizeof(bytes), "%" PRIu64, p->mapped_bytes + p->kept_bytes);
        }
        printf("%-11s %3u %8d  %-22s %-34s %12s  %s\n", child->role, child->id, (int)child->pid,
               child->address, holds, bytes, "ready");
    }
    const char *address = c->children[c->child_count - 1].address;
    printf("\nlogs and registry: %s\n", c->up->run_folder);
    printf("serving http://%s   (Ctrl-C ends it)\n\n", address);
    mr_up_show_example(c->up, address);
    fflush(stdout);
}

/* The worker keeps trying the address: whoever listens there again with the same cells is taken. */
static void show_restart(const cluster *c, uint32_t shard) {
    fprintf(stderr,
            "memrack up: the others go on; requests fail until it is started again:\n"
            "%s/memrack-memshard --model %s --grid %s --index %u --of %u --listen %s\n",
            c->up->programs, c->up->s.model, c->up->grid, shard, c->shard_count,
            c->children[shard].address);
}

/* Until we are asked to end (MR_OK), or the cluster has lost what it cannot do without. */
static mr_status watch(cluster *c, mr_err *err) {
    pid_t pids[MR_MAX_MEMSHARDS + 2];
    for (uint32_t i = 0; i < c->child_count; i++) pids[i] = c->children[i].pid;
    for (;;) {
        const int number_of_signal = mr_signals_wait(c->up->signals, INT64_MAX);
        if (number_of_signal != SIGCHLD) return MR_OK;
        for (mr_child *dead; (dead = mr_children_reap(c->children, c->child_count)) != NULL;) {
            const uint32_t index = (uint32_t)(dead - c->children);
            mr_up_report_death(dead, pids[index]);
            if (index >= c->shard_count)
                return mr_fail(err, MR_ERR_UNAVAILABLE, "the %s is gone: ending the others",
                               dead->role);
            show_restart(c, index);
        }
    }
}

mr_status mr_up_static(mr_up *up, mr_err *err) {
    cluster c = {.up = up};
    mr_status status = plan_shards(&c, err);
    if (status == MR_OK) {
        c.children = mr_alloc_array(c.shard_count + 2, sizeof(*c.children));
        c.registry = (mr_registry){.cluster = mr_strdup("local"),
                                   .model = mr_strdup(up->s.model),
                                   .grid = mr_strdup(up->grid),
                                   .digest = up->manifest.digest};
        status = start_all(&c, err);
    }
    if (status == MR_OK) {
        show(&c);
        status = watch(&c, err);
    }
    if (c.children) mr_children_end(c.children, c.child_count, up->signals, MR_UP_GRACE_MS);
    for (uint32_t i = 0; i < c.child_count; i++) mr_child_free(&c.children[i]);
    mr_registry_free(&c.registry);
    free(c.children);
    free(c.plans);
    return status;
}
