/* Goal: a registry file is read exactly as it was written, and one with a mistake in it is refused
 * with a sentence that names the mistake. */
#include "common/net/registry.h"
#include "common/base/mem.h"
#include "tests/unit/net_test.h"

#include <stdio.h>
#include <unistd.h>

#define DIGEST "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
#define HEAD "{\"cluster\":\"c\",\"model\":\"m\",\"digest\":\"" DIGEST "\",\"grid\":\"2x1\""

static void test_round_trip(void **state) {
    (void)state;
    mr_err err = {{0}};
    mr_registry r = {.cluster = mr_strdup("demo"),
                     .model = mr_strdup("models/demo"),
                     .grid = mr_strdup("2x1"),
                     .digest = {{1, 2, 3}}},
                back;
    mr_members_add(&r.memshards, "127.0.0.1:7001");
    mr_members_add(&r.memshards, "[::1]:7002");
    mr_members_add(&r.workers, "unix:/tmp/worker");
    char path[64];
    snprintf(path, sizeof(path), "/tmp/mr-registry-%ld.json", (long)getpid());
    assert_int_equal(mr_registry_save(&r, path, &err), MR_OK);
    assert_int_equal(mr_registry_load(&back, path, &err), MR_OK);
    assert_string_equal(back.cluster, "demo");
    assert_string_equal(back.grid, "2x1");
    assert_memory_equal(&back.digest, &r.digest, sizeof(r.digest));
    assert_int_equal(back.memshards.count, 2);
    assert_string_equal(back.memshards.addresses[1], "[::1]:7002");
    assert_string_equal(back.workers.addresses[0], "unix:/tmp/worker");
    assert_int_equal(back.coordinators.count, 0);
    mr_registry_free(&back);
    mr_registry_free(&r);
    unlink(path);
    assert_int_equal(mr_registry_load(&back, path, &err), MR_ERR_IO);
}

static void refused(const char *text, const char *why) {
    mr_registry r;
    mr_err err = {{0}};
    if (mr_registry_parse(&r, text, strlen(text), "cluster.json", &err) == MR_OK)
        fail_msg("took %s", text);
    assert_null(r.cluster);
    assert_null(r.memshards.addresses);
    if (why) assert_sentence(err, why);
    assert_sentence(err, "cluster.json");
}

static void test_mistakes(void **state) {
    (void)state;
    mr_registry r;
    mr_err err;
    const char ids[] =
        HEAD ",\"memshards\":[{\"id\":1,\"address\":\"b:2\"},{\"id\":0,\"address\":\"a:1\"}]}";
    assert_int_equal(mr_registry_parse(&r, ids, strlen(ids), "x", &err), MR_OK); /* any order */
    assert_string_equal(r.memshards.addresses[0], "a:1");
    mr_registry_free(&r);
    refused("", NULL);
    refused("[]", "expected an object");
    refused("{}", "'cluster'");
    refused(HEAD, NULL);
    refused(HEAD ",\"memshard\":[]}", "unknown key 'memshard'");
    refused(HEAD ",\"grid\":\"1x1\"}", NULL); /* a key twice */
    refused(HEAD ",\"memshards\":{}}", "expected an array");
    refused(HEAD ",\"memshards\":[7]}", "objects");
    refused(HEAD ",\"memshards\":[{\"id\":0}]}", "needs an id and an address");
    refused(HEAD ",\"memshards\":[{\"address\":\"a:1\"}]}", "needs an id and an address");
    refused(HEAD ",\"memshards\":[{\"id\":1,\"address\":\"a:1\"}]}", "id");
    refused(HEAD ",\"memshards\":[{\"id\":-1,\"address\":\"a:1\"}]}", "id");
    refused(HEAD ",\"memshards\":[{\"id\":\"0\",\"address\":\"a:1\"}]}", "id");
    refused(HEAD ",\"memshards\":[{\"id\":0,\"address\":\"a\"}]}", "host:port");
    refused(HEAD ",\"memshards\":[{\"id\":0,\"address\":\"a:70000\"}]}", "port");
    refused(HEAD ",\"memshards\":[{\"id\":0,\"address\":\"a:1\",\"weight\":1}]}", "unknown key");
    refused(HEAD ",\"memshards\":[{\"id\":0,\"address\":\"a:1\"},{\"id\":0,\"address\":\"b:1\"}]}",
            "twice");
    refused(HEAD ",\"memshards\":[{\"id\":0,\"address\":\"a:1\"},{\"id\":1,\"address\":\"a:1\"}]}",
            "same address");
    refused("{\"cluster\":\"c\",\"model\":\"m\",\"grid\":\"1x1\"}", "'digest'");
    refused("{\"cluster\":\"c\",\"model\":\"m\",\"grid\":\"1x1\",\"digest\":\"12\"}", "'digest'");
    refused("{\"cluster\":7,\"model\":\"m\",\"grid\":\"1x1\",\"digest\":\"" DIGEST "\"}",
            "cluster");
    refused("{\"cluster\":\"\",\"model\":\"m\",\"grid\":\"1x1\",\"digest\":\"" DIGEST "\"}",
            "'cluster'");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_mistakes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
