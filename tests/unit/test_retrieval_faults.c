/* test_retrieval_faults.c - replicas that die, stop, dawdle; and a worker that was itself stopped.
 *
 * Goal: no step fails while each cell has a live replica; the one step that notices a dead or
 * stopped replica takes at most 20 ms longer (and ten 99th percentiles for a stopped one), those
 * after it do not; hedges keep to their 5 %; a worker that slept suspects nobody. Method: memshards
 * in child processes; every answer is compared with the right one. A time that a busy machine may
 * spoil is taken from the best of a few tries. */
#include "tests/unit/retrieval_test.h"

enum { WARM = 400, AFTER = 200, TRIES = 4 };

static int by_size(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static int64_t timed(mr_retrieval *r, uint64_t *seed) {
    test_ask a;
    float out[TEST_OUT], expected[TEST_OUT];
    mr_err err = {{0}};
    test_ask_make(&a, 1, false, seed);
    assert_int_equal(test_run(world.truth, &a, expected, &err), MR_OK);
    const int64_t began = mr_now_ns();
    if (test_run(r, &a, out, &err) != MR_OK) fail_msg("%s", err.text);
    const int64_t took = mr_now_ns() - began;
    assert_memory_equal(out, expected, sizeof(out));
    return took;
}

typedef struct {
    int64_t p50, p99;
} speed;

static speed measure(mr_retrieval *r, uint32_t steps, uint64_t *seed) {
    int64_t took[WARM];
    for (uint32_t i = 0; i < steps; i++) took[i] = timed(r, seed);
    qsort(took, steps, sizeof(*took), by_size);
    return (speed){took[steps / 2], took[steps * 99 / 100]};
}

/* The dearest of the steps that follow a signal, and what comes after them. */
static bool try_once(int with, const char *what, int64_t allowed_p99s) {
    test_cluster c;
    uint64_t seed = 21;
    int64_t worst = 0;
    test_cluster_start(&c, (mr_grid){4, 1}, 2, 2);
    mr_retrieval *r = test_open_route(&c.route);
    const speed before = measure(r, WARM, &seed);
    /* the replica of part 0 that is asked more just now */
    const uint64_t asked[2] = {mr_retrieval_peer_look(r, 0).requests,
                               mr_retrieval_peer_look(r, 2).requests};
    measure(r, 40, &seed);
    const uint64_t now[2] = {mr_retrieval_peer_look(r, 0).requests,
                             mr_retrieval_peer_look(r, 2).requests};
    const uint32_t victim = now[0] - asked[0] >= now[1] - asked[1] ? 0 : 2;
    mr_retrieval_take_stats(r);
    test_signal(c.shards[victim].pid, with);
    for (int i = 0; i < 20; i++) {
        const int64_t took = timed(r, &seed);
        if (took > worst) worst = took;
    }
    const speed after = measure(r, AFTER, &seed);
    const mr_retrieval_stats stats = mr_retrieval_take_stats(r);
    const int64_t added = worst - before.p50, later = after.p50 - before.p50;
    printf("%s: p50 %lld us, p99 %lld us; the step that noticed took %lld us more; after it p50 "
           "%+lld us; %u resends, %u hedges\n",
           what, (long long)before.p50 / 1000, (long long)before.p99 / 1000,
           (long long)added / 1000, (long long)later / 1000, stats.resends, stats.hedges);
    assert_int_equal(stats.degraded, 0);
    assert_true(added < 400000000); /* whatever the machine does besides */
    if (with == SIGSTOP) {          /* it comes back when it answers again */
        const uint64_t answers = mr_retrieval_peer_look(r, victim).answers;
        kill(c.shards[victim].pid, SIGCONT);
        const int64_t end = after_ms(5000);
        while (mr_retrieval_peer_look(r, victim).answers <= answers + 3 && mr_now_ns() < end)
            timed(r, &seed);
        assert_true(mr_retrieval_peer_look(r, victim).answers > answers + 3);
    }
    mr_retrieval_close(r);
    test_cluster_end(&c);
    return stats.resends + stats.hedges > 0 && added <= 20000000 + allowed_p99s * before.p99 &&
           later <= 1000000;
}

static void try_often(int with, const char *what, int64_t allowed_p99s) {
    for (int i = 0; i < TRIES; i++)
        if (try_once(with, what, allowed_p99s)) return;
    fail_msg("%s costs a step too much, %d times over", what, TRIES);
}

static void test_a_killed_replica_costs_one_step_little(void **state) {
    (void)state;
    try_often(SIGKILL, "kill -9", 0);
}

static void test_a_stopped_replica_costs_one_step_little(void **state) {
    (void)state;
    try_often(SIGSTOP, "SIGSTOP", 10);
}

/* All answers of one replica come 20 ms late: work moves to the other, and hedges stay few. */
static void test_a_slow_replica_is_avoided(void **state) {
    test_cluster c;
    uint64_t seed = 22;
    (void)state;
    test_cluster_start(&c, (mr_grid){4, 1}, 1, 2);
    mr_retrieval *r = test_open_route(&c.route);
    measure(r, WARM, &seed);
    mr_retrieval_take_stats(r);
    atomic_store(&c.shards[0].control->delay_us, 20000);
    atomic_store(&c.shards[0].control->manner, MANNER_SLOW);
    const speed slow = measure(r, WARM, &seed);
    const mr_retrieval_stats stats = mr_retrieval_take_stats(r);
    printf("slow replica: p50 %lld us, p99 %lld us, %u hedges, %u resends of %llu\n",
           (long long)slow.p50 / 1000, (long long)slow.p99 / 1000, stats.hedges, stats.resends,
           (unsigned long long)stats.requests);
    assert_true(slow.p50 < 15000000);
    assert_true(stats.hedges <= stats.requests / 20 + 10);
    mr_retrieval_close(r);
    test_cluster_end(&c);
}

/* Every third answer of either replica is late: more than hedges may make up for. */
static void test_hedges_keep_to_their_budget(void **state) {
    test_cluster c;
    uint64_t seed = 23;
    (void)state;
    test_cluster_start(&c, (mr_grid){4, 1}, 1, 2);
    mr_retrieval *r = test_open_route(&c.route);
    measure(r, 100, &seed);
    mr_retrieval_take_stats(r);
    for (uint32_t i = 0; i < 2; i++) {
        atomic_store(&c.shards[i].control->delay_us, 2000);
        atomic_store(&c.shards[i].control->every, 3);
        atomic_store(&c.shards[i].control->manner, MANNER_SLOW);
    }
    measure(r, WARM, &seed);
    const mr_retrieval_stats stats = mr_retrieval_take_stats(r);
    printf("late answers: %u hedges of %llu requests\n", stats.hedges,
           (unsigned long long)stats.requests);
    assert_true(stats.hedges > 0);
    assert_true(stats.hedges <= stats.requests / 20 + 10); /* 10: what was saved up before */
    mr_retrieval_close(r);
    test_cluster_end(&c);
}

/* --- the worker itself is stopped ------------------------------------------------------------- */

/* Runs steps until told to end; says how many suspicions and losses there were. */
static void be_a_worker(const test_cluster *c, test_control *control, int tell) {
    uint64_t seed = 24;
    uint32_t found[2] = {0, 0};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    mr_retrieval *r = test_open_route(&c->route);
    while (atomic_load(&control->manner) == 0) {
        timed(r, &seed);
        if (atomic_load(&control->requests) == 60) mr_retrieval_take_stats(r); /* it is warm */
        atomic_fetch_add(&control->requests, 1);
    }
    const mr_retrieval_stats stats = mr_retrieval_take_stats(r);
    found[0] = stats.suspicions;
    found[1] = stats.losses;
    const ssize_t put = write(tell, found, sizeof(found));
    mr_retrieval_close(r);
    _exit(put == sizeof(found) ? 0 : 1);
}

static void stop_the_worker(bool shards_too) {
    test_cluster c;
    int tell[2], status;
    uint32_t found[2] = {9, 9};
    test_control *control =
        mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(control != MAP_FAILED);
    test_cluster_start(&c, (mr_grid){2, 1}, 1, 2);
    /* Answers take long enough for the stop to come while some are owed, and for what is suspect
     * (40 to 125 ms) to be more than a busy machine does by itself and less than the stop. */
    for (uint32_t i = 0; i < 2; i++) {
        atomic_store(&c.shards[i].control->delay_us, 4000);
        atomic_store(&c.shards[i].control->manner, MANNER_SLOW);
    }
    assert_int_equal(pipe(tell), 0);
    const pid_t worker = fork();
    assert_true(worker >= 0);
    if (worker == 0) be_a_worker(&c, control, tell[1]);
    close(tell[1]);
    for (int64_t end = after_ms(5000); atomic_load(&control->requests) < 100;) {
        assert_true(mr_now_ns() < end);
        test_sleep_us(1000);
    }
    for (int i = 0; i < 5; i++) {
        test_signal(worker, SIGSTOP);
        for (uint32_t s = 0; shards_too && s < 2; s++) test_signal(c.shards[s].pid, SIGSTOP);
        test_sleep_us(400000);
        kill(worker, SIGCONT);
        if (shards_too) test_sleep_us(5000); /* it looks before they could answer */
        for (uint32_t s = 0; shards_too && s < 2; s++) kill(c.shards[s].pid, SIGCONT);
        test_sleep_us(50000);
    }
    const unsigned steps = atomic_load(&control->requests);
    test_sleep_us(200000);
    assert_true(atomic_load(&control->requests) > steps); /* it goes on */
    atomic_store(&control->manner, 1);
    assert_int_equal(read(tell[0], found, sizeof(found)), sizeof(found));
    assert_int_equal(waitpid(worker, &status, 0), worker);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_equal(found[0], 0);
    assert_int_equal(found[1], 0);
    close(tell[0]);
    munmap(control, sizeof(*control));
    test_cluster_end(&c);
}

static void test_a_worker_that_slept_suspects_nobody(void **state) {
    (void)state;
    stop_the_worker(false);
}

static void test_a_machine_that_slept_suspects_nobody(void **state) {
    (void)state;
    stop_the_worker(true);
}

/* --- everybody is gone ------------------------------------------------------------------------ */

static void test_all_replicas_stopped_is_said_in_time(void **state) {
    test_cluster c;
    uint64_t seed = 25;
    test_ask a;
    float out[TEST_OUT];
    mr_err err;
    (void)state;
    test_cluster_start(&c, (mr_grid){1, 1}, 1, 2);
    mr_retrieval *r = test_open_route(&c.route);
    test_warm(r, 40, &seed);
    for (uint32_t i = 0; i < 2; i++) test_signal(c.shards[i].pid, SIGSTOP);
    test_ask_make(&a, 0, false, &seed);
    int64_t began = mr_now_ns();
    mr_status status = test_run(r, &a, out, &err);
    assert_true(status == MR_ERR_TIMEOUT || status == MR_ERR_UNAVAILABLE);
    assert_true(mr_now_ns() - began < 2500000000);
    assert_sentence(err, "shard-");
    mr_retrieval_start_step(r, &(mr_retrieval_step){.may_degrade = true});
    began = mr_now_ns();
    if (test_run(r, &a, out, &err) != MR_OK) fail_msg("%s", err.text);
    assert_true(mr_now_ns() - began < 1000000000);
    for (int i = 0; i < TEST_OUT; i++) assert_true(out[i] == 0);
    for (uint32_t i = 0; i < 2; i++) kill(c.shards[i].pid, SIGCONT);
    mr_retrieval_start_step(r, &(mr_retrieval_step){0});
    status = MR_ERR_TIMEOUT;
    for (const int64_t end = after_ms(5000); status != MR_OK && mr_now_ns() < end;
         test_sleep_us(5000))
        status = test_run(r, &a, out, &err);
    if (status != MR_OK) fail_msg("%s", err.text);
    test_warm(r, 20, &seed);
    mr_retrieval_close(r);
    test_cluster_end(&c);
}

/* One after the other, with a pause in which it is found again. */
static void test_a_rolling_restart_fails_no_step(void **state) {
    test_cluster c;
    uint64_t seed = 26;
    (void)state;
    test_cluster_start(&c, (mr_grid){2, 1}, 1, 2);
    mr_retrieval *r = test_open_route(&c.route);
    for (uint32_t round = 0; round < 4; round++) {
        test_shard *s = &c.shards[round % 2];
        char address[128];
        test_warm(r, 20, &seed);
        kill(s->pid, SIGKILL);
        waitpid(s->pid, NULL, 0);
        test_warm(r, 20, &seed);
        memcpy(address, s->address, sizeof(address));
        test_shard_start(s, c.grid, 0, 1, address);
        const uint32_t index = round % 2;
        const int64_t end = after_ms(5000);
        const uint64_t answers = mr_retrieval_peer_look(r, index).answers;
        while (mr_retrieval_peer_look(r, index).answers == answers && mr_now_ns() < end)
            test_warm(r, 2, &seed);
        assert_true(mr_retrieval_peer_look(r, index).answers > answers);
    }
    mr_retrieval_close(r);
    test_cluster_end(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_killed_replica_costs_one_step_little),
        cmocka_unit_test(test_a_stopped_replica_costs_one_step_little),
        cmocka_unit_test(test_a_slow_replica_is_avoided),
        cmocka_unit_test(test_hedges_keep_to_their_budget),
        cmocka_unit_test(test_a_worker_that_slept_suspects_nobody),
        cmocka_unit_test(test_a_machine_that_slept_suspects_nobody),
        cmocka_unit_test(test_all_replicas_stopped_is_said_in_time),
        cmocka_unit_test(test_a_rolling_restart_fails_no_step)};
    return cmocka_run_group_tests_name("retrieval and faults", tests, make_world, end_world);
}
