/* member.h - a memshard as a member of a cluster: takes orders to load and unload cells, says what
 * it holds, and empties itself before it leaves.
 *
 * Threads: open, start and close from the main thread; orders come in threads of the control
 * service. */
#ifndef MR_MEMSHARD_MEMBER_H
#define MR_MEMSHARD_MEMBER_H
#include "common/net/agent.h"
#include "memshard/setup.h"

typedef struct mr_memshard_member mr_memshard_member;

typedef struct {
    const mr_agent_settings *agent; /* borrowed until close */
    mr_setup *setup;                /* borrowed until leave */
    uint64_t capacity_bytes;        /* for tables */
    bool keys;                      /* loads product keys too */
    void (*leave)(void *context);   /* drained and asked to end; from any thread */
    void *context;
} mr_memshard_member_options;

mr_status mr_memshard_member_open(mr_memshard_member **out,
                                  const mr_memshard_member_options *options, mr_err *err);
/* Announces it. address, ucx: where it answers retrieval. */
void mr_memshard_member_start(mr_memshard_member *member, const char *address, const char *ucx);
void mr_memshard_member_changed(mr_memshard_member *member); /* what is held; any thread */
/* The record goes away, and no order comes any more. */
void mr_memshard_member_leave(mr_memshard_member *member);
void mr_memshard_member_close(mr_memshard_member *member); /* NULL is fine */
mr_agent *mr_memshard_member_agent(mr_memshard_member *member);

#endif
