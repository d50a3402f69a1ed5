/* clock.c - see clock.h: the one variable behind it. */
#include "common/base/clock.h"

int64_t (*mr_clock_source)(void);
