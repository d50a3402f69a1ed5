/* Goal: what the writer leaves behind is what any reader of safetensors expects, or nothing at all.
 * Method: write small files, read the bytes back and take the header apart with jansson. */
#include "common/base/file.h"
#include "common/base/mem.h"
#include "common/model/safetensors_write.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[64];

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof(folder), "/tmp/mr-writer-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    char *command = mr_format("rm -r %s", folder);
    const int code = system(command);
    free(command);
    return code;
}

/* The header of a file as JSON; *data_first: where the data begins. */
static json_t *header_of(const char *path, size_t *data_first, char **bytes, size_t *size) {
    assert_int_equal(mr_file_read(bytes, size, path, 1 << 20, NULL), MR_OK);
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--) length = length << 8 | (uint8_t)(*bytes)[i];
    assert_true(length % 8 == 0 && length + 8 <= *size);
    *data_first = 8 + (size_t)length;
    json_t *header = json_loadb(*bytes + 8, (size_t)length, 0, NULL);
    assert_non_null(header);
    return header;
}

static uint64_t offset_of(const json_t *header, const char *name, int end) {
    const json_t *offsets = json_object_get(json_object_get(header, name), "data_offsets");
    return (uint64_t)json_integer_value(json_array_get(offsets, (size_t)end));
}

static void test_one_file_is_aligned_and_complete(void **state) {
    (void)state;
    mr_err err = {{0}};
    uint32_t half, wide, real, none;
    char *path = mr_format("%s/one.safetensors", folder);
    mr_writer *writer = mr_writer_new();
    const uint16_t halves[3] = {1, 2, 3};
    const int64_t ids[2] = {-1, 1ll << 40};
    const float reals[2] = {0.5f, -2};
    assert_int_equal(mr_writer_declare(writer, &half, "h", MR_DTYPE_BF16, 1, (uint64_t[]){3}, &err),
                     MR_OK);
    assert_int_equal(
        mr_writer_declare(writer, &real, "r\"x", MR_DTYPE_F32, 2, (uint64_t[]){1, 2}, &err), MR_OK);
    assert_int_equal(mr_writer_declare(writer, &wide, "i", MR_DTYPE_I64, 1, (uint64_t[]){2}, &err),
                     MR_OK);
    assert_int_equal(mr_writer_declare(writer, &none, "e", MR_DTYPE_F32, 1, (uint64_t[]){0}, &err),
                     MR_OK);
    assert_int_equal(mr_writer_begin_file(writer, path, &err), MR_OK);
    assert_int_equal(access(path, F_OK), -1); /* nothing under the final name yet */
    assert_int_equal(mr_writer_put(writer, real, 4, reals + 1, 4, &err), MR_OK);
    assert_int_equal(mr_writer_put(writer, half, 0, halves, 6, &err), MR_OK);
    assert_int_equal(mr_writer_put(writer, wide, 0, ids, 16, &err), MR_OK);
    assert_int_equal(mr_writer_put(writer, real, 0, reals, 4, &err), MR_OK);
    assert_int_equal(mr_writer_finish(writer, &err), MR_OK);
    mr_writer_free(writer);

    char *bytes;
    size_t size, first;
    json_t *header = header_of(path, &first, &bytes, &size);
    assert_int_equal(json_object_size(header), 5);
    assert_int_equal(size, first + 16 + 8 + 6);
    assert_int_equal(offset_of(header, "i", 0), 0);
    assert_int_equal(offset_of(header, "r\"x", 0), 16);
    assert_int_equal(offset_of(header, "h", 0), 24);
    assert_int_equal(offset_of(header, "h", 1), 30);
    assert_memory_equal(bytes + first, ids, 16);
    assert_memory_equal(bytes + first + 16, reals, 8);
    assert_memory_equal(bytes + first + 24, halves, 6);
    assert_string_equal(json_string_value(json_object_get(
                            json_object_get(header, "__metadata__"), "format")), "pt");
    json_decref(header);
    free(bytes);
    free(path);
}

static void test_a_missing_byte_leaves_no_file(void **state) {
    (void)state;
    mr_err err = {{0}};
    uint32_t tensor;
    char *path = mr_format("%s/short.safetensors", folder);
    mr_writer *writer = mr_writer_new();
    assert_int_equal(
        mr_writer_declare(writer, &tensor, "t", MR_DTYPE_F32, 1, (uint64_t[]){2}, &err), MR_OK);
    assert_int_equal(mr_writer_begin_file(writer, path, &err), MR_OK);
    assert_int_equal(mr_writer_put(writer, tensor, 0, "abcd", 4, &err), MR_OK);
    assert_int_equal(mr_writer_finish(writer, &err), MR_ERR_FORMAT);
    assert_string_equal(err.text, "tensor t: 4 of 8 bytes were written");
    mr_writer_free(writer);
    assert_int_equal(access(path, F_OK), -1);
    char *temporary = mr_format("%s.tmp-%ld", path, (long)getpid());
    assert_int_equal(access(temporary, F_OK), -1);
    free(temporary);
    free(path);
}

static void test_large_data_is_cut_into_files_with_an_index(void **state) {
    (void)state;
    mr_err err = {{0}};
    uint32_t tensor[3];
    char name[8];
    mr_writer *writer = mr_writer_new();
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof(name), "t%d", i);
        assert_int_equal(
            mr_writer_declare(writer, &tensor[i], name, MR_DTYPE_F32, 1, (uint64_t[]){4}, &err),
            MR_OK);
    }
    assert_int_equal(mr_writer_begin_directory(writer, folder, 32, &err), MR_OK);
    assert_int_equal(mr_writer_file_count(writer), 2);
    const float data[4] = {1, 2, 3, 4};
    for (int i = 0; i < 3; i++)
        assert_int_equal(mr_writer_put(writer, tensor[i], 0, data, sizeof(data), &err), MR_OK);
    assert_int_equal(mr_writer_finish(writer, &err), MR_OK);
    mr_writer_free(writer);

    char *index_path = mr_format("%s/model.safetensors.index.json", folder);
    json_t *index = json_load_file(index_path, 0, NULL);
    const json_t *map = json_object_get(index, "weight_map");
    assert_string_equal(json_string_value(json_object_get(map, "t1")),
                        "model-00001-of-00002.safetensors");
    assert_string_equal(json_string_value(json_object_get(map, "t2")),
                        "model-00002-of-00002.safetensors");
    json_decref(index);
    free(index_path);
    char *bytes, *path = mr_format("%s/model-00002-of-00002.safetensors", folder);
    size_t size, first;
    json_t *header = header_of(path, &first, &bytes, &size);
    assert_int_equal(size, first + 16);
    assert_memory_equal(bytes + first, data, 16);
    json_decref(header);
    free(bytes);
    free(path);
}

static void test_declarations_are_checked(void **state) {
    (void)state;
    mr_err err = {{0}};
    uint32_t tensor;
    mr_writer *writer = mr_writer_new();
    assert_int_equal(
        mr_writer_declare(writer, &tensor, "t", MR_DTYPE_F32, 1, (uint64_t[]){2}, &err), MR_OK);
    assert_int_equal(
        mr_writer_declare(writer, &tensor, "t", MR_DTYPE_F32, 1, (uint64_t[]){2}, &err),
        MR_ERR_ARGUMENT);
    assert_int_equal(
        mr_writer_declare(writer, &tensor, "\xff", MR_DTYPE_F32, 1, (uint64_t[]){2}, &err),
        MR_ERR_ARGUMENT);
    assert_int_equal(mr_writer_declare(writer, &tensor, "u", MR_DTYPE_F32, 2,
                                       (uint64_t[]){1ull << 40, 1ull << 40}, &err),
                     MR_ERR_RANGE);
    assert_int_equal(mr_writer_declare(writer, &tensor, "v", MR_DTYPE_U8, 2,
                                       (uint64_t[]){1ull << 32, 1ull << 31}, &err),
                     MR_ERR_RANGE);
    assert_int_equal(mr_writer_begin_file(writer, "/nowhere/at/all", &err), MR_ERR_IO);
    mr_writer_free(writer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_file_is_aligned_and_complete),
        cmocka_unit_test(test_a_missing_byte_leaves_no_file),
        cmocka_unit_test(test_large_data_is_cut_into_files_with_an_index),
        cmocka_unit_test(test_declarations_are_checked),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
