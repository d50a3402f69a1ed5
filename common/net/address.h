/* address.h - "host:port" and "unix:PATH": parsed, looked up before a deadline, connected, bound.
 * A host in brackets may be an IPv6 address: "[::1]:7001". "ucx:host:port" is checked here and
 * belongs to fabric_ucx.c. */
#ifndef MR_NET_ADDRESS_H
#define MR_NET_ADDRESS_H
#include "common/base/status.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

/* What every address of a registry or an option must look like; needs no look-up. */
mr_status mr_address_check(const char *address, mr_err *err);

/* The first socket address of a "host:port". */
mr_status mr_address_resolve(struct sockaddr_storage *out, socklen_t *bytes, const char *address,
                             int64_t deadline_ns, mr_err *err);

/* A connected socket, non-blocking and without Nagle's delay. */
mr_status mr_address_connect(int *out_fd, const char *address, int64_t deadline_ns, mr_err *err);

/* A listening socket, non-blocking; *bound (owned) is the address with the real port. Port 0 takes
 * any free one. A stale Unix socket file nobody listens on is replaced. */
mr_status mr_address_listen(int *out_fd, char **bound, const char *address, int backlog,
                            mr_err *err);

/* The peer of a connected socket, for sentences and logs; owned. */
char *mr_address_of_peer(int fd);

/* Nagle off, and keep-alive so that a peer whose host vanished is noticed within a minute. */
void mr_address_tune(int fd);

#endif
