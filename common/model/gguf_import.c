/* gguf_import.c - see gguf_import.h. The order: read and check everything the header says, then
 * write into OUT.tmp-PID, tensors first, and rename it when every file is on disk. */
#include "common/model/gguf_import_impl.h"

#include "common/base/file.h"
#include "common/base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static mr_status refuse_used_directory(const char *directory, mr_err *err) {
    struct dirent *entry;
    DIR *folder = opendir(directory);
    mr_status status = MR_OK;
    if (!folder && errno == ENOENT) return MR_OK;
    if (!folder) return mr_fail(err, MR_ERR_IO, "%s: %s", directory, strerror(errno));
    while (status == MR_OK && (entry = readdir(folder)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            status = mr_fail(err, MR_ERR_ARGUMENT, "%s is there and not empty; name a new folder",
                             directory);
    closedir(folder);
    return status;
}

/* A folder of files, as this import makes it. */
static void remove_directory(const char *directory) {
    struct dirent *entry;
    DIR *folder = opendir(directory);
    while (folder && (entry = readdir(folder))) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        char *path = mr_format("%s/%s", directory, entry->d_name);
        unlink(path);
        free(path);
    }
    if (folder) closedir(folder);
    rmdir(directory);
}

static mr_status write_config(const gguf_model *model, const gguf_plan *plan, mr_gguf *file,
                              const char *directory, mr_err *err) {
    json_t *config = gguf_model_config(model, file);
    gguf_plan_describe(plan, config);
    char *text = json_dumps(config, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    char *path = mr_format("%s/config.json", directory);
    const mr_status status = mr_file_write(path, text, strlen(text), err);
    free(path);
    free(text);
    json_decref(config);
    return status;
}

typedef struct {
    gguf_model model;
    gguf_plan plan;
    gguf_tokenizer tokenizer;
} made;

static mr_status write_all(made *m, mr_gguf *file, const char *directory,
                           const mr_import_options *options, mr_import_report *report,
                           mr_err *err) {
    mr_status status = gguf_tokenizer_write(&m->tokenizer, directory, err);
    if (status == MR_OK) status = write_config(&m->model, &m->plan, file, directory, err);
    if (status == MR_OK)
        status = gguf_copy_tensors(&m->plan, file, directory, options, report, err);
    return status;
}

/* The parents of OUT are made where they are missing; OUT itself appears by the rename. */
static mr_status write_directory(made *m, mr_gguf *file, const mr_import_options *options,
                                 mr_import_report *report, mr_err *err) {
    char *target = mr_strdup(options->directory);
    for (size_t end = strlen(target); end > 1 && target[end - 1] == '/';) target[--end] = '\0';
    char *temporary = mr_format("%s.tmp-%ld", target, (long)getpid());
    mr_status status = mr_make_directories(temporary, err);
    if (status == MR_OK) status = write_all(m, file, temporary, options, report, err);
    if (status == MR_OK && rename(temporary, target) != 0)
        status = mr_fail(err, MR_ERR_IO, "rename %s to %s: %s", temporary, target, strerror(errno));
    if (status != MR_OK) remove_directory(temporary);
    free(temporary);
    free(target);
    return status;
}

static mr_status import_file(mr_gguf *file, const mr_import_options *options,
                             mr_import_report *report, mr_err *err) {
    made m = {0};
    mr_status status = gguf_model_read(&m.model, file, err);
    if (status == MR_OK) status = gguf_plan_make(&m.plan, &m.model, file, options->dtype, err);
    if (status == MR_OK)
        status = gguf_tokenizer_read(&m.tokenizer, file, &m.model, options->no_tokenizer, err);
    if (status == MR_OK) {
        snprintf(report->model_type, sizeof(report->model_type), "%s", m.model.model_type);
        snprintf(report->architecture, sizeof(report->architecture), "%s", m.model.arch);
        snprintf(report->tokenizer, sizeof(report->tokenizer), "%s", m.tokenizer.name);
        status = write_directory(&m, file, options, report, err);
    }
    gguf_tokenizer_free(&m.tokenizer);
    gguf_plan_free(&m.plan);
    gguf_model_free(&m.model);
    return status;
}

mr_status mr_gguf_import(const mr_import_options *options, mr_import_report *report, mr_err *err) {
    mr_gguf *file;
    *report = (mr_import_report){0};
    mr_status status = refuse_used_directory(options->directory, err);
    if (status == MR_OK) status = mr_gguf_open(&file, options->file, err);
    if (status != MR_OK) return status;
    status = import_file(file, options, report, err);
    mr_gguf_close(file);
    return status;
}
