/* up_hosts.c - see up_hosts.h. The file is read whole and checked before the first command is
 * printed or run: a cluster starts completely or not at all. */
#include "cli/up_hosts.h"

#include "common/base/file.h"
#include "common/base/limits.h"
#include "common/base/mem.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FILE_BYTES_MAX = 1 << 20, KEYS_MAX = 12, PORT_FIRST = 7100, ETCD_PORT = 2379 };

typedef enum { HOST_ETCD, HOST_MEMSHARD, HOST_WORKER, HOST_COORDINATOR } host_role;

typedef struct {
    char *host, *id;
    host_role role;
    uint32_t line;
    char *keys[KEYS_MAX], *values[KEYS_MAX];
    uint32_t key_count;
    uint32_t port; /* first of the process's ports on its host */
} entry;

typedef struct {
    entry *items;
    uint32_t count;
    char *etcd; /* "etcd:node1:2379,.." */
} plan;

static const char *const role_names[] = {"etcd", "memshard", "worker", "coordinator"};
static const char *const allowed_keys[] = {"", "set zone capacity threads port id isa ",
                                           "group stage threads zone port id isa kv-blocks ",
                                           "port zone id "};

static void free_plan(plan *p) {
    for (uint32_t i = 0; i < p->count; i++) {
        entry *e = &p->items[i];
        free(e->host);
        free(e->id);
        for (uint32_t k = 0; k < e->key_count; k++) {
            free(e->keys[k]);
            free(e->values[k]);
        }
    }
    free(p->items);
    free(p->etcd);
}

static const char *value_of(const entry *e, const char *key) {
    for (uint32_t k = 0; k < e->key_count; k++)
        if (strcmp(e->keys[k], key) == 0) return e->values[k];
    return NULL;
}

/* --- reading ---------------------------------------------------------------------------------- */

/* Letters that need no quoting in a shell: what is printed can be pasted. */
static bool is_plain(const char *text) {
    if (!*text || *text == '-') return false;
    for (; *text; text++)
        if (!isalnum((unsigned char)*text) && !strchr("._-/:@%+", *text)) return false;
    return true;
}

static mr_status take_pair(entry *e, const char *word, mr_err *err) {
    const char *equals = strchr(word, '=');
    if (!equals || equals == word)
        return mr_fail(err, MR_ERR_FORMAT, "'%s' is not KEY=VALUE", word);
    char *key = mr_strndup(word, (size_t)(equals - word));
    char *padded = mr_format("%s ", key);
    const bool known = strstr(allowed_keys[e->role], padded) != NULL;
    free(padded);
    if (!known || e->key_count == KEYS_MAX || value_of(e, key) || !is_plain(equals + 1)) {
        const mr_status status = mr_fail(
            err, MR_ERR_FORMAT, "'%s': a %s takes each once, in plain letters: %s", word,
            role_names[e->role], *allowed_keys[e->role] ? allowed_keys[e->role] : "nothing");
        free(key);
        return status;
    }
    e->keys[e->key_count] = key;
    e->values[e->key_count++] = mr_strdup(equals + 1);
    return MR_OK;
}

static mr_status take_line(plan *p, char *line, uint32_t number, mr_err *err) {
    char *rest = line, *word;
    char *comment = strchr(line, '#');
    if (comment) *comment = '\0';
    char *host = strtok_r(line, " \t\r", &rest);
    if (!host) return MR_OK;
    p->items = mr_realloc_array(p->items, p->count + 1, sizeof(*p->items));
    entry *e = &p->items[p->count++];
    *e = (entry){.host = mr_strdup(host), .line = number};
    char *role = strtok_r(NULL, " \t\r", &rest);
    uint32_t r = 0;
    while (r < 4 && (!role || strcmp(role, role_names[r]) != 0)) r++;
    if (r == 4 || !is_plain(host))
        return mr_fail(err, MR_ERR_FORMAT,
                       "a line is HOST ROLE [KEY=VALUE ..]; roles are etcd, memshard, worker and "
                       "coordinator");
    e->role = (host_role)r;
    while ((word = strtok_r(NULL, " \t\r", &rest)) != NULL) {
        const mr_status status = take_pair(e, word, err);
        if (status != MR_OK) return status;
    }
    return MR_OK;
}

static mr_status read_plan(plan *p, const char *path, mr_err *err) {
    char *text;
    size_t bytes;
    mr_status status = mr_file_read(&text, &bytes, path, FILE_BYTES_MAX, err);
    if (status != MR_OK) return status;
    char *at = text;
    for (uint32_t number = 1; at && status == MR_OK; number++) {
        char *next = strchr(at, '\n');
        if (next) *next++ = '\0';
        status = take_line(p, at, number, err);
        if (status != MR_OK) mr_fail_prefix(err, status, "%s, line %u", path, number);
        at = next;
    }
    free(text);
    return status;
}

/* --- completing ------------------------------------------------------------------------------- */

static mr_status check_stage(const entry *e, mr_err *err) {
    unsigned stage = 0, stages = 1;
    char end;
    const char *text = value_of(e, "stage");
    if (!text) return MR_OK;
    if (sscanf(text, "%u/%u%c", &stage, &stages, &end) == 2 && stage < stages &&
        stages <= MR_MAX_STAGES)
        return MR_OK;
    return mr_fail(err, MR_ERR_FORMAT, "line %u: stage=%s; stages are 0/2, 1/2, ..", e->line, text);
}

static mr_status complete(plan *p, const char *path, mr_err *err) {
    uint32_t counts[4] = {0};
    for (uint32_t i = 0; i < p->count; i++) {
        entry *e = &p->items[i];
        const char *id = value_of(e, "id"), *port = value_of(e, "port");
        uint32_t before = 0;
        for (uint32_t j = 0; j < i; j++) before += strcmp(p->items[j].host, e->host) == 0;
        e->id = id ? mr_strdup(id)
                   : mr_format("%s-%c%u", e->host, *role_names[e->role], counts[e->role]);
        e->port = e->role == HOST_ETCD ? ETCD_PORT : PORT_FIRST + 10 * before;
        if (port && (sscanf(port, "%u", &e->port) != 1 || e->port == 0 || e->port > 65500))
            return mr_fail(err, MR_ERR_RANGE, "%s, line %u: port=%s", path, e->line, port);
        const mr_status status = check_stage(e, err);
        if (status != MR_OK) return mr_fail_prefix(err, status, "%s", path);
        for (uint32_t j = 0; j < i; j++)
            if (strcmp(p->items[j].id, e->id) == 0)
                return mr_fail(err, MR_ERR_FORMAT, "%s, lines %u and %u have the same id %s", path,
                               p->items[j].line, e->line, e->id);
        if (e->role == HOST_ETCD) {
            char *all = mr_format("%s%s%s:%d", p->etcd ? p->etcd : "etcd:", p->etcd ? "," : "",
                                  e->host, ETCD_PORT);
            free(p->etcd);
            p->etcd = all;
        }
        counts[e->role]++;
    }
    for (uint32_t r = 0; r < 4; r++)
        if (counts[r] == 0)
            return mr_fail(err, MR_ERR_FORMAT, "%s has no %s; a cluster needs each role", path,
                           role_names[r]);
    return MR_OK;
}

/* --- commands --------------------------------------------------------------------------------- */

static void append(char **text, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void append(char **text, const char *format, ...) {
    char *piece = NULL;
    va_list arguments;
    va_start(arguments, format);
    if (vasprintf(&piece, format, arguments) < 0) abort();
    va_end(arguments);
    char *all = mr_format("%s%s", *text, piece);
    free(piece);
    free(*text);
    *text = all;
}

static char *etcd_command(const plan *p, const entry *e) {
    char *members = mr_strdup("");
    for (uint32_t i = 0; i < p->count; i++) {
        if (p->items[i].role != HOST_ETCD) continue;
        append(&members, "%s%s", *members ? "," : "", p->items[i].id);
        append(&members, "=http://%s:2380", p->items[i].host);
    }
    char *command = mr_format(
        "etcd --name %s --data-dir /var/lib/memrack/etcd --listen-client-urls http://%s:2379 "
        "--advertise-client-urls http://%s:2379 --listen-peer-urls http://%s:2380 "
        "--initial-advertise-peer-urls http://%s:2380 --initial-cluster %s",
        e->id, e->host, e->host, e->host, e->host, members);
    free(members);
    return command;
}

static char *member_command(const plan *p, const entry *e, const mr_up_settings *s) {
    char *c =
        mr_format("memrack-%s --cluster %s --cluster-name %s --id %s --host-label %s "
                  "--control %s:%u --plain-control",
                  role_names[e->role], p->etcd, s->name, e->id, e->host, e->host, e->port + 1);
    static const char *const passed[] = {"set", "zone", "capacity", "threads", "isa", "kv-blocks"};
    char number[32];
    snprintf(number, sizeof(number), "%u", e->port);
    for (size_t i = 0; i < sizeof(passed) / sizeof(passed[0]); i++)
        if (value_of(e, passed[i])) {
            append(&c, " --%s", passed[i]);
            append(&c, " %s", value_of(e, passed[i]));
        }
    if (e->role == HOST_COORDINATOR) {
        append(&c, " --host %s", e->host);
        append(&c, " --port %s", number);
        if (s->speculation.tokens_max > 0)
            append(&c, " --speculate %lld", (long long)s->speculation.tokens_max);
        if (s->speculation.kind) append(&c, " --draft %s", s->speculation.kind);
        return c;
    }
    append(&c, " --listen %s", e->host);
    append(&c, ":%s", number);
    if (e->role == HOST_WORKER) {
        append(&c, " --model %s", s->model);
        append(&c, " --group %s", value_of(e, "group") ? value_of(e, "group") : e->id);
        append(&c, " --stage %s", value_of(e, "stage") ? value_of(e, "stage") : "0/1");
    }
    return c;
}

static char *command_of(const plan *p, const entry *e, const mr_up_settings *s) {
    return e->role == HOST_ETCD ? etcd_command(p, e) : member_command(p, e, s);
}

static void print_plan(const plan *p, const mr_up_settings *s) {
    for (uint32_t i = 0; i < p->count; i++) {
        bool is_first = true;
        for (uint32_t j = 0; j < i; j++)
            is_first &= strcmp(p->items[j].host, p->items[i].host) != 0;
        if (!is_first) continue;
        printf("# on %s\n", p->items[i].host);
        for (uint32_t j = i; j < p->count; j++) {
            if (strcmp(p->items[j].host, p->items[i].host) != 0) continue;
            char *command = command_of(p, &p->items[j], s);
            printf("%s\n", command);
            free(command);
        }
        printf("\n");
    }
    printf("# once, from anywhere\nmemrack load %s --cluster %s --cluster-name %s --grid %s "
           "--replicas %lld\nmemrack status --cluster %s --cluster-name %s\n",
           s->model, p->etcd, s->name, s->grid ? s->grid : "4x1", (long long)s->replicas, p->etcd,
           s->name);
}

/* Starts one process on its host, in the background there. */
static mr_status start_there(const entry *e, const char *command, const char *ssh, mr_err *err) {
    char *whole = mr_format("%s %s 'nohup %s >/tmp/memrack-%s.log 2>&1 </dev/null &'", ssh, e->host,
                            command, e->id);
    printf("%s: %s\n", e->host, command);
    fflush(stdout);
    const int code = system(whole); /* words were checked to be plain */
    free(whole);
    if (code == 0) return MR_OK;
    return mr_fail(err, MR_ERR_UNAVAILABLE, "%s on %s: '%s' ended with status %d", e->id, e->host,
                   ssh, WIFEXITED(code) ? WEXITSTATUS(code) : -1);
}

mr_status mr_up_hosts(const mr_up_settings *s, mr_err *err) {
    plan p = {0};
    mr_status status = MR_OK;
    if (!is_plain(s->model) || !is_plain(s->name) || (s->grid && !is_plain(s->grid)))
        status = mr_fail(err, MR_ERR_ARGUMENT,
                         "the model's path and the names must be plain letters for --hosts");
    if (status == MR_OK) status = read_plan(&p, s->hosts, err);
    if (status == MR_OK) status = complete(&p, s->hosts, err);
    if (status == MR_OK && !s->is_run) print_plan(&p, s);
    for (uint32_t i = 0; status == MR_OK && s->is_run && i < p.count; i++) {
        char *command = command_of(&p, &p.items[i], s);
        status = start_there(&p.items[i], command, s->ssh, err);
        free(command);
    }
    free_plan(&p);
    return status;
}
