/* retrieval_peers.c - the links of a retrieval: routes, connecting, losing, reading, silence.
 *
 * Silence is witnessed: the time between two polls counts only up to a quarter of what is suspect,
 * because a longer pause may be our own (stopped, swapped, descheduled), and what came meanwhile
 * lies in the socket and is read first. */
#include "worker/retrieval_impl.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/net/frames.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MS = 1000000,
    CONNECT_PATIENCE_MS = 250,
    CONNECT_PATIENCE_MORE_MS = 2000, /* devices are opened first, or a key is fetched */
    CONNECT_PAUSE_MS = 50,           /* doubles with every failure */
    CONNECT_DOUBLINGS = 6,
    IDLE_LOOK_MS = 20, /* a link that owes nothing is looked at so often: it may have ended */
    BLIND_NS = 100000, /* a pause that blurs when an answer came */
    IDLE_STEP_MS = 50, /* the most of one pause that counts as waiting */
};

const char *mr_peer_name(const mr_peer *peer, char text[MR_ERR_TEXT_BYTES]) {
    snprintf(text, MR_ERR_TEXT_BYTES, "memshard %.64s%s%.256s", peer->where.id,
             peer->where.address ? " at " : "", peer->where.address ? peer->where.address : "");
    return text;
}

double mr_retrieval_chance(mr_retrieval *r) {
    r->random ^= r->random << 13;
    r->random ^= r->random >> 7;
    r->random ^= r->random << 17;
    return (double)(r->random >> 11) * 0x1p-53;
}

/* --- routes ----------------------------------------------------------------------------------- */

static bool is_same_text(const char *a, const char *b) {
    return a && b ? strcmp(a, b) == 0 : a == b;
}

/* The peer of this id and address, kept or new. */
static mr_peer *peer_for(mr_retrieval *r, const mr_route_peer *where) {
    for (uint32_t i = 0; i < r->peer_count; i++) {
        mr_peer *p = r->peers[i];
        if (!is_same_text(p->where.id, where->id) ||
            !is_same_text(p->where.address, where->address) ||
            !is_same_text(p->where.ucx, where->ucx))
            continue;
        p->is_leaving = false;
        return p;
    }
    if (r->peer_count == r->peer_room) {
        r->peer_room = r->peer_room ? 2 * r->peer_room : 16;
        r->peers = mr_realloc_array(r->peers, r->peer_room, sizeof(mr_peer *));
        r->wait_set = mr_realloc_array(r->wait_set, r->peer_room, sizeof(mr_link *));
    }
    mr_peer *p = mr_peer_new(where);
    p->number = ++r->last_number;
    p->version = MR_WIRE_VERSION;
    r->peers[r->peer_count++] = p;
    return p;
}

static mr_status check_route(const mr_retrieval *r, const mr_route *route, mr_err *err) {
    const uint32_t cells = mr_route_cells(route);
    if (cells == 0 || cells > MR_MAX_CELLS)
        return mr_fail(err, MR_ERR_RANGE, "a route of grid %ux%u", route->grid.row_groups,
                       route->grid.width_slices);
    if (r->replica_first && (route->grid.row_groups != r->grid.row_groups ||
                             route->grid.width_slices != r->grid.width_slices))
        return mr_fail(err, MR_ERR_MISMATCH, "a route of grid %ux%u where %ux%u is in use",
                       route->grid.row_groups, route->grid.width_slices, r->grid.row_groups,
                       r->grid.width_slices);
    if (r->replica_first && memcmp(&route->digest, &r->digest, sizeof(r->digest)) != 0)
        return mr_fail(err, MR_ERR_MISMATCH, "a route for another model");
    for (uint32_t c = 0; c < cells; c++)
        if (route->replica_first[c + 1] - route->replica_first[c] > MR_MAX_REPLICAS)
            return mr_fail(err, MR_ERR_LIMIT, "cell %u has %u replicas; at most %d", c,
                           route->replica_first[c + 1] - route->replica_first[c], MR_MAX_REPLICAS);
    return MR_OK;
}

mr_status mr_peers_take_route(mr_retrieval *r, const mr_route *route, mr_link **links,
                              mr_err *err) {
    const uint32_t cells = mr_route_cells(route);
    const mr_status status = check_route(r, route, err);
    if (status != MR_OK) return status;
    mr_peer **by_index = mr_alloc_array(route->peer_count, sizeof(*by_index));
    for (uint32_t i = 0; i < r->peer_count; i++) r->peers[i]->is_leaving = true;
    for (uint32_t i = 0; i < route->peer_count; i++) {
        by_index[i] = peer_for(r, &route->peers[i]);
        if (!links || !links[i]) continue;
        by_index[i]->link = links[i];
        if (mr_link_fd(links[i]) >= 0) by_index[i]->version = mr_link_version(links[i]);
    }
    r->has_leaving = false;
    for (uint32_t i = 0; i < r->peer_count; i++) r->has_leaving |= r->peers[i]->is_leaving;
    free(r->replica_first);
    free(r->replicas);
    r->replica_first = mr_alloc_array(cells + 1ull, sizeof(uint32_t));
    memcpy(r->replica_first, route->replica_first, (cells + 1ull) * sizeof(uint32_t));
    r->replicas = mr_alloc_array(route->replica_first[cells] + 1ull, sizeof(mr_peer *));
    for (uint32_t i = 0; i < route->replica_first[cells]; i++)
        r->replicas[i] = by_index[route->replicas[i]];
    free(by_index);
    r->grid = route->grid;
    r->digest = route->digest;
    r->epoch = route->epoch;
    for (uint32_t i = 0; i < r->ask_count; i++) r->asks[i].tried = r->asks[i].refused = 0;
    r->needs_rescue = true;
    return MR_OK;
}

void mr_peers_sweep(mr_retrieval *r) {
    if (!r->has_leaving) return;
    uint32_t kept = 0;
    mr_peers_count_bytes(r);
    for (uint32_t i = 0; i < r->peer_count; i++) {
        if (r->peers[i]->is_leaving)
            mr_peer_free(r->peers[i]);
        else
            r->peers[kept++] = r->peers[i];
    }
    r->peer_count = kept;
    r->has_leaving = false;
}

/* --- connecting ------------------------------------------------------------------------------- */

static void ask_connector(mr_retrieval *r, mr_peer *p, int64_t now) {
    if (p->link || p->is_connecting || p->is_leaving || !p->where.address) return;
    const bool is_slow = p->where.ucx || p->where.control;
    const int64_t patience_ms = is_slow ? CONNECT_PATIENCE_MORE_MS : CONNECT_PATIENCE_MS;
    p->is_connecting = true;
    p->last_try_ns = now;
    mr_connector_ask(r->connector, p->number, &p->where, r->grid, patience_ms * MS);
}

void mr_peers_reconnect(mr_retrieval *r, int64_t now) {
    for (uint32_t i = 0; i < r->peer_count; i++)
        if (!r->peers[i]->link && now >= r->peers[i]->next_try_ns)
            ask_connector(r, r->peers[i], now);
}

/* A step has nobody else to ask: the pauses between tries are cut short. */
void mr_peer_reconnect_now(mr_retrieval *r, mr_peer *p, int64_t now) {
    if (p->last_try_ns == 0 || now - p->last_try_ns >= CONNECT_PAUSE_MS * (int64_t)MS)
        ask_connector(r, p, now);
}

static void pause_connecting(mr_retrieval *r, mr_peer *p) {
    const uint32_t doublings =
        p->connect_failures < CONNECT_DOUBLINGS ? p->connect_failures : CONNECT_DOUBLINGS;
    const int64_t pause = CONNECT_PAUSE_MS * (int64_t)MS << doublings;
    p->connect_failures++;
    p->next_try_ns =
        mr_now_ns() + pause / 2 + (int64_t)((double)pause / 2 * mr_retrieval_chance(r));
}

static void install(mr_retrieval *r, mr_peer *p, mr_connected *c) {
    char name[MR_ERR_TEXT_BYTES];
    p->is_connecting = false;
    if (c->link && (c->welcome.grid_rows != r->grid.row_groups ||
                    c->welcome.grid_columns != r->grid.width_slices)) {
        c->status = mr_fail(&c->err, MR_ERR_MISMATCH, "it has grid %ux%u, expected %ux%u",
                            c->welcome.grid_rows, c->welcome.grid_columns, r->grid.row_groups,
                            r->grid.width_slices);
        mr_link_close(c->link);
        c->link = NULL;
    }
    if (!c->link) {
        if (p->connect_failures == 0)
            mr_log_warn("%s cannot be reached: %s", mr_peer_name(p, name), c->err.text);
        p->why = c->err;
        pause_connecting(r, p);
        return;
    }
    if (p->last_try_ns != 0 && (p->failures > 0 || p->connect_failures > 0))
        mr_log_info("%s is back", mr_peer_name(p, name));
    p->link = c->link;
    p->version = c->welcome.version;
    p->connect_failures = 0;
    p->is_suspected = p->has_answered = false;
    p->sent_before = p->received_before = 0;
    p->polled_ns = mr_now_ns();
    r->needs_rescue = true;
}

void mr_peers_collect(mr_retrieval *r) {
    mr_connected c;
    while (mr_connector_take(r->connector, &c)) {
        mr_peer *found = NULL;
        for (uint32_t i = 0; i < r->peer_count; i++)
            if (r->peers[i]->number == c.ticket) found = r->peers[i];
        if (found && !found->link)
            install(r, found, &c);
        else
            mr_link_close(c.link);
    }
}

/* --- losing ----------------------------------------------------------------------------------- */

static void count_bytes(mr_retrieval *r, mr_peer *p) {
    if (!p->link) return;
    const uint64_t sent = mr_link_bytes_sent(p->link), received = mr_link_bytes_received(p->link);
    r->stats.bytes_up += sent - p->sent_before;
    r->stats.bytes_down += received - p->received_before;
    p->sent_before = sent;
    p->received_before = received;
}

void mr_peers_count_bytes(mr_retrieval *r) {
    for (uint32_t i = 0; i < r->peer_count; i++) count_bytes(r, r->peers[i]);
}

void mr_peer_lose(mr_retrieval *r, mr_peer *p, const mr_err *why) {
    char name[MR_ERR_TEXT_BYTES];
    mr_attempt gone;
    if (!p->link) return;
    count_bytes(r, p);
    for (uint32_t i = 0; i < r->ask_count; i++) {
        mr_ask *a = &r->asks[i];
        if (!a->is_open || !mr_ask_withdraw(r, a, p, &gone)) continue;
        if (a->attempt_count == 0) mr_ask_strand(r, a);
    }
    p->why = *why;
    p->ping_ns = p->silent_ns = 0;
    p->rows_expected = 0;
    p->is_suspected = false;
    r->stats.losses++;
    const int64_t now = mr_now_ns();
    mr_peer_failed(p, now, mr_retrieval_chance(r));
    if (!mr_peer_is_remote(p)) return; /* a loop link stays: its other side is this process */
    mr_link_close(p->link);
    p->link = NULL;
    if (p->failures == 1) mr_log_warn("%s is lost: %s", mr_peer_name(p, name), why->text);
    if (p->has_answered) { /* it was well: try at once */
        p->next_try_ns = now;
        p->connect_failures = 0;
        ask_connector(r, p, now);
    } else
        pause_connecting(r, p);
}

/* --- what is owed ----------------------------------------------------------------------------- */

void mr_peer_owes_more(const mr_retrieval *r, mr_peer *p, uint64_t work_bytes, int64_t now) {
    const int64_t suspect = mr_peer_suspect_ns(p, p->outstanding_bytes + work_bytes, r->timeout_ns);
    if (!mr_peer_owes(p)) {
        p->owes_from_ns = now;
        p->silent_ns = 0;
        p->suspect_ns = suspect;
    } else if (suspect > p->suspect_ns)
        p->suspect_ns = suspect;
}

void mr_peer_ping(mr_retrieval *r, mr_peer *p) {
    const int64_t now = mr_now_ns();
    const mr_wire_header ping = {.type = MR_FRAME_PING, .request = MR_REQUEST_PING | p->number};
    if (!p->link || p->ping_ns != 0 || !mr_peer_is_remote(p)) return;
    mr_peer_owes_more(r, p, 0, now);
    p->ping_ns = now;
    mr_link_send(p->link, &ping, NULL, 0);
}

static void suspect(mr_retrieval *r, mr_peer *p, int64_t now) {
    char name[MR_ERR_TEXT_BYTES];
    p->is_suspected = true;
    p->suspected_at_ns = now;
    mr_fail(&p->why, MR_ERR_TIMEOUT, "silent for %lld ms", (long long)(p->silent_ns / MS));
    r->stats.suspicions++;
    r->needs_rescue = true;
    mr_log_warn("%s is suspected: silent for %lld ms", mr_peer_name(p, name),
                (long long)(p->silent_ns / MS));
    mr_peer_failed(p, now, mr_retrieval_chance(r));
    mr_peer_ping(r, p);
}

static void unsuspect(mr_retrieval *r, mr_peer *p) {
    char name[MR_ERR_TEXT_BYTES];
    p->is_suspected = false;
    p->open_until_ns = 0; /* it may prove itself, one request at a time */
    r->needs_rescue = true;
    mr_log_info("%s answers again", mr_peer_name(p, name));
}

static void judge_silence(mr_retrieval *r, int64_t before, int64_t now) {
    for (uint32_t i = 0; i < r->peer_count; i++) {
        mr_peer *p = r->peers[i];
        if (p->is_heard && p->is_suspected) unsuspect(r, p);
        if (p->is_heard || !p->link || !mr_peer_owes(p) || !mr_peer_is_remote(p)) continue;
        const int64_t from = before > p->owes_from_ns ? before : p->owes_from_ns;
        const int64_t most = p->suspect_ns / 4 + 1, gap = now - from;
        if (gap > 0) p->silent_ns += gap < most ? gap : most;
        if (!p->is_suspected && p->silent_ns >= p->suspect_ns)
            suspect(r, p, now);
        else if (p->is_suspected && now - p->suspected_at_ns > r->timeout_ns &&
                 p->silent_ns > r->timeout_ns / 2)
            mr_peer_lose(r, p, &p->why); /* a new connection is the next probe */
    }
}

/* --- reading and writing ---------------------------------------------------------------------- */

static void pump_peer(mr_retrieval *r, mr_peer *p) {
    mr_frame frame;
    mr_err err;
    mr_link *link = p->link;
    mr_status status = mr_link_flush(link, &err);
    if (status == MR_ERR_AGAIN) status = MR_OK;
    while (status == MR_OK && p->link == link) {
        status = mr_link_receive(link, &frame, &err);
        if (status == MR_OK) mr_answer_take(r, p, &frame);
        if (r->failure != MR_OK) return;
    }
    if (p->link != link || status == MR_ERR_AGAIN) return;
    mr_peer_lose(r, p, &err);
}

void mr_peers_pump(mr_retrieval *r, bool is_fresh) {
    const int64_t now = mr_now_ns(), before = r->polled_ns;
    r->was_blind = now - r->seen_ns > BLIND_NS;
    r->polled_ns = now;
    r->answers_taken = 0;
    for (uint32_t i = 0; i < r->peer_count && r->failure == MR_OK; i++) {
        mr_peer *p = r->peers[i];
        p->is_heard = false;
        if (!p->link) continue;
        const bool is_due = mr_peer_owes(p) || p->rows_expected > 0 ||
                            mr_link_wants_write(p->link) ||
                            (is_fresh && now - p->polled_ns > IDLE_LOOK_MS * (int64_t)MS);
        if (!is_due) continue;
        p->polled_ns = now;
        pump_peer(r, p);
    }
    if (r->failure != MR_OK) return;
    judge_silence(r, before, now);
    const int64_t gap = now - before, most = IDLE_STEP_MS * (int64_t)MS;
    if (r->answers_taken > 0 || r->open_count == 0)
        r->idle_ns = 0;
    else
        r->idle_ns += gap < most ? gap : most;
    r->seen_ns = mr_now_ns();
}

void mr_peers_flush(mr_retrieval *r) {
    mr_err err;
    for (uint32_t i = 0; i < r->peer_count; i++) {
        mr_peer *p = r->peers[i];
        if (!p->link || !mr_link_wants_write(p->link)) continue;
        const mr_status status = mr_link_flush(p->link, &err);
        if (status != MR_OK && status != MR_ERR_AGAIN) mr_peer_lose(r, p, &err);
    }
}
