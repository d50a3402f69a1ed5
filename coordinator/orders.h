/* orders.h - a leader's orders to members, carried out side by side: joins, loads and unloads over
 * the control service.
 *
 * Each order has a thread while it is under way; a member gets one at a time for each model. An
 * order that is given again while it is under way, or soon after it failed, is dropped: the
 * controller gives it again for as long as it is needed.
 * Threads: one caller. */
#ifndef MR_COORDINATOR_ORDERS_H
#define MR_COORDINATOR_ORDERS_H
#include "common/net/control.h"

typedef struct mr_orders mr_orders;

mr_orders *mr_orders_open(const mr_rpc_security *security, void (*done)(void *context),
                          void *context); /* done: an order has ended; any thread */
void mr_orders_close(mr_orders *orders);  /* cancels what is under way; NULL is fine */

/* Copied. */
void mr_orders_load(mr_orders *orders, const mr_member *member, const mr_control_load_order *order);
void mr_orders_unload(mr_orders *orders, const mr_member *member,
                      const mr_control_unload_order *order);
/* A leader presents itself. false: no room at the moment, try again. */
bool mr_orders_join(mr_orders *orders, const mr_member *member, const char *cluster,
                    const char *leader, uint64_t leader_epoch);

#endif
