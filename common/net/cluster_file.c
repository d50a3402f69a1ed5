/* cluster_file.c - a whole view as one JSON file: static clusters, and the last good view kept for
 * a start without etcd. Records pass through the same parsers as those from etcd. */
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/net/cluster.h"

#include <stdlib.h>
#include <string.h>

enum { VIEW_FILE_BYTES_MAX = 256 << 20 };

static const char *const role_names[] = {[MR_ROLE_COORDINATOR] = "coordinator",
                                         [MR_ROLE_WORKER] = "worker",
                                         [MR_ROLE_MEMSHARD] = "memshard"};

/* --- reading ---------------------------------------------------------------------------------- */

typedef mr_status (*take_record)(mr_view_builder *b, const char *text, size_t bytes,
                                 const char *what, mr_err *err);

static mr_status take_member(mr_view_builder *b, const char *text, size_t bytes, const char *what,
                             mr_err *err) {
    mr_member *record;
    const mr_status status = mr_member_parse(&record, text, bytes, what, err);
    return status == MR_OK ? mr_view_put_member(b, record, err) : status;
}
static mr_status take_model(mr_view_builder *b, const char *text, size_t bytes, const char *what,
                            mr_err *err) {
    mr_model_record *record;
    const mr_status status = mr_model_record_parse(&record, text, bytes, what, err);
    return status == MR_OK ? mr_view_put_model(b, record, err) : status;
}
static mr_status take_map(mr_view_builder *b, const char *text, size_t bytes, const char *what,
                          mr_err *err) {
    mr_map_record *record;
    const mr_status status = mr_map_record_parse(&record, text, bytes, what, err);
    return status == MR_OK ? mr_view_put_map(b, record, err) : status;
}
static mr_status take_next(mr_view_builder *b, const char *text, size_t bytes, const char *what,
                           mr_err *err) {
    mr_map_record *record;
    const mr_status status = mr_map_record_parse(&record, text, bytes, what, err);
    return status == MR_OK ? mr_view_put_next_map(b, record, err) : status;
}
static mr_status take_owner(mr_view_builder *b, const char *text, size_t bytes, const char *what,
                            mr_err *err) {
    mr_owner_record *record;
    const mr_status status = mr_owner_record_parse(&record, text, bytes, what, err);
    return status == MR_OK ? mr_view_put_owner(b, record, err) : status;
}

static const struct {
    const char *key;
    take_record take;
} lists[] = {{"members", take_member},
             {"models", take_model},
             {"maps", take_map},
             {"next_maps", take_next},
             {"owners", take_owner}};
enum { LISTS = sizeof(lists) / sizeof(lists[0]) };

static mr_status take_list(mr_view_builder *b, const json_t *root, size_t which, mr_err *err) {
    const json_t *list = json_object_get(root, lists[which].key);

    if (list == NULL) return MR_OK;
    if (!json_is_array(list))
        return mr_fail(err, MR_ERR_FORMAT, "\"%s\" is %s, expected an array", lists[which].key,
                       mr_json_type_name(list));
    for (size_t i = 0; i < json_array_size(list); i++) {
        char *text = json_dumps(json_array_get(list, i), JSON_COMPACT | JSON_ENCODE_ANY);
        char *what = mr_format("%s[%zu]", lists[which].key, i);
        mr_status status = text != NULL ? lists[which].take(b, text, strlen(text), what, err)
                                        : mr_fail(err, MR_ERR_FORMAT, "%s cannot be read", what);
        free(text);
        free(what);
        if (status != MR_OK) return status;
    }
    return MR_OK;
}

static mr_status check_keys(const json_t *root, mr_err *err) {
    static const char *const others[] = {"cluster", "leader", "leader_epoch", "unlisted"};
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)(uintptr_t)root, key, value) {
        bool is_known = false;
        for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
            is_known = is_known || strcmp(key, others[i]) == 0;
        for (size_t i = 0; i < LISTS; i++) is_known = is_known || strcmp(key, lists[i].key) == 0;
        if (!is_known) return mr_fail(err, MR_ERR_FORMAT, "unknown key \"%s\"", key);
    }
    return MR_OK;
}

static void take_unlisted(mr_view_builder *b, const json_t *root) {
    const json_t *list = json_object_get(root, "unlisted");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *text = json_string_value(json_array_get(list, i));
        const char *slash = text != NULL ? strchr(text, '/') : NULL;
        for (int role = MR_ROLE_COORDINATOR; slash != NULL && role <= MR_ROLE_MEMSHARD; role++)
            if (strlen(role_names[role]) == (size_t)(slash - text) &&
                memcmp(role_names[role], text, (size_t)(slash - text)) == 0)
                mr_view_set_listed(b, (mr_role)role, slash + 1, false);
    }
}

static mr_status take_view(const mr_view **out, const json_t *root, mr_err *err) {
    const char *name = NULL, *leader = NULL;
    int64_t leader_epoch = 0;

    if (!json_is_object(root))
        return mr_fail(err, MR_ERR_FORMAT, "it is %s, expected an object", mr_json_type_name(root));
    mr_status status = check_keys(root, err);
    if (status == MR_OK) status = mr_json_string(&name, root, "cluster", err);
    if (status == MR_OK) status = mr_json_string(&leader, root, "leader", err);
    if (status == MR_OK)
        status = mr_json_int(&leader_epoch, root, "leader_epoch", 0, INT64_MAX, err);
    if (status == MR_OK && name == NULL) status = mr_fail(err, MR_ERR_FORMAT, "no \"cluster\"");
    if (status == MR_OK) status = mr_id_check(name, "\"cluster\"", err);
    if (status == MR_OK && leader != NULL) status = mr_id_check(leader, "\"leader\"", err);
    if (status != MR_OK) return status;
    mr_view_builder *b = mr_view_builder_open(NULL, name);
    for (size_t i = 0; i < LISTS && status == MR_OK; i++) status = take_list(b, root, i, err);
    if (status != MR_OK) {
        mr_view_builder_close(b);
        return status;
    }
    take_unlisted(b, root);
    mr_view_set_leader(b, leader, (uint64_t)leader_epoch);
    *out = mr_view_publish(b);
    return MR_OK;
}

mr_status mr_view_load(const mr_view **out, const char *path, mr_err *err) {
    json_t *root;

    *out = NULL;
    mr_status status = mr_json_load(&root, path, VIEW_FILE_BYTES_MAX, err);
    if (status != MR_OK) return status;
    status = take_view(out, root, err);
    json_decref(root);
    return status == MR_OK ? status : mr_fail_prefix(err, status, "%s", path);
}

/* --- writing ---------------------------------------------------------------------------------- */

/* Takes the text over; false: there is none, or it is not JSON. */
static bool append(json_t *list, char *text) {
    json_t *value = text != NULL ? json_loads(text, 0, NULL) : NULL;
    free(text);
    return value != NULL && json_array_append_new(list, value) == 0;
}

static json_t *write_view(const mr_view *view) {
    json_t *root = json_object(), *all[LISTS], *unlisted = json_array();
    bool is_good = true;

    json_object_set_new(root, "cluster", json_string(view->cluster));
    for (size_t i = 0; i < LISTS; i++) {
        all[i] = json_array();
        json_object_set_new(root, lists[i].key, all[i]);
    }
    json_object_set_new(root, "unlisted", unlisted);
    for (uint32_t i = 0; i < view->member_count; i++) {
        const mr_member *m = view->members[i];
        is_good = append(all[0], mr_member_dump(m)) && is_good;
        if (!m->is_listed)
            json_array_append_new(unlisted, json_sprintf("%s/%s", role_names[m->role], m->id));
    }
    for (uint32_t i = 0; i < view->model_count; i++)
        is_good = append(all[1], mr_model_record_dump(view->models[i])) && is_good;
    for (uint32_t i = 0; i < view->map_count; i++)
        is_good = append(all[2], mr_map_record_dump(view->maps[i])) && is_good;
    for (uint32_t i = 0; i < view->next_map_count; i++)
        is_good = append(all[3], mr_map_record_dump(view->next_maps[i])) && is_good;
    for (uint32_t i = 0; i < view->owner_count; i++)
        is_good = append(all[4], mr_owner_record_dump(view->owners[i])) && is_good;
    if (view->leader != NULL) json_object_set_new(root, "leader", json_string(view->leader));
    json_object_set_new(root, "leader_epoch", json_integer((json_int_t)view->leader_epoch));
    if (is_good) return root;
    json_decref(root);
    return NULL;
}

mr_status mr_view_save(const mr_view *view, const char *path, mr_err *err) {
    json_t *root = write_view(view);
    char *text = root != NULL ? json_dumps(root, JSON_INDENT(1)) : NULL;
    mr_status status;

    json_decref(root);
    if (text == NULL)
        return mr_fail(err, MR_ERR_FORMAT, "%s: a record of the view cannot be written", path);
    status = mr_file_write(path, text, strlen(text), err);
    free(text);
    return status;
}
