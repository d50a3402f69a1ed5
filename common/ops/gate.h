/* gate.h - the scalar steps between scores and fixed-point weights. One implementation, used by the
 * worker (two trips) and the memshard (one trip), so that both give the same bits. */
#ifndef MR_OPS_GATE_H
#define MR_OPS_GATE_H
#include <stdbool.h>
#include <stdint.h>

enum { MR_EXPONENT_MIN = -60, MR_EXPONENT_MAX = 90 };

/* Exponent of a bound by frexp, never below MR_EXPONENT_MIN. false: not finite, negative, or above
 * MR_EXPONENT_MAX: the request must be refused. */
bool mr_exponent_of(int *out, double bound);
/* x * 2^power, exact unless it leaves the normal range of fp32. */
float mr_scale_exact(float x, int power);
/* Integer dot of exponent d (scaled by 2^(62-d)) to fp32. */
float mr_dot_to_float(int64_t dot, int d);
/* fl32(gate * score) with gate = GELU(dot) (exact erf form) or dot itself. */
float mr_gate_weight(float dot, float score, bool gelu);
float mr_gelu(float x); /* 0.5 x (1 + erf(x / sqrt 2)), our own erf */

#endif
