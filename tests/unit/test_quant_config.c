/* quantization_config of config.json: what is read, which tensor is stored how, what is refused. */
#include "common/base/json.h"
#include "common/model/quant_config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static mr_status parse(mr_quant_config *out, const char *json, mr_err *err) {
    json_t *root;
    assert_int_equal(mr_json_parse(&root, json, strlen(json), "test", err), MR_OK);
    const mr_status status = mr_quant_config_parse(out, root, err);
    json_decref(root);
    return status;
}

static mr_storage_type type_of(const mr_quant_config *c, const char *name, mr_dtype dtype) {
    mr_err err = {{0}};
    mr_storage storage;
    if (mr_quant_config_storage(&storage, c, name, dtype, &err) != MR_OK) return MR_STORE_COUNT;
    return mr_storage_type_of(storage);
}

static void test_names(void **state) {
    (void)state;
    assert_true(mr_tensor_is_table("transformer.mem_blocks.3.values_for_look_up"));
    assert_true(mr_tensor_is_table("transformer.full_memory_layer.pre_values_for_look_up"));
    assert_true(mr_tensor_is_table("transformer.mem_blocks.0.values.weight"));
    assert_false(mr_tensor_is_table("transformer.mem_blocks.0.values_proj.weight"));
    assert_false(mr_tensor_is_table("values_for_look_up"));
    assert_false(mr_tensor_is_table(""));
}

static void test_storage(void **state) {
    (void)state;
    const char *table = "transformer.full_memory_layer.values_for_look_up";
    const char *pre = "transformer.full_memory_layer.pre_values_for_look_up";
    mr_err err = {{0}};
    mr_quant_config c;
    assert_int_equal(parse(&c,
                           "{\"quantization_config\": {\"quant_method\": \"memrack\", \"weights\": "
                           "\"int8\", \"tables\": \"int4\", \"overrides\": {\"z\": \"fp8\", "
                           "\"transformer.full_memory_layer.pre_values_for_look_up\": "
                           "\"fp8-block\", \"a\": \"bf16\"}, \"_note\": 1}}",
                           &err),
                     MR_OK);
    assert_int_equal(type_of(&c, table, MR_DTYPE_U8), MR_STORE_INT4);
    assert_int_equal(type_of(&c, pre, MR_DTYPE_U8), MR_STORE_FP8_BLOCK);
    assert_int_equal(type_of(&c, "z", MR_DTYPE_U8), MR_STORE_FP8);
    assert_int_equal(type_of(&c, "other", MR_DTYPE_U8), MR_STORE_INT8);
    assert_int_equal(type_of(&c, table, MR_DTYPE_BF16), MR_STORE_BF16);
    assert_int_equal(type_of(&c, "z", MR_DTYPE_F16), MR_STORE_F16);
    assert_int_equal(type_of(&c, "z", MR_DTYPE_F32), MR_STORE_F32);
    assert_int_equal(type_of(&c, "a", MR_DTYPE_U8), MR_STORE_COUNT); /* bf16 is no U8 */
    assert_int_equal(type_of(&c, "z", MR_DTYPE_I64), MR_STORE_COUNT);
    mr_quant_config_free(&c);
    assert_int_equal(type_of(&c, table, MR_DTYPE_U8), MR_STORE_COUNT);
    assert_int_equal(parse(&c, "{}", &err), MR_OK);
    mr_storage storage;
    assert_int_equal(mr_quant_config_storage(&storage, &c, table, MR_DTYPE_U8, &err),
                     MR_ERR_FORMAT);
    assert_non_null(strstr(err.text, table));
    assert_int_equal(type_of(&c, table, MR_DTYPE_F16), MR_STORE_F16);
}

static void test_refusals(void **state) {
    (void)state;
    static const struct {
        const char *json, *says;
    } bad[] = {
        {"{\"quantization_config\": 5}", "not an object"},
        {"{\"quantization_config\": {}}", "quant_method"},
        {"{\"quantization_config\": {\"quant_method\": \"gptq\"}}", "gptq"},
        {"{\"quantization_config\": {\"quant_method\": \"memrack\", \"tables\": \"int3\"}}",
         "int3"},
        {"{\"quantization_config\": {\"quant_method\": \"memrack\", \"tables\": 4}}", "tables"},
        {"{\"quantization_config\": {\"quant_method\": \"memrack\", \"bits\": 4}}", "bits"},
        {"{\"quantization_config\": {\"quant_method\": \"memrack\", \"overrides\": []}}",
         "overrides"},
        {"{\"quantization_config\": {\"quant_method\": \"memrack\", \"overrides\": {\"t\": "
         "\"x\"}}}",
         "'x'"},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        mr_err err = {{0}};
        mr_quant_config c;
        assert_int_not_equal(parse(&c, bad[i].json, &err), MR_OK);
        assert_non_null(strstr(err.text, bad[i].says));
        assert_null(c.overrides);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_storage),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
