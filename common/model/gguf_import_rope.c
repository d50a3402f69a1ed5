/* gguf_import_rope.c - the llama3 rope scaling that a table of frequency factors was made from.
 *
 * A converter replaces the four numbers of Hugging Face's configuration by one factor per
 * frequency: 1 for short waves, `factor` for long ones, and between them 1/f goes in a straight
 * line over the frequency. The line is set by original/low and original/high alone, so any common
 * multiple of the three gives the same table. Published models are tried first, then low = 1 with
 * high = 4, then the line through two factors between; what is returned reproduces every factor. */
#include "common/model/gguf_import_impl.h"

#include <math.h>

typedef struct {
    double factor, low, high, original;
} llama3;

static double wave_length(uint32_t index, uint32_t count, double theta) {
    return 2 * 3.14159265358979323846 * pow(theta, (double)index / count);
}

static double factor_at(const llama3 *p, double wave) {
    if (wave < p->original / p->high) return 1;
    if (wave > p->original / p->low) return p->factor;
    const double smooth = (p->original / wave - p->low) / (p->high - p->low);
    return 1 / ((1 - smooth) / p->factor + smooth);
}

static bool reproduces(const llama3 *p, const float *factors, uint32_t count, double theta) {
    for (uint32_t i = 0; i < count; i++) {
        const double made = factor_at(p, wave_length(i, count, theta));
        if (!(fabs(made - (double)factors[i]) <= 1e-4 * made)) return false;
    }
    return true;
}

/* The line through the first and last factor that lie between; false where there are not two. */
static bool through_line(llama3 *p, const float *factors, uint32_t count, double theta) {
    double x[2], y[2];
    uint32_t found = 0;
    for (uint32_t i = 0; i < count; i++) {
        const double f = (double)factors[i];
        if (f <= 1.001 || f >= p->factor * 0.999) continue;
        const uint32_t at = found++ > 0;
        x[at] = 1 / wave_length(i, count, theta);
        y[at] = (1 / f - 1 / p->factor) / (1 - 1 / p->factor);
    }
    if (found < 2) return false;
    const double slope = (y[1] - y[0]) / (x[1] - x[0]), start = y[0] - slope * x[0];
    if (!(slope > 0) || !(start < 0)) return false;
    p->low = 1;
    p->high = 1 - 1 / start;
    p->high = nearbyint(p->high * 1024) / 1024;
    p->original = nearbyint(slope * (p->high - p->low));
    return p->high > p->low && p->original >= 1;
}

static bool find(llama3 *p, const float *factors, uint32_t count, double theta) {
    *p = (llama3){(double)factors[0], 1, 4, 8192};
    for (uint32_t i = 1; i < count; i++)
        if ((double)factors[i] > p->factor) p->factor = (double)factors[i];
    if (reproduces(p, factors, count, theta)) return true;
    for (p->original = 256; p->original <= MR_MAX_CONTEXT; p->original *= 2)
        if (reproduces(p, factors, count, theta)) return true;
    return through_line(p, factors, count, theta) && reproduces(p, factors, count, theta);
}

mr_status gguf_rope_from_factors(json_t **out, const float *factors, uint32_t count, double theta,
                                 mr_err *err) {
    llama3 p;
    bool plain = true;
    for (uint32_t i = 0; i < count; i++) {
        if (!(factors[i] > 0 && factors[i] < 1e6f))
            return mr_fail(err, MR_ERR_RANGE, "factor %u is %g", i, (double)factors[i]);
        if (factors[i] < 1 || factors[i] > 1) plain = false;
    }
    *out = NULL;
    if (plain) return MR_OK;
    if (!find(&p, factors, count, theta))
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "its factors are not those of llama3 rope scaling; "
                       "others are not supported");
    *out = json_pack("{s:s, s:f, s:f, s:f, s:I}", "rope_type", "llama3", "factor", p.factor,
                     "low_freq_factor", p.low, "high_freq_factor", p.high,
                     "original_max_position_embeddings", (json_int_t)p.original);
    return MR_OK;
}
