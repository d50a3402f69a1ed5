/* gateway.h - requests that come from other coordinators: Gateway.Generate of proto/control.proto.
 *
 * They are pinned to a digest, bring the tokens their answers have so far and want tokens back:
 * text, stop strings and usage are the business of the coordinator that has the client. Such a
 * request is never handed on again.
 * Threads: as mr_control_handlers.generate; answers go out in the core's thread. */
#ifndef MR_COORDINATOR_GATEWAY_H
#define MR_COORDINATOR_GATEWAY_H
#include "common/net/control.h"
#include "coordinator/core.h"

/* For mr_control_handlers; context: the mr_core, which must be closed before the server is. */
mr_status mr_gateway_generate(void *core, mr_control_stream *stream, const mr_generation *request,
                              mr_err *err);

#endif
