/* Goal: records of a cluster are read exactly as they were written, one with a mistake in it is
 * refused with a sentence that names the mistake, and views share records without losing or
 * leaking any. Every store of records is taken for hostile. */
#include "common/base/mem.h"
#include "common/net/view.h"
#include "tests/unit/net_test.h"

#include <pthread.h>
#include <stdio.h>

#define D1 "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
#define D2 "ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
#define SHARD(more)                                                                                \
    "{\"schema\":1,\"role\":\"memshard\",\"id\":\"m0\",\"state\":\"ready\",\"address\":"           \
    "\"10.0.0.1:7001\",\"machine\":\"k\",\"host\":\"h0\",\"capacity_bytes\":1000,"                 \
    "\"incarnation\":5,\"wire\":[1,2],\"map_epoch\":0" more "}"
#define MAP(grid, members, cells)                                                                  \
    "{\"schema\":1,\"digest\":\"" D1 "\",\"epoch\":3,\"grid\":" grid ",\"members\":" members       \
    ",\"cells\":" cells "}"
#define VERSION(name, digest, source)                                                              \
    "{\"version\":\"" name "\",\"digest\":\"" digest "\",\"source\":\"" source                     \
    "\",\"grid\":[2,4],\"replicas\":2}"
#define MODEL(versions, more)                                                                      \
    "{\"schema\":1,\"name\":\"demo\",\"epoch\":2,\"active\":\"v1\",\"versions\":[" versions        \
    "]" more "}"
#define OWNER(group, coordinator, epoch)                                                           \
    "{\"schema\":1,\"group\":" group ",\"coordinator\":" coordinator ",\"epoch\":" epoch "}"

static mr_member *member_of(const char *text) {
    mr_member *m;
    mr_err err = {{0}};
    if (mr_member_parse(&m, text, strlen(text), "it", &err) != MR_OK) fail_msg("%s", err.text);
    return m;
}

static mr_map_record *map_of(const char *text) {
    mr_map_record *m;
    mr_err err = {{0}};
    if (mr_map_record_parse(&m, text, strlen(text), "it", &err) != MR_OK) fail_msg("%s", err.text);
    return m;
}

/* The text in memory of exactly its size, so that a sanitizer sees a read behind it. */
#define refused(parse, type, text, bytes, why)                                                     \
    do {                                                                                           \
        type *record = (type *)1;                                                                  \
        mr_err why_err = {{0}};                                                                    \
        const size_t size = (bytes);                                                               \
        char *exact = malloc(size ? size : 1);                                                     \
        assert_non_null(exact);                                                                    \
        memcpy(exact, text, size);                                                                 \
        if (parse(&record, exact, size, "members/x", &why_err) == MR_OK)                           \
            fail_msg("took %.300s", text);                                                         \
        free(exact);                                                                               \
        assert_null(record);                                                                       \
        assert_sentence(why_err, "members/x");                                                     \
        assert_sentence(why_err, why);                                                             \
    } while (0)
#define no_member(text, why) refused(mr_member_parse, mr_member, text, strlen(text), why)
#define no_map(text, why) refused(mr_map_record_parse, mr_map_record, text, strlen(text), why)
#define no_model(text, why) refused(mr_model_record_parse, mr_model_record, text, strlen(text), why)
#define no_owner(text, why) refused(mr_owner_record_parse, mr_owner_record, text, strlen(text), why)

static void test_member_round_trip(void **state) {
    (void)state;
    mr_err err = {{0}};
    mr_member *m = member_of(SHARD(
        ",\"ucx\":\"[fd01::1]:7101\",\"control\":\"h0.rack:7002\",\"zone\":\"z1\",\"set\":\"a\","
        "\"verbs\":true,\"holdings\":[{\"digest\":\"" D1 "\",\"grid\":[2,8],"
        "\"cells\":[0,[2,5],7,[14,15]],\"bytes\":77}]"));
    assert_int_equal(m->role, MR_ROLE_MEMSHARD);
    assert_int_equal(m->state, MR_MEMBER_READY);
    assert_string_equal(m->ucx, "[fd01::1]:7101");
    assert_string_equal(m->numeric_class, "");
    assert_null(m->http);
    assert_true(m->has_verbs && m->is_listed);
    assert_int_equal(m->holding_count, 1);
    assert_int_equal(m->holdings[0].cell_count, 8);
    assert_true(mr_member_holds(m, &m->holdings[0].digest, 4));
    assert_true(mr_member_holds(m, &m->holdings[0].digest, 15));
    assert_false(mr_member_holds(m, &m->holdings[0].digest, 6));
    assert_false(mr_member_holds(m, &m->holdings[0].digest, 16));
    char *text = mr_member_dump(m);
    assert_non_null(text);
    mr_member *back = member_of(text), *copy;
    char *again = mr_member_dump(back);
    assert_string_equal(text, again);
    m->is_listed = false;
    assert_int_equal(mr_member_copy(&copy, m, &err), MR_OK);
    assert_false(copy->is_listed);
    mr_member_free(copy);
    m->incarnation = 1ull << 63;
    assert_null(mr_member_dump(m));
    m->incarnation = 1;
    char *const id = m->id;
    m->id = (char *)(uintptr_t) "no id"; /* made by hand, and wrong */
    assert_int_equal(mr_member_copy(&copy, m, &err), MR_ERR_FORMAT);
    m->id = id;
    free(text);
    free(again);
    mr_member_free(back);
    mr_member_free(m);
}

static void test_worker_round_trip(void **state) {
    (void)state;
    mr_member *m = member_of(
        "{\"schema\":1,\"role\":\"worker\",\"id\":\"w.0_a-B\",\"state\":\"draining\",\"address\":"
        "\"unix:/tmp/w\",\"machine\":\"k\",\"host\":\"h\",\"capacity_bytes\":0,\"incarnation\":"
        "9223372036854775807,\"wire\":[2,2],\"map_epoch\":12,\"numeric_class\":\"avx512-bf16\","
        "\"stages\":[{\"digest\":\"" D1 "\",\"group\":\"g0\",\"stage\":1,\"stages\":2,"
        "\"blocks\":[8,8]}]}");
    assert_int_equal(m->stages[0].stage, 1);
    assert_int_equal(m->stages[0].block_first, 8);
    assert_int_equal(m->incarnation, INT64_MAX);
    char *text = mr_member_dump(m);
    mr_member *back = member_of(text);
    assert_string_equal(back->stages[0].group, "g0");
    assert_string_equal(back->numeric_class, "avx512-bf16");
    mr_member_free(back);
    mr_member_free(m);
    free(text);
}

static void test_members_refused(void **state) {
    (void)state;
    no_member("", "JSON");
    no_member("[]", "an array");
    no_member("{}", "'schema'");
    no_member("{\"schema\":0}", "schema");
    no_member("{\"schema\":\"1\"}", "schema");
    no_member(SHARD("") "x", "JSON");
    no_member(SHARD(",\"id\":\"m1\""), "JSON"); /* a key twice */
    no_member(SHARD(",\"weight\":1"), "unknown key 'weight'");
    no_member(SHARD(",\"http\":\"a:1\""), "coordinators");
    no_member(SHARD(",\"verbs\":1"), "verbs");
    no_member(SHARD(",\"zone\":\"a b\""), "zone");
    no_member(SHARD(",\"zone\":\"a\\u0000b\""), "NUL");
    no_member(SHARD(",\"set\":7"), "set");
    no_member(SHARD(",\"stages\":[{}]"), "workers");
    no_member(SHARD(",\"holdings\":{}"), "'holdings'");
    no_member(SHARD(",\"holdings\":[1]"), "holding 0");
#define HOLDING(grid, cells)                                                                       \
    SHARD(",\"holdings\":[{\"digest\":\"" D1 "\",\"grid\":" grid ",\"cells\":" cells               \
          ",\"bytes\":1}]")
    no_member(HOLDING("[0,4]", "[0]"), "grid");
    no_member(HOLDING("[65536,65536]", "[0]"), "grid");
    no_member(HOLDING("[9223372036854775807,2]", "[0]"), "grid");
    no_member(HOLDING("[2]", "[0]"), "'grid'");
    no_member(HOLDING("[2,2]", "[]"), "'cells'");
    no_member(HOLDING("[2,2]", "[4]"), "below 4");
    no_member(HOLDING("[2,2]", "[-1]"), "below 4");
    no_member(HOLDING("[2,2]", "[1,1]"), "ascending");
    no_member(HOLDING("[2,2]", "[[2,1]]"), "ascending");
    no_member(HOLDING("[2,2]", "[[0,2],[2,3]]"), "ascending");
    no_member(HOLDING("[2,2]", "[[0,1,2]]"), "run");
    no_member(HOLDING("[2,2]", "[0.5]"), "integer");
    no_member(SHARD(",\"state\":\"gone\""), "JSON");
    const char *const swaps[][3] = {
        {"\"state\":\"ready\"", "\"state\":\"gone\"", "state 'gone'"},
        {"\"role\":\"memshard\"", "\"role\":\"client\"", "role 'client'"},
        {"\"role\":\"memshard\"", "\"role\":4", "role"},
        {"\"id\":\"m0\"", "\"id\":\"\"", "id"},
        {"\"id\":\"m0\"", "\"id\":\"../m0\"", "id"},
        {"\"id\":\"m0\"", "\"id\":\"..\"", "id"},
        {"\"id\":\"m0\"", "\"id\":null", "'id'"},
        {"\"id\":\"m0\"", "\"id\":\"a\\\"b\"", "id"},
        {"\"host\":\"h0\"", "\"host\":\"\"", "'host'"},
        {"\"wire\":[1,2]", "\"wire\":[2,1]", "'wire'"},
        {"\"wire\":[1,2]", "\"wire\":[0,2]", "'wire'"},
        {"\"wire\":[1,2]", "\"wire\":[1,70000]", "'wire'"},
        {"\"capacity_bytes\":1000", "\"capacity_bytes\":-1", "capacity_bytes"},
        {"\"capacity_bytes\":1000", "\"capacity_bytes\":1e3", "capacity_bytes"},
        {"\"capacity_bytes\":1000", "\"capacity_bytes\":99999999999999999999", "JSON"},
        {"\"schema\":1,", "", "'schema'"},
    };
    for (size_t i = 0; i < sizeof(swaps) / sizeof(*swaps); i++) {
        char text[1024];
        const char *from = SHARD(""), *at = strstr(from, swaps[i][0]);
        assert_non_null(at);
        snprintf(text, sizeof(text), "%.*s%s%s", (int)(at - from), from, swaps[i][1],
                 at + strlen(swaps[i][0]));
        no_member(text, swaps[i][2]);
    }
}

static void test_sizes_are_bounded(void **state) {
    (void)state;
    const size_t bytes = MR_MAX_RECORD_BYTES + 1u;
    char *text = malloc(bytes);
    assert_non_null(text);
    memset(text, ' ', bytes);
    refused(mr_member_parse, mr_member, text, bytes, "at most");
    refused(mr_member_parse, mr_member, text, bytes - 1, "JSON");
    memset(text, '[', bytes);
    refused(mr_member_parse, mr_member, text, bytes - 1, "deeper");
    memset(text, 0, bytes);
    refused(mr_map_record_parse, mr_map_record, text, bytes - 1, "JSON");
    free(text);
}

static void test_newer_schema(void **state) {
    (void)state;
    char text[1024];
    const char *from = SHARD(",\"colour\":[1],\"holdings\":[{\"digest\":\"" D1 "\",\"grid\":[1,1],"
                             "\"cells\":[0],\"bytes\":1,\"tier\":\"nvme\"}]");
    no_member(from, "unknown key 'colour'");
    snprintf(text, sizeof(text), "{\"schema\":2%s", from + strlen("{\"schema\":1"));
    mr_member *m = member_of(text);
    assert_int_equal(m->holding_count, 1);
    mr_member_free(m);
    no_member("{\"schema\":2}", "role"); /* what we need must still be there */
}

static void test_addresses(void **state) {
    (void)state;
    static const char *const good[] = {"127.0.0.1:1",  "[::1]:65535",   "host-1.rack_2:7001",
                                       "10.0.0.1:700", "[fd01::2]:700", "[fd01::2%eth0]:7"};
    static const char *const bad[] = {"0.0.0.0:7001",
                                      "0:7001",
                                      "0x0.0:7001",
                                      "[::]:7001",
                                      "127.0.0.1:0",
                                      "h:70000",
                                      "h:",
                                      "h",
                                      ":7001",
                                      "h:-1",
                                      "h:+1",
                                      "169.254.169.254:80",
                                      "0xa9fea9fe:80",
                                      "2852039166:80",
                                      "169.254.43518:80",
                                      "[::ffff:169.254.169.254]:80",
                                      "[fe80::1]:80",
                                      "[ff02::1]:80",
                                      "[fd00:ec2::254]:80",
                                      "224.0.0.1:80",
                                      "255.255.255.255:80",
                                      "a b:80",
                                      "a/b:80",
                                      "user@h:80",
                                      "[h]:80x",
                                      "[zz::1]:80",
                                      "::1:80",
                                      "h\n:80",
                                      "unix:",
                                      "[::ffff:0:0]:80"};
    mr_err err;
    for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++)
        if (mr_peer_address_check(good[i], false, &err) != MR_OK) fail_msg("%s", err.text);
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        err.text[0] = '\0';
        if (mr_peer_address_check(bad[i], true, &err) == MR_OK) fail_msg("took %s", bad[i]);
        assert_sentence(err, "address '");
    }
    assert_int_equal(mr_peer_address_check("unix:/tmp/x", true, &err), MR_OK);
    assert_int_equal(mr_peer_address_check("unix:/tmp/x", false, &err), MR_ERR_FORMAT);
    char *huge = malloc(10241);
    assert_non_null(huge);
    memset(huge, 'h', 10240);
    strcpy(huge + 10236, ":80");
    assert_int_equal(mr_peer_address_check(huge, true, &err), MR_ERR_FORMAT);
    free(huge);
}

static void test_maps(void **state) {
    (void)state;
    mr_map_record *m = map_of(MAP("[2,2]", "[\"b\",\"a\",\"c\"]", "[[0,1],[1],[2,0],[0]]"));
    assert_int_equal(m->replica_first[4], 6);
    assert_string_equal(m->replicas[0], "b");
    assert_string_equal(m->replicas[1], "a");
    assert_string_equal(m->replicas[3], "c");
    char *text = mr_map_record_dump(m);
    mr_map_record *back = map_of(text);
    for (uint32_t i = 0; i < 6; i++) assert_string_equal(m->replicas[i], back->replicas[i]);
    free(text);
    mr_map_record_free(back);
    mr_map_record_free(m);
    no_map("", "JSON");
    no_map("{}", "'schema'");
    no_map(MAP("[2,2]", "[\"a\"]", "[[0],[0],[0]]"), "3 cells");
    no_map(MAP("[2,2]", "[\"a\"]", "[[0],[0],[0],[0],[0]]"), "5 cells");
    no_map(MAP("[2,1]", "[\"a\"]", "[[0],[]]"), "cell 1");
    no_map(MAP("[2,1]", "[\"a\"]", "[[0],0]"), "cell 1");
    no_map(MAP("[2,1]", "[\"a\"]", "[[0],[1]]"), "cell 1");
    no_map(MAP("[2,1]", "[\"a\"]", "[[0],[-1]]"), "cell 1");
    no_map(MAP("[2,1]", "[\"a\"]", "[[0],[\"a\"]]"), "cell 1");
    no_map(MAP("[2,1]", "[\"a\",\"b\"]", "[[0],[1,0,1]]"), "twice");
    no_map(MAP("[1,1]", "[\"a\",\"a\"]", "[[0]]"), "twice");
    no_map(MAP("[1,1]", "[]", "[[0]]"), "'members'");
    no_map(MAP("[1,1]", "[7]", "[[0]]"), "'members'");
    no_map(MAP("[1,1]", "[\"a/b\"]", "[[0]]"), "member");
    no_map(MAP("[0,1]", "[\"a\"]", "[[0]]"), "grid");
    no_map(MAP("[1000,1000]", "[\"a\"]", "[[0]]"), "grid");
    no_map(MAP("[1,1]", "[\"a\"]", "[[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]]"), "cell 0");
    no_map("{\"schema\":1,\"digest\":\"" D1 "\",\"epoch\":0,\"grid\":[1,1]}", "epoch");
    no_map("{\"schema\":1,\"digest\":\"12\",\"epoch\":1,\"grid\":[1,1]}", "'digest'");
}

static void test_map_make(void **state) {
    (void)state;
    mr_err err = {{0}};
    mr_map_record *m;
    const mr_digest digest = {{1}};
    const uint32_t first[] = {0, 2, 3}, hole[] = {0, 0, 3}, wild[] = {0, 9, 3};
    const char *const replicas[] = {"b", "a", "b"}, *const twice[] = {"b", "b", "a"};
    assert_int_equal(mr_map_record_make(&m, &digest, 4, 2, 1, first, replicas, &err), MR_OK);
    assert_int_equal(m->name_count, 2);
    assert_ptr_equal(m->replicas[0], m->replicas[2]);
    mr_map_record_free(m);
    assert_int_not_equal(mr_map_record_make(&m, &digest, 4, 2, 1, first, twice, &err), MR_OK);
    assert_sentence(err, "twice");
    assert_int_not_equal(mr_map_record_make(&m, &digest, 4, 2, 1, hole, replicas, &err), MR_OK);
    assert_int_not_equal(mr_map_record_make(&m, &digest, 4, 2, 1, wild, replicas, &err), MR_OK);
    assert_int_not_equal(mr_map_record_make(&m, &digest, 0, 2, 1, first, replicas, &err), MR_OK);
    assert_null(m);
}

/* The largest grid with three replicas each still fits in one record. */
static void test_large_map(void **state) {
    (void)state;
    mr_err err = {{0}};
    enum { CELLS = MR_MAX_CELLS, MEMBERS = 64 };
    static char ids[MEMBERS][16];
    uint32_t *first = mr_alloc_array(CELLS + 1, sizeof(*first));
    const char **replicas = mr_alloc_array(CELLS * 3, sizeof(*replicas));
    for (uint32_t i = 0; i < MEMBERS; i++) snprintf(ids[i], sizeof(ids[i]), "memshard-%u", i);
    for (uint32_t i = 0; i < CELLS * 3; i++) replicas[i] = ids[(i * 7 + i / 3) % MEMBERS];
    for (uint32_t c = 0; c <= CELLS; c++) first[c] = c * 3;
    mr_map_record *m;
    const mr_digest digest = {{1}};
    if (mr_map_record_make(&m, &digest, 1, 256, 256, first, replicas, &err) != MR_OK)
        fail_msg("%s", err.text);
    char *text = mr_map_record_dump(m);
    assert_non_null(text);
    mr_map_record *back = map_of(text);
    for (uint32_t i = 0; i < CELLS * 3; i++) assert_string_equal(back->replicas[i], replicas[i]);
    mr_map_record_free(back);
    mr_map_record_free(m);
    free(text);
    free(first);
    free(replicas);
}

static void test_models_and_owners(void **state) {
    (void)state;
    mr_model_record *m, *copy;
    mr_err err = {{0}};
    const char *text = MODEL(VERSION("v1", D1, "/models/a b") "," VERSION("v2", D2, "peer"),
                             ",\"previous\":\"v2\"");
    assert_int_equal(mr_model_record_parse(&m, text, strlen(text), "it", &err), MR_OK);
    assert_int_equal(mr_model_record_copy(&copy, m, &err), MR_OK);
    assert_string_equal(copy->previous, "v2");
    assert_string_equal(copy->versions[0].source, "/models/a b");
    assert_int_equal(copy->versions[1].replicas, 2);
    mr_model_record_free(copy);
    mr_model_record_free(m);
    no_model(MODEL("", ""), "'versions'");
    no_model(MODEL(VERSION("v2", D1, "d"), ""), "'active'");
    no_model(MODEL(VERSION("v1", D1, "d"), ",\"previous\":\"v9\""), "'previous'");
    no_model(MODEL(VERSION("v1", D1, "d") "," VERSION("v2", D1, "d"), ""), "twice");
    no_model(MODEL(VERSION("v1", D1, "d") "," VERSION("v1", D2, "d"), ""), "twice");
    no_model(MODEL(VERSION("v1", D1, ""), ""), "'source'");
    no_model(MODEL(VERSION("v1", D1, "file:///x"), ""), "neither");
    no_model(MODEL(VERSION("v1", D1, "http://169.254.169.254/x"), ""), "link-local");
    no_model(MODEL(VERSION("v1", D1, "https://0/x"), ""), "any host");
    no_model(MODEL(VERSION("v1", D1, "https://u:p@h/x"), ""), "password");
    no_model(MODEL(VERSION("v1", D1, "http://"), ""), "host");
    no_model(MODEL(VERSION("v1", D1, "a\\nb"), ""), "control");
    text =
        MODEL(VERSION("v1", D1, "https://[fd01::1]/x") "," VERSION("v2", D2, "http://h:81/"), "");
    assert_int_equal(mr_model_record_parse(&m, text, strlen(text), "it", &err), MR_OK);
    mr_model_record_free(m);

    mr_owner_record *o;
    text = OWNER("\"g\"", "\"c0\"", "7");
    assert_int_equal(mr_owner_record_parse(&o, text, strlen(text), "it", &err), MR_OK);
    char *back = mr_owner_record_dump(o);
    assert_non_null(strstr(back, "\"epoch\":7"));
    free(back);
    mr_owner_record_free(o);
    no_owner(OWNER("\"g\"", "\"c0\"", "0"), "epoch");
    no_owner(OWNER("\"g\"", "\"c0\"", "9223372036854775808"), "JSON");
    no_owner(OWNER("\"g\"", "null", "1"), "'coordinator'");
    no_owner(OWNER("\"\"", "\"c\"", "1"), "group");
}

static void put_shard(mr_view_builder *b, const char *id) {
    mr_err err = {{0}};
    mr_member *m = member_of(SHARD(""));
    free(m->id);
    m->id = mr_strdup(id);
    assert_int_equal(mr_view_put_member(b, m, &err), MR_OK);
}

static void test_building(void **state) {
    (void)state;
    mr_err err = {{0}};
    static const char *const order[] = {"m5", "m1", "m9", "m3", "m1"};
    mr_view_builder *b = mr_view_builder_open(NULL, "demo");
    for (size_t i = 0; i < 5; i++) put_shard(b, order[i]);
    mr_view_set_leader(b, "c0", 3);
    const mr_view *one = mr_view_publish(b);
    assert_int_equal(one->member_count, 4);
    assert_int_equal(one->number, 1);
    assert_string_equal(one->members[0]->id, "m1");
    assert_string_equal(one->members[3]->id, "m9");
    assert_string_equal(mr_view_member(one, MR_ROLE_MEMSHARD, "m5")->id, "m5");
    assert_null(mr_view_member(one, MR_ROLE_WORKER, "m5"));
    assert_null(mr_view_member(one, MR_ROLE_MEMSHARD, "m4"));
    assert_null(mr_view_model(one, "demo"));

    b = mr_view_builder_open(one, "demo");
    assert_true(mr_view_remove_member(b, MR_ROLE_MEMSHARD, "m3"));
    assert_false(mr_view_remove_member(b, MR_ROLE_MEMSHARD, "m3"));
    assert_true(mr_view_set_listed(b, MR_ROLE_MEMSHARD, "m9", false));
    assert_int_equal(mr_view_put_map(b, map_of(MAP("[1,1]", "[\"m1\"]", "[[0]]")), &err), MR_OK);
    mr_view_set_revision(b, 42);
    const mr_view *two = mr_view_publish(b);
    assert_int_equal(two->number, 2);
    assert_int_equal(two->revision, 42);
    assert_string_equal(two->leader, "c0");
    assert_int_equal(two->member_count, 3);
    assert_false(mr_view_member(two, MR_ROLE_MEMSHARD, "m9")->is_listed);
    assert_true(mr_view_member(one, MR_ROLE_MEMSHARD, "m9")->is_listed);
    assert_ptr_equal(mr_view_member(two, MR_ROLE_MEMSHARD, "m5"),
                     mr_view_member(one, MR_ROLE_MEMSHARD, "m5"));
    assert_non_null(mr_view_map(two, &two->maps[0]->digest));
    assert_null(mr_view_next_map(two, &two->maps[0]->digest));
    mr_view_release(one);
    mr_view_release(mr_view_retain(two));
    assert_string_equal(two->members[0]->id, "m1");
    mr_view_release(two);
    mr_view_release(NULL);
}

static void test_epochs(void **state) {
    (void)state;
    mr_err err = {{0}};
    mr_view_builder *b = mr_view_builder_open(NULL, "demo");
    mr_map_record *map = map_of(MAP("[1,1]", "[\"a\",\"b\"]", "[[0]]"));
    assert_int_equal(mr_view_put_map(b, map, &err), MR_OK);
    assert_int_equal(mr_view_put_map(b, map_of(MAP("[1,1]", "[\"a\"]", "[[0]]")), &err), MR_OK);
    assert_int_equal(mr_view_put_map(b, map_of(MAP("[1,1]", "[\"b\"]", "[[0]]")), &err),
                     MR_ERR_MISMATCH);
    map = map_of(MAP("[1,1]", "[\"b\"]", "[[0]]"));
    map->epoch = 2;
    assert_int_equal(mr_view_put_map(b, map, &err), MR_ERR_STALE);
    assert_sentence(err, "epoch 2 where 3");
    map = map_of(MAP("[1,1]", "[\"b\"]", "[[0]]"));
    assert_int_equal(mr_view_put_next_map(b, map, &err), MR_ERR_STALE);
    map = map_of(MAP("[1,1]", "[\"b\"]", "[[0]]"));
    map->epoch = 4;
    assert_int_equal(mr_view_put_next_map(b, map, &err), MR_OK);
    const mr_view *v = mr_view_publish(b);
    assert_string_equal(v->maps[0]->replicas[0], "a");
    assert_string_equal(mr_view_next_map(v, &v->maps[0]->digest)->replicas[0], "b");
    b = mr_view_builder_open(v, "demo");
    map = map_of(MAP("[1,1]", "[\"b\"]", "[[0]]"));
    map->epoch = 4;
    assert_int_equal(mr_view_put_map(b, map, &err), MR_OK); /* the switch */
    mr_view_release(v);
    mr_owner_record *o;
    static const char *const owners[] = {
        OWNER("\"g\"", "\"c0\"", "2"), OWNER("\"g\"", "\"c1\"", "2"), OWNER("\"g\"", "\"c1\"", "1"),
        OWNER("\"g\"", "\"c1\"", "3")};
    static const mr_status wanted[] = {MR_OK, MR_ERR_MISMATCH, MR_ERR_STALE, MR_OK};
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(mr_owner_record_parse(&o, owners[i], strlen(owners[i]), "o", &err), MR_OK);
        assert_int_equal(mr_view_put_owner(b, o, &err), wanted[i]);
    }
    v = mr_view_publish(b);
    assert_int_equal(v->next_map_count, 0);
    assert_int_equal(v->maps[0]->epoch, 4);
    assert_string_equal(mr_view_owner(v, "g")->coordinator, "c1");
    mr_view_release(v);
}

static void test_too_many(void **state) {
    (void)state;
    mr_err err = {{0}};
    char id[32];
    mr_view_builder *b = mr_view_builder_open(NULL, "demo");
    for (uint32_t i = 0; i < MR_MAX_MEMBERS; i++) {
        snprintf(id, sizeof(id), "m%u", (i * 2654435761u) % MR_MAX_MEMBERS);
        put_shard(b, id);
    }
    assert_int_equal(mr_view_put_member(b, member_of(SHARD("")), &err), MR_OK); /* m0 is there */
    mr_member *m = member_of(SHARD(""));
    free(m->id);
    m->id = mr_strdup("another");
    assert_int_equal(mr_view_put_member(b, m, &err), MR_ERR_LIMIT);
    assert_sentence(err, "member");
    mr_view_builder_close(b);
}

static void *retain_and_release(void *view) {
    for (int i = 0; i < 20000; i++) {
        const mr_view *v = mr_view_retain(view);
        mr_view_builder *b = i % 100 ? NULL : mr_view_builder_open(v, "demo");
        mr_view_builder_close(b);
        mr_view_release(v);
    }
    mr_view_release(view);
    return NULL;
}

static void test_threads(void **state) {
    (void)state;
    mr_view_builder *b = mr_view_builder_open(NULL, "demo");
    put_shard(b, "m1");
    put_shard(b, "m2");
    const mr_view *v = mr_view_publish(b);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, retain_and_release,
                                        (void *)(uintptr_t)mr_view_retain(v)),
                         0);
    mr_view_release(v);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_member_round_trip),
        cmocka_unit_test(test_worker_round_trip),
        cmocka_unit_test(test_members_refused),
        cmocka_unit_test(test_sizes_are_bounded),
        cmocka_unit_test(test_newer_schema),
        cmocka_unit_test(test_addresses),
        cmocka_unit_test(test_maps),
        cmocka_unit_test(test_map_make),
        cmocka_unit_test(test_large_map),
        cmocka_unit_test(test_models_and_owners),
        cmocka_unit_test(test_building),
        cmocka_unit_test(test_epochs),
        cmocka_unit_test(test_too_many),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
