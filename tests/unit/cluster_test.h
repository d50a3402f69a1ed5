/* cluster_test.h - records for tests of clusters, small but whole. */
#ifndef MR_TESTS_CLUSTER_TEST_H
#define MR_TESTS_CLUSTER_TEST_H
#include "common/net/cluster.h"
#include "tests/unit/rpc_test.h"

static inline mr_member test_member(mr_role role, const char *id, uint64_t incarnation) {
    return (mr_member){.id = (char *)(uintptr_t)id,
                       .role = role,
                       .state = MR_MEMBER_READY,
                       .is_listed = true,
                       .address = role == MR_ROLE_COORDINATOR ? NULL : "10.0.0.1:7001",
                       .machine = "machine",
                       .host = "host",
                       .zone = "",
                       .set = "",
                       .numeric_class = role == MR_ROLE_WORKER ? "avx2" : "",
                       .capacity_bytes = role == MR_ROLE_MEMSHARD ? 1 << 20 : 0,
                       .incarnation = incarnation,
                       .wire_min = 1,
                       .wire_max = 2};
}

static inline mr_digest test_digest(uint8_t number) {
    mr_digest digest = {{0}};
    digest.bytes[0] = number;
    return digest;
}

/* One cell on one memshard. */
static inline mr_map_record *test_map(uint8_t number, uint64_t epoch, const char *shard) {
    const mr_digest digest = test_digest(number);
    const uint32_t first[] = {0, 1};
    const char *const replicas[] = {shard};
    mr_map_record *map;
    mr_err err = {{0}};
    check_ok(mr_map_record_make(&map, &digest, epoch, 1, 1, first, replicas, &err));
    return map;
}

static inline mr_model_record test_model(uint64_t epoch) {
    static mr_model_version version;
    version = (mr_model_version){.version = "v1",
                                 .digest = test_digest(1),
                                 .source = "models/demo",
                                 .grid_rows = 1,
                                 .grid_columns = 1,
                                 .replicas = 1};
    return (mr_model_record){
        .name = "demo", .epoch = epoch, .active = "v1", .versions = &version, .version_count = 1};
}

#endif
