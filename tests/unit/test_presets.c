/* Goal: `memrack synth` writes models the loader takes, of the sizes that were published, and the
 * same numbers whatever the chunks.
 * Method: the published totals; every preset through the config parser; scaled-down presets written
 * and opened; the generator against its published test vector, against itself in other chunks, and
 * against the moments of the normal distribution. */
#include "common/base/mem.h"
#include "common/model/model.h"
#include "common/model/presets.h"
#include "common/model/random_fill.h"
#include "common/model/safetensors_write.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void test_philox_gives_the_published_vectors(void **state) {
    (void)state;
    uint32_t out[4];
    mr_philox(out, (uint32_t[]){0, 0, 0, 0}, (uint32_t[]){0, 0});
    assert_int_equal(out[0], 0x6627e8d5);
    assert_int_equal(out[1], 0xe169c58d);
    assert_int_equal(out[2], 0xbc57ac4c);
    assert_int_equal(out[3], 0x9b00dbd8);
    const uint32_t ones = 0xffffffff;
    mr_philox(out, (uint32_t[]){ones, ones, ones, ones}, (uint32_t[]){ones, ones});
    assert_int_equal(out[0], 0x408f276d);
    assert_int_equal(out[1], 0x41c83b0e);
    assert_int_equal(out[2], 0xa20bc7c6);
    assert_int_equal(out[3], 0x6d5451fd);
}

static void test_numbers_do_not_depend_on_chunks(void **state) {
    (void)state;
    enum { COUNT = 1000 };
    static float whole[COUNT], parts[COUNT];
    const mr_random random = mr_random_for(7, "a tensor");
    const uint64_t start = (1ull << 33) + 5; /* beyond 32 bits of position */
    mr_random_normal(whole, &random, start, COUNT, 0, 1);
    for (size_t done = 0, step = 1; done < COUNT; done += step, step = step % 37 + 1) {
        if (step > COUNT - done) step = COUNT - done;
        mr_random_normal(parts + done, &random, start + done, step, 0, 1);
    }
    assert_memory_equal(whole, parts, sizeof(whole));
    const mr_random other = mr_random_for(7, "another tensor");
    mr_random_normal(parts, &other, start, COUNT, 0, 1);
    assert_memory_not_equal(whole, parts, sizeof(whole));
}

static void test_numbers_are_normal(void **state) {
    (void)state;
    enum { COUNT = 1 << 20 };
    float *x = mr_alloc_array(COUNT, sizeof(*x));
    const mr_random random = mr_random_for(1, "x");
    double sum = 0, square = 0, fourth = 0;
    uint32_t inside = 0;
    mr_random_normal(x, &random, 0, COUNT, 3, 2);
    for (int i = 0; i < COUNT; i++) {
        const double z = ((double)x[i] - 3) / 2;
        sum += z;
        square += z * z;
        fourth += z * z * z * z;
        inside += fabs(z) < 1;
    }
    free(x);
    assert_true(fabs(sum / COUNT) < 0.005);
    assert_true(fabs(square / COUNT - 1) < 0.006);
    assert_true(fabs(fourth / COUNT - 3) < 0.06);
    assert_true(fabs((double)inside / COUNT - 0.6826895) < 0.003);
}

static void test_the_permutation_is_one(void **state) {
    (void)state;
    for (uint64_t side = 1; side <= 48; side++) {
        const uint64_t count = side * side;
        int64_t *image = mr_alloc_array(count, sizeof(*image));
        uint8_t *seen = mr_alloc(count);
        const mr_random random = mr_random_for(side, "shuffle");
        mr_random_permutation(image, &random, side, 0, count / 2);
        mr_random_permutation(image + count / 2, &random, side, count / 2, count - count / 2);
        for (uint64_t i = 0; i < count; i++) {
            assert_in_range((uint64_t)image[i], 0, count - 1);
            assert_int_equal(seen[image[i]], 0);
            seen[image[i]] = 1;
        }
        free(seen);
        free(image);
    }
}

static void test_totals_are_those_published(void **state) {
    (void)state;
    static const struct {
        const char *name;
        double table, total; /* billions; total without the embedding, as published for UltraMem */
    } published[] = {{"ultramem-151m-x12", 1.86, 2.03},
                     {"ultramem-680m-x12", 8.18, 8.93},
                     {"ultramem-1.6b-x12", 19.73, 21.41}};
    for (size_t i = 0; i < 3; i++) {
        mr_shape shape;
        assert_int_equal(mr_preset_find(&shape, published[i].name, NULL), MR_OK);
        const mr_shape_counts c = mr_shape_count(&shape);
        const double embedding = (double)shape.vocab * shape.d_model;
        const double total = ((double)(c.dense + c.keys + c.table) - embedding) / 1e9;
        assert_true(fabs((double)c.table / 1e9 - published[i].table) < 0.01);
        assert_true(fabs(total / published[i].total - 1) < 0.02);
    }
}

static void test_every_preset_is_accepted(void **state) {
    (void)state;
    for (uint32_t i = 0; i < mr_preset_count(); i++) {
        static const double factors[] = {1, 0.5, 0.1, 0.01, 2};
        for (size_t f = 0; f < sizeof(factors) / sizeof(factors[0]); f++) {
            mr_shape shape;
            mr_err err = {{0}};
            char *config;
            mr_preset_at(&shape, i);
            mr_shape_scale(&shape, factors[f]);
            if (mr_shape_config(&config, &shape, &err) != MR_OK)
                fail_msg("%s at %g: %s", shape.name, factors[f], err.text);
            free(config);
        }
    }
}

static void test_fewer_layers_keep_every_insertion_alive(void **state) {
    (void)state;
    for (uint32_t layers = 1; layers <= 40; layers++) {
        mr_shape shape;
        mr_err err = {{0}};
        char *config;
        assert_int_equal(mr_preset_find(&shape, "ultramem-1.6b-x12", NULL), MR_OK);
        mr_shape_set_layers(&shape, layers);
        if (mr_shape_config(&config, &shape, &err) != MR_OK)
            fail_msg("%u layers, %s: %s", layers, shape.insertions, err.text);
        free(config);
    }
}

static void check_refused(const mr_shape *shape, const char *word) {
    mr_err err = {{0}};
    char *config;
    assert_int_equal(mr_shape_config(&config, shape, &err), MR_ERR_ARGUMENT);
    assert_null(config);
    if (!strstr(err.text, word)) fail_msg("'%s' does not name %s", err.text, word);
}

static void test_impossible_shapes_are_refused(void **state) {
    (void)state;
    mr_shape good, bad;
    assert_int_equal(mr_preset_find(&good, "ultramem-151m-x12", NULL), MR_OK);
    bad = good;
    bad.knn = 800;
    bad.knum = 300;
    check_refused(&bad, "--knn");
    bad = good;
    bad.value_expand = 3;
    check_refused(&bad, "--value-expand");
    bad = good;
    bad.vdim = 511;
    check_refused(&bad, "--vdim");
    bad = good;
    bad.knum = 40000;
    check_refused(&bad, "--knum");
    bad = good;
    bad.heads = 3;
    check_refused(&bad, "n_heads");
    bad = good;
    bad.mem_heads = 3;
    check_refused(&bad, "mem_head");
    bad = good;
    strcpy(bad.insertions, "3:5/6:12");
    check_refused(&bad, "--insert");
    mr_err err = {{0}};
    assert_int_equal(mr_preset_find(&bad, "ultramem-6.5b", &err), MR_ERR_ARGUMENT);
}

/* A model of the shape with zeros for data: opening looks at the headers only. */
static void write_zeros(const char *folder, const mr_shape *shape) {
    mr_synth_tensor *tensors;
    uint32_t count, number;
    char *config;
    mr_err err = {{0}};
    assert_int_equal(mr_shape_config(&config, shape, &err), MR_OK);
    mr_shape_tensors(&tensors, &count, shape);
    mr_writer *writer = mr_writer_new();
    for (uint32_t i = 0; i < count; i++)
        assert_int_equal(
            mr_writer_declare(writer, &number, tensors[i].name,
                              tensors[i].role == MR_ROLE_INDEX ? MR_DTYPE_I64 : MR_DTYPE_BF16,
                              tensors[i].dims, tensors[i].shape, &err),
            MR_OK);
    assert_int_equal(mr_writer_begin_directory(writer, folder, 0, &err), MR_OK);
    for (uint32_t i = 0; i < count; i++) {
        const size_t bytes = (size_t)mr_writer_tensor_bytes(writer, i);
        void *zeros = mr_alloc(bytes);
        assert_int_equal(mr_writer_put(writer, i, 0, zeros, bytes, &err), MR_OK);
        free(zeros);
    }
    assert_int_equal(mr_writer_finish(writer, &err), MR_OK);
    mr_writer_free(writer);
    char *path = mr_format("%s/config.json", folder);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(config, file) >= 0);
    fclose(file);
    free(path);
    free(tensors);
    free(config);
}

static void test_the_loader_takes_every_preset(void **state) {
    (void)state;
    for (uint32_t i = 0; i < mr_preset_count(); i++) {
        mr_shape shape;
        mr_model *model;
        mr_err err = {{0}};
        char folder[] = "/tmp/mr-presets-XXXXXX";
        assert_non_null(mkdtemp(folder));
        mr_preset_at(&shape, i);
        mr_shape_scale(&shape, 0.03);
        mr_shape_set_layers(&shape, shape.layers / 4);
        shape.vocab = 100;
        shape.tied = i % 2 == 0;
        write_zeros(folder, &shape);
        if (mr_model_open(&model, folder, &err) != MR_OK) fail_msg("%s: %s", shape.name, err.text);
        mr_model_close(model);
        char *command = mr_format("rm -r %s", folder);
        assert_int_equal(system(command), 0);
        free(command);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_gives_the_published_vectors),
        cmocka_unit_test(test_numbers_do_not_depend_on_chunks),
        cmocka_unit_test(test_numbers_are_normal),
        cmocka_unit_test(test_the_permutation_is_one),
        cmocka_unit_test(test_totals_are_those_published),
        cmocka_unit_test(test_every_preset_is_accepted),
        cmocka_unit_test(test_fewer_layers_keep_every_insertion_alive),
        cmocka_unit_test(test_impossible_shapes_are_refused),
        cmocka_unit_test(test_the_loader_takes_every_preset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
