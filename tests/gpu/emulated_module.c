/* emulated_module.c - the CUDA module compiled by a C compiler for tests without a GPU. */
#include "tests/gpu/emulator.h"

#include "common/ops/cuda/module.cu"
