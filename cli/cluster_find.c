/* cluster_find.c - see cluster_find.h. The note is a small JSON file in the user's own run folder;
 * it counts only while the process that wrote it lives. */
#include "cli/cluster_find.h"

#include "common/base/clock.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/log.h"
#include "common/base/mem.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { NOTE_BYTES_MAX = 4096, OPEN_S = 5 };

static char *note_path(const char *name) {
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    return runtime && *runtime ? mr_format("%s/memrack-up-%s.json", runtime, name)
                               : mr_format("/tmp/memrack-up-%ld-%s.json", (long)getuid(), name);
}

void mr_cluster_note_write(const char *name, const char *where) {
    mr_err err;
    char *path = note_path(name);
    char *text = mr_format("{\"cluster\": \"%s\", \"name\": \"%s\", \"pid\": %ld}\n", where, name,
                           (long)getpid());
    if (mr_file_write(path, text, strlen(text), &err) != MR_OK) mr_log_warn("%s", err.text);
    free(text);
    free(path);
}

void mr_cluster_note_remove(const char *name) {
    char *path = note_path(name);
    unlink(path);
    free(path);
}

/* *where is owned. A note of a process that is gone is as good as none. */
static mr_status read_note(char **where, int64_t *pid, const char *name, mr_err *err) {
    json_t *root = NULL;
    const char *text = NULL;
    char *path = note_path(name);
    *where = NULL;
    *pid = 0;
    mr_status status = mr_json_load(&root, path, NOTE_BYTES_MAX, NULL);
    if (status == MR_OK) status = mr_json_string(&text, root, "cluster", err);
    if (status == MR_OK) status = mr_json_int(pid, root, "pid", 1, INT32_MAX, err);
    if (status == MR_OK && text && *pid > 0 && (kill((pid_t)*pid, 0) == 0 || errno == EPERM))
        *where = mr_strdup(text);
    else
        status = mr_fail(err, MR_ERR_ARGUMENT,
                         "which cluster? give --cluster etcd:HOST:PORT or set MEMRACK_CLUSTER; "
                         "no `memrack up --name %s` runs here",
                         name);
    json_decref(root);
    free(path);
    return status;
}

mr_status mr_cluster_find(mr_cluster **out, const mr_agent_settings *s, int64_t *pid, mr_err *err) {
    const char *name = s->name ? s->name : "default", *where = s->cluster;
    char *noted = NULL;
    int64_t noted_pid = 0;
    mr_status status = MR_OK;
    *out = NULL;
    if (!where) where = getenv("MEMRACK_CLUSTER");
    if (!where || !*where) {
        status = read_note(&noted, &noted_pid, name, err);
        where = noted;
    }
    if (status == MR_OK) {
        const mr_cluster_options options = {.where = where,
                                            .name = name,
                                            .ca_file = s->ca,
                                            .cert_file = s->cert,
                                            .key_file = s->key};
        status = mr_cluster_open(out, &options, mr_now_ns() + OPEN_S * 1000000000ll, err);
    }
    if (pid) *pid = noted_pid;
    free(noted);
    return status;
}
