/* convert_files.c - what a converted model has beside its weights: config.json with its storage
 * types, and copies of the small files (tokenizer, templates, licence); see convert.h. */
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "common/model/convert_impl.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static json_t *quantization(const mr_quant_config *q) {
    json_t *object = json_pack("{s:s}", "quant_method", "memrack");
    json_t *overrides = json_object();
    if (q->weights != MR_STORE_COUNT)
        json_object_set_new(object, "weights", json_string(mr_storage_name(q->weights)));
    if (q->tables != MR_STORE_COUNT)
        json_object_set_new(object, "tables", json_string(mr_storage_name(q->tables)));
    for (uint32_t i = 0; i < q->override_count; i++)
        json_object_set_new(overrides, q->overrides[i].name,
                            json_string(mr_storage_name(q->overrides[i].type)));
    if (q->override_count)
        json_object_set_new(object, "overrides", overrides);
    else
        json_decref(overrides);
    return object;
}

mr_status mr_convert_config(const mr_model *model, const char *directory, const mr_quant_config *q,
                            mr_err *err) {
    char *from = mr_format("%s/config.json", mr_model_directory(model));
    char *to = mr_format("%s/config.json", directory), *text = NULL;
    json_t *root;
    mr_status status = mr_json_load(&root, from, MR_MAX_CONFIG_BYTES, err);
    if (status != MR_OK) goto done;
    json_object_del(root, "quantization_config");
    json_object_del(root, "memrack_pack");
    if (q->weights != MR_STORE_COUNT || q->tables != MR_STORE_COUNT || q->override_count)
        json_object_set_new(root, "quantization_config", quantization(q));
    if (q->is_packed) json_object_set_new(root, "memrack_pack", json_pack("{s:i}", "version", 1));
    text = json_dumps(root, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    json_decref(root);
    status = text ? mr_file_write(to, text, strlen(text), err)
                  : mr_fail(err, MR_ERR_FORMAT, "%s cannot be written as JSON", from);
    free(text);
done:
    free(to);
    free(from);
    return status;
}

/* Weights of any kind, what names their places, and what is written anew. */
static bool is_left_out(const char *name) {
    static const char *const ends[] = {".safetensors", ".index.json", ".bin", ".pt",
                                       ".pth",         ".gguf",       ".h5",  ".msgpack"};
    const size_t bytes = strlen(name);
    if (name[0] == '.' || !strcmp(name, "config.json") || !strcmp(name, "memrack-manifest.json"))
        return true;
    for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++)
        if (bytes >= strlen(ends[i]) && !strcmp(name + bytes - strlen(ends[i]), ends[i]))
            return true;
    return false;
}

static mr_status copy_file(const char *from, const char *to, const char *name, mr_err *err) {
    char *source = mr_format("%s/%s", from, name), *target = mr_format("%s/%s", to, name);
    char *data = NULL;
    size_t bytes;
    struct stat st;
    mr_status status = MR_OK;
    if (stat(source, &st) == 0 && S_ISREG(st.st_mode)) {
        status = mr_file_read(&data, &bytes, source, MR_MAX_TOKENIZER_BYTES, err);
        if (status == MR_OK) status = mr_file_write(target, data, bytes, err);
    }
    free(data);
    free(target);
    free(source);
    return status;
}

mr_status mr_convert_copy_files(const char *from, const char *to, mr_err *err) {
    mr_status status = MR_OK;
    DIR *folder = opendir(from);
    if (!folder) return mr_fail(err, MR_ERR_IO, "open %s: %s", from, strerror(errno));
    for (const struct dirent *e; status == MR_OK && (e = readdir(folder));)
        if (!is_left_out(e->d_name)) status = copy_file(from, to, e->d_name, err);
    closedir(folder);
    return status;
}

void mr_convert_remove(const char *directory) {
    DIR *folder = opendir(directory);
    if (!folder) return;
    for (const struct dirent *e; (e = readdir(folder));) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        char *path = mr_format("%s/%s", directory, e->d_name);
        unlink(path);
        free(path);
    }
    closedir(folder);
    rmdir(directory);
}
