/* ops.c - which backend this processor runs. */
#include "common/ops/ops.h"

#include "common/ops/cpu/backends.h"

const mr_ops *mr_ops_find(const char *name) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    if (avx512 && name && strcmp(name, "avx512bf16") == 0 && __builtin_cpu_supports("avx512bf16"))
        return &mr_ops_avx512bf16;
    if (avx512 && (!name || strcmp(name, "avx512") == 0)) return &mr_ops_avx512;
    if (avx2 && (!name || strcmp(name, "avx2") == 0)) return &mr_ops_avx2;
#elif defined(__aarch64__)
    if (!name || strcmp(name, "neon") == 0) return &mr_ops_neon;
#endif
    if (!name || strcmp(name, "ref") == 0) return &mr_ops_ref;
    return NULL;
}

const mr_ops *mr_ops_choose(const char *isa, const char *numeric) {
    const mr_ops *exact = mr_ops_find(isa), *fast = mr_ops_find("avx512bf16");
    if (!numeric || strcmp(numeric, "exact") == 0) return exact;
    if (strcmp(numeric, "fast") != 0) return NULL;
    return fast && exact == &mr_ops_avx512 ? fast : exact;
}
