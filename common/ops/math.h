/* math.h - elementary functions whose bits do not depend on a C library: plain multiplications and
 * additions in a fixed order. Accuracy is far inside what fp32 can hold. */
#ifndef MR_OPS_MATH_H
#define MR_OPS_MATH_H
#include <stdint.h>
#include <string.h>

/* e^x in fp32, within 2 units in the last place; 0 below -87.3, infinity above 88.7. NaN gives NaN.
 */
static inline float mr_exp(float x) {
    const float clamped = x < -87.33654f ? -87.33654f : x > 88.72283f ? 88.72283f : x;
    /* n = round(x / ln 2), by the classic addition of 1.5 * 2^23 */
    const float shifted = clamped * 1.44269504f + 12582912.0f;
    const float n = shifted - 12582912.0f;
    float r = clamped - n * 0.693359375f; /* ln 2 in two parts: the first product is exact */
    r = r - n * -2.12194440e-4f;
    /* Taylor polynomial of degree 7 on |r| <= 0.347 */
    float p = 1.98412698e-4f;
    p = p * r + 1.38888889e-3f;
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof(bits));
    /* 2^n in two factors, so that n = 128 and n = -126 stay in range */
    const int32_t whole = (int32_t)(bits << 9) >> 9;
    const int32_t half = whole / 2;
    const uint32_t first_bits = (uint32_t)(half + 127) << 23;
    const uint32_t second_bits = (uint32_t)(whole - half + 127) << 23;
    float first, second;
    memcpy(&first, &first_bits, sizeof(first));
    memcpy(&second, &second_bits, sizeof(second));
    const float y = p * first * second;
    return x < -87.33654f ? 0.0f : x > 88.72283f ? __builtin_inff() : x == x ? y : x;
}

#ifndef MR_HOST_DEVICE
#define MR_HOST_DEVICE /* the CUDA module makes this one a function of the device too */
#endif

/* erf by a Taylor expansion around the nearest multiple of 1/64; beyond 6 it is 1 in double. The
 * tables hold erf and its derivative there. */
enum { MR_ERF_STEPS = 64, MR_ERF_RANGE = 6, MR_ERF_POINTS = MR_ERF_STEPS * MR_ERF_RANGE + 2 };
static inline MR_HOST_DEVICE double mr_erf_of(double x, const double *value, const double *slope) {
    const double a = x < 0 ? -x : x;
    if (!(a < MR_ERF_RANGE)) return x < 0 ? -1 : a == a ? 1 : x;
    const int i = (int)(a * MR_ERF_STEPS + 0.5);
    const double p = (double)i / MR_ERF_STEPS, h = a - p;
    /* derivatives of erf over erf': 1, -2p, 4p^2-2, -8p^3+12p, 16p^4-48p^2+12 */
    const double q = p * p;
    const double series =
        h * (1 + h * (-p + h * ((4 * q - 2) / 6 + h * ((-8 * q + 12) * p / 24 +
                                                       h * (((16 * q - 48) * q + 12) / 120)))));
    const double y = value[i] + slope[i] * series;
    return x < 0 ? -y : y;
}
/* The tables, [MR_ERF_POINTS] each. */
void mr_erf_tables(const double **value, const double **slope);

double mr_erf(double x);                                 /* absolute error below 1e-13 */
void mr_sin_cos(double x, double *sine, double *cosine); /* |x| <= 2^31, error below 1e-11 */
double mr_ln(double x);                                  /* x > 0, normal */
double mr_exp_double(double x);                          /* |x| <= 700 */

#endif
