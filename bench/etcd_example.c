/* etcd_example.c - the example of docs/LIBETCD.md: a service registers itself with a lease, watches
 * the others, takes part in an election and leaves. Usage: bench_etcd_example HOST:PORT,... */
#ifdef MR_HAVE_ETCD
#include "common/base/clock.h"
#include "common/net/etcd/etcd.h"

#include <stdio.h>
#include <unistd.h>

static int64_t within_ms(int64_t ms) {
    return mr_now_ns() + ms * 1000000;
}

static void listed(void *context, const etcd_list *list) {
    (void)context;
    for (size_t i = 0; i < list->count; i++) printf("there: %s\n", list->kvs[i].key);
}

static void changed(void *context, const etcd_event *events, size_t count, int64_t revision) {
    (void)context, (void)revision;
    for (size_t i = 0; i < count; i++)
        printf("%s: %s\n", events[i].is_delete ? "left" : "came", events[i].kv.key);
}

int main(int argc, char **argv) {
    const etcd_options options = {.endpoints = argc > 1 ? argv[1] : "127.0.0.1:2379"};
    const etcd_watch_options members = {.key = etcd_text("/example/members/"),
                                        .is_prefix = true,
                                        .listed = listed,
                                        .changed = changed};
    etcd_client *client = NULL;
    etcd_watch *watch = NULL;
    etcd_lease *lease = NULL;
    uint64_t token;
    char key[64];
    mr_err err;

    snprintf(key, sizeof(key), "/example/members/%d", (int)getpid());
    mr_status status = etcd_open(&client, &options, &err);
    if (status == MR_OK) status = etcd_watch_open(&watch, client, &members, &err);
    if (status == MR_OK)
        status = etcd_lease_open(&lease, client, 10, NULL, NULL, within_ms(3000), &err);
    if (status == MR_OK)
        status = etcd_put(client, etcd_text(key), etcd_text("ready"), etcd_lease_id(lease),
                          within_ms(3000), NULL, &err);
    if (status == MR_OK)
        status = etcd_campaign(client, "/example/leader", etcd_text(key), etcd_lease_id(lease), 0,
                               within_ms(3000), &token, &err);
    if (status == MR_OK)
        printf("leading with token %llu\n", (unsigned long long)token);
    else
        fprintf(stderr, "%s\n", err.text);
    etcd_lease_close(lease, within_ms(1000)); /* takes the key and the leadership away */
    etcd_watch_close(watch);
    etcd_close(client);
    return status == MR_OK ? 0 : 1;
}

#else
#include <stdio.h>
int main(void) {
    fputs("built without gRPC or protobuf-c: no libetcd\n", stderr);
    return 1;
}
#endif
