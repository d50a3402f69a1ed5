/* fuzz_control.c - any bytes as messages of the control service: one that keeps every limit, or a
 * sentence.
 *
 * The first byte chooses the message. */
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/net/control_impl.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

#ifdef MR_TEST_HAVE_CONTROL
static void check_load(const uint8_t *data, size_t bytes) {
    mr_message m;
    mr_control_load_order o;
    mr_err err = {{0}};
    if (mr_unpack_load(&m, &o, data, bytes, &err) == MR_OK) {
        for (uint32_t i = 0; i < o.cell_count; i++)
            assert(o.cells[i] < o.grid_rows * o.grid_columns);
        assert((o.cell_count > 0) != (o.group[0] != '\0') && o.peer_count <= MR_CONTROL_PEERS);
        assert(!o.group[0] || o.stage < o.stages);
    } else
        assert(err.text[0]);
    mr_message_free(&m);
}

static void check_generation(const uint8_t *data, size_t bytes) {
    mr_message m;
    mr_generation g;
    mr_err err = {{0}};
    if (mr_unpack_generation(&m, &g, data, bytes, &err) == MR_OK) {
        uint64_t total = 0;
        for (uint32_t i = 0; i < g.prompt_count; i++) total += g.prompt_tokens[i];
        assert(total == g.token_count && total > 0);
        assert(g.prompt_count * g.choices <= MR_MAX_REQUEST_SEQUENCES && g.choices > 0);
        for (size_t i = 0; i < g.token_count; i++) assert(g.tokens[i] >= 0);
        assert(g.temperature >= 0 && g.top_p >= 0 && g.min_p <= 1);
        const mr_packed again = mr_pack_generation(&g); /* reads all that is pointed to */
        free(again.data);
    } else
        assert(err.text[0]);
    mr_message_free(&m);
}

static void check_event(const uint8_t *data, size_t bytes) {
    mr_generation_event e;
    mr_err err = {{0}};
    if (mr_unpack_event(&e, 4, data, bytes, &err) != MR_OK) {
        assert(err.text[0]);
        return;
    }
    assert(e.top_count <= MR_CONTROL_LOGPROBS && !isnan(e.logprob));
    assert(e.is_end || (e.answer < 4 && e.token >= -1));
}

static void check_status(const uint8_t *data, size_t bytes) {
    static mr_control_status s;
    mr_member *member;
    mr_err err = {{0}};
    if (mr_unpack_status(&s, &member, data, bytes, &err) == MR_OK) {
        assert(s.counter_count <= MR_CONTROL_COUNTERS && isfinite(s.requests_per_s) && member);
        mr_member_free(member);
    } else
        assert(err.text[0] && !member);
}

static void check_small(char kind, const uint8_t *data, size_t bytes) {
    mr_message m = {0};
    mr_err err;
    mr_control_unload_order unload;
    mr_drain_order drain;
    mr_control_key key;
    mr_role role;
    const char *a, *b;
    uint64_t epoch;
    char what[MR_CONTROL_TEXT_BYTES];
    double fraction;
    bool is_ready;
    mr_member *member = NULL;
    if (kind == 'j') mr_unpack_join(&m, &a, &b, &epoch, data, bytes, &err);
    if (kind == 'r') mr_unpack_join_reply(&member, data, bytes, &err);
    if (kind == 'u') mr_unpack_unload(&m, &unload, data, bytes, &err);
    if (kind == 'd') mr_unpack_drain(&drain, data, bytes, &err);
    if (kind == 'k') mr_unpack_key(&key, data, bytes, &err);
    if (kind == 'q') mr_unpack_key_request(&m, &role, &a, data, bytes, &err);
    if (kind == 'p' && mr_unpack_progress(what, &fraction, &is_ready, data, bytes, &err) == MR_OK)
        assert(fraction >= 0 && fraction <= 1 && strlen(what) < sizeof(what));
    mr_message_free(&m);
    mr_member_free(member);
}
#endif

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    mr_log_setup("fuzz", MR_LOG_ERROR, 1);
    if (bytes == 0) return 0;
#ifdef MR_TEST_HAVE_CONTROL
    const char kind = (char)data[0];
    if (kind == 'l')
        check_load(data + 1, bytes - 1);
    else if (kind == 'g')
        check_generation(data + 1, bytes - 1);
    else if (kind == 'e')
        check_event(data + 1, bytes - 1);
    else if (kind == 's')
        check_status(data + 1, bytes - 1);
    else
        check_small(kind, data + 1, bytes - 1);
#endif
    return 0;
}
