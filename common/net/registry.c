/* registry.c - see registry.h. */
#include "common/net/registry.h"

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/net/address.h"

#include <stdlib.h>
#include <string.h>

enum { REGISTRY_BYTES_MAX = 1 << 20, NAME_BYTES_MAX = 4096, GRID_BYTES_MAX = 31 };

void mr_members_add(mr_members *members, const char *address) {
    members->addresses =
        mr_realloc_array(members->addresses, members->count + 1, sizeof(*members->addresses));
    members->addresses[members->count++] = mr_strdup(address);
}

static void free_members(mr_members *members) {
    for (uint32_t i = 0; i < members->count; i++) free(members->addresses[i]);
    free(members->addresses);
}

void mr_registry_free(mr_registry *registry) {
    free(registry->cluster);
    free(registry->model);
    free(registry->grid);
    free_members(&registry->memshards);
    free_members(&registry->workers);
    free_members(&registry->coordinators);
    *registry = (mr_registry){0};
}

static mr_status check_keys(const json_t *object, const char *const *known, const char *where,
                            mr_err *err) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, key, value) {
        uint32_t i = 0;
        while (known[i] && strcmp(known[i], key) != 0) i++;
        if (!known[i]) return mr_fail(err, MR_ERR_FORMAT, "%s: unknown key '%.60s'", where, key);
    }
    return MR_OK;
}

/* *out (owned) is a string of 1 to bytes_max bytes. */
static mr_status take_text(char **out, const json_t *root, const char *key, size_t bytes_max,
                           mr_err *err) {
    const char *text = NULL;
    const mr_status status = mr_json_string(&text, root, key, err);
    if (status != MR_OK) return status;
    if (!text || !*text || strlen(text) > bytes_max)
        return mr_fail(err, MR_ERR_FORMAT, "'%s' must be a text of 1 to %zu bytes", key, bytes_max);
    *out = mr_strdup(text);
    return MR_OK;
}

static mr_status take_member(mr_members *out, const json_t *item, const char *key, mr_err *err) {
    static const char *const known[] = {"id", "address", NULL};
    const char *address = NULL;
    uint32_t id = UINT32_MAX;
    if (!json_is_object(item))
        return mr_fail(err, MR_ERR_FORMAT, "'%s' holds %s; its members are objects", key,
                       mr_json_type_name(item));
    mr_status status = check_keys(item, known, key, err);
    if (status == MR_OK) status = mr_json_u32(&id, item, "id", 0, out->count - 1, err);
    if (status == MR_OK) status = mr_json_string(&address, item, "address", err);
    if (status != MR_OK) return mr_fail_prefix(err, status, "'%s'", key);
    if (id == UINT32_MAX || !address)
        return mr_fail(err, MR_ERR_FORMAT, "'%s': a member needs an id and an address", key);
    if (out->addresses[id])
        return mr_fail(err, MR_ERR_FORMAT, "'%s': id %u appears twice", key, id);
    status = mr_address_check(address, err);
    if (status != MR_OK) return mr_fail_prefix(err, status, "'%s': member %u", key, id);
    for (uint32_t i = 0; i < out->count; i++)
        if (out->addresses[i] && strcmp(out->addresses[i], address) == 0)
            return mr_fail(err, MR_ERR_FORMAT, "'%s': members %u and %u have the same address %s",
                           key, i, id, address);
    out->addresses[id] = mr_strdup(address);
    return MR_OK;
}

static mr_status take_members(mr_members *out, const json_t *root, const char *key, mr_err *err) {
    const json_t *list = json_object_get(root, key);
    if (!list) return MR_OK;
    if (!json_is_array(list))
        return mr_fail(err, MR_ERR_FORMAT, "'%s' is %s, expected an array", key,
                       mr_json_type_name(list));
    const size_t count = json_array_size(list);
    if (count > MR_MAX_MEMSHARDS)
        return mr_fail(err, MR_ERR_LIMIT, "'%s' has %zu members; at most %d", key, count,
                       MR_MAX_MEMSHARDS);
    out->addresses = mr_alloc_array(count, sizeof(*out->addresses));
    out->count = (uint32_t)count;
    for (size_t i = 0; i < count; i++) {
        const mr_status status = take_member(out, json_array_get(list, i), key, err);
        if (status != MR_OK) return status;
    }
    return MR_OK; /* count members with distinct ids below count: none is missing */
}

static mr_status take_all(mr_registry *out, const json_t *root, mr_err *err) {
    static const char *const known[] = {"cluster",   "model",   "digest",       "grid",
                                        "memshards", "workers", "coordinators", NULL};
    const char *digest = NULL;
    if (!json_is_object(root))
        return mr_fail(err, MR_ERR_FORMAT, "it is %s, expected an object", mr_json_type_name(root));
    mr_status status = check_keys(root, known, "it", err);
    if (status == MR_OK) status = take_text(&out->cluster, root, "cluster", NAME_BYTES_MAX, err);
    if (status == MR_OK) status = take_text(&out->model, root, "model", NAME_BYTES_MAX, err);
    if (status == MR_OK) status = take_text(&out->grid, root, "grid", GRID_BYTES_MAX, err);
    if (status == MR_OK) status = mr_json_string(&digest, root, "digest", err);
    if (status == MR_OK && (!digest || mr_digest_parse(&out->digest, digest) != 0))
        status = mr_fail(err, MR_ERR_FORMAT, "'digest' must be 64 hexadecimal digits");
    if (status == MR_OK) status = take_members(&out->memshards, root, "memshards", err);
    if (status == MR_OK) status = take_members(&out->workers, root, "workers", err);
    if (status == MR_OK) status = take_members(&out->coordinators, root, "coordinators", err);
    return status;
}

mr_status mr_registry_parse(mr_registry *out, const char *text, size_t bytes, const char *what,
                            mr_err *err) {
    json_t *root;
    *out = (mr_registry){0};
    mr_status status = mr_json_parse(&root, text, bytes, what, err);
    if (status != MR_OK) return status;
    status = take_all(out, root, err);
    if (status != MR_OK) {
        mr_fail_prefix(err, status, "%s", what);
        mr_registry_free(out);
    }
    json_decref(root);
    return status;
}

mr_status mr_registry_load(mr_registry *out, const char *path, mr_err *err) {
    char *text;
    size_t bytes;
    *out = (mr_registry){0};
    mr_status status = mr_file_read(&text, &bytes, path, REGISTRY_BYTES_MAX, err);
    if (status != MR_OK) return status;
    status = mr_registry_parse(out, text, bytes, path, err);
    free(text);
    return status;
}

static json_t *members_to_json(const mr_members *members) {
    json_t *list = json_array();
    for (uint32_t i = 0; i < members->count; i++)
        json_array_append_new(
            list, json_pack("{s:I, s:s}", "id", (json_int_t)i, "address", members->addresses[i]));
    return list;
}

mr_status mr_registry_save(const mr_registry *registry, const char *path, mr_err *err) {
    char digest[MR_DIGEST_TEXT_BYTES];
    mr_digest_text(&registry->digest, digest);
    json_t *root = json_pack("{s:s, s:s, s:s, s:s, s:o, s:o, s:o}", "cluster", registry->cluster,
                             "model", registry->model, "digest", digest, "grid", registry->grid,
                             "memshards", members_to_json(&registry->memshards), "workers",
                             members_to_json(&registry->workers), "coordinators",
                             members_to_json(&registry->coordinators));
    if (!root) return mr_fail(err, MR_ERR_FORMAT, "%s: a name is not valid UTF-8", path);
    char *text = json_dumps(root, JSON_INDENT(1));
    json_decref(root);
    if (!text) return mr_fail(err, MR_ERR_NOMEM, "%s: no memory to write it", path);
    const mr_status status = mr_file_write(path, text, strlen(text), err);
    free(text);
    return status;
}
