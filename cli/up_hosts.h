/* up_hosts.h - `memrack up MODEL --hosts FILE`: a cluster over machines, without Kubernetes.
 *
 * The file has one process a line: HOST ROLE [KEY=VALUE ..], '#' begins a comment.
 *
 *   node1  etcd
 *   node1  memshard     set=a zone=rack1 capacity=400GiB
 *   node2  memshard     set=b zone=rack2
 *   node3  worker       group=g0 stage=0/2 threads=16
 *   node4  worker       group=g0 stage=1/2
 *   node3  coordinator  port=8080
 *
 * By default the commands are printed, host by host, for the operator to run as a service of each
 * machine. With --run each is started over ssh (or what --ssh names) in the background of its host,
 * its log in /tmp/memrack-ID.log there.
 * Threads: one. */
#ifndef MR_CLI_UP_HOSTS_H
#define MR_CLI_UP_HOSTS_H
#include "cli/up.h"

mr_status mr_up_hosts(const mr_up_settings *settings, mr_err *err);

#endif
