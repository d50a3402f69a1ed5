/* cmd_split.c - `memrack split`: reads a model once and writes its manifest: digest, maxima, norms,
 * checksums, and the grid its tables will be cut in. The tables themselves stay where they are: a
 * memshard takes its cells out of the same files. */
#include "cli/cli.h"
#include "common/base/file.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/model/manifest.h"
#include "memshard/store.h"

#include <stdio.h>
#include <stdlib.h>

static mr_status print_cells(const mr_model *model, const mr_manifest *manifest, mr_err *err) {
    char digest[MR_DIGEST_TEXT_BYTES];
    const mr_grid grid = manifest->grid;
    const uint32_t cells = grid.row_groups * grid.width_slices;
    uint64_t smallest = UINT64_MAX, largest = 0, all = 0;
    mr_model_tables *tables;
    mr_status status = mr_model_tables_open(&tables, model, manifest, err);
    if (status != MR_OK) return status;
    for (uint32_t i = 0; i < cells && status == MR_OK; i++) {
        mr_store_plan plan;
        status = mr_held_plan(&plan, mr_model_tables_source(tables), grid, i, NULL, err);
        const uint64_t bytes = plan.mapped_bytes + plan.kept_bytes;
        if (bytes < smallest) smallest = bytes;
        if (bytes > largest) largest = bytes;
        all += bytes;
    }
    mr_model_tables_close(tables);
    if (status != MR_OK) return status;
    mr_digest_text(&manifest->digest, digest);
    printf("digest  %s\n", digest);
    for (uint32_t i = 0; i < manifest->table_count; i++) {
        const mr_table_facts *f = &manifest->tables[i];
        printf("table %u: largest value %g (rms %g), largest pre-value norm %g, sums in %u bits\n",
               i, f->value_max, f->value_rms, f->pre_norm_max, f->accumulator_bits);
    }
    printf("grid %ux%u: %u cells of %.1f to %.1f MiB, %.1f MiB in all\n", grid.row_groups,
           grid.width_slices, cells, (double)smallest / (double)MR_MIB,
           (double)largest / (double)MR_MIB, (double)all / (double)MR_MIB);
    return MR_OK;
}

static mr_status split(const char *directory, const char *grid_text, const char *folder,
                       mr_err *err) {
    mr_model *model;
    mr_manifest manifest;
    mr_grid grid;
    mr_status status = mr_grid_parse(&grid, grid_text, err);
    if (status != MR_OK) return status;
    status = mr_model_open(&model, directory, err);
    if (status != MR_OK) return status;
    char *path = mr_format("%s/memrack-manifest.json", folder ? folder : directory);
    if (mr_model_table_count(model) == 0) {
        status = mr_fail(err, MR_ERR_ARGUMENT, "%s has no memory layers: there is nothing to split",
                         directory);
        goto close_model;
    }
    status = mr_manifest_make(&manifest, model, grid, mr_cli_progress, NULL, err);
    if (status != MR_OK) goto close_model;
    if (folder) status = mr_make_directories(folder, err);
    if (status == MR_OK) status = mr_manifest_write(&manifest, model, path, err);
    if (status == MR_OK) status = print_cells(model, &manifest, err);
    if (status == MR_OK) printf("wrote %s\n", path);
    mr_manifest_free(&manifest);
close_model:
    free(path);
    mr_model_close(model);
    return status;
}

int mr_cmd_split(int argc, char **argv) {
    const char *grid = NULL, *folder = NULL, *directory;
    int count;
    const mr_option options[] = {
        {"grid", 'g', MR_OPT_TEXT, &grid, 0, 0, "GxW", "row groups x width slices"},
        {"out", 'o', MR_OPT_TEXT, &folder, 0, 0, "DIR",
         "write memrack-manifest.json there (beside the model)"},
        {0}};
    const mr_command_spec spec = {
        "memrack split MODEL --grid GxW [--out DIR]",
        "Reads a model once and writes its manifest: digest, maxima, norms, checksums of every\n"
        "MiB and of every cell of the grid. Models that are fetched from a URL or a peer need it.\n"
        "\n"
        "  memrack split models/demo --grid 4x1",
        options, 1, 1};
    mr_err err = {{0}};
    const int code = mr_cli_parse(&spec, argc, argv, &directory, &count);
    if (code >= 0) return code;
    mr_status status = MR_ERR_ARGUMENT;
    if (!grid)
        mr_fail(&err, status, "--grid is missing; try --help");
    else
        status = split(directory, grid, folder, &err);
    return status == MR_OK ? 0 : mr_cli_fail("split", status, &err);
}
