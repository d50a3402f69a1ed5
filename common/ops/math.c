/* math.c - see math.h. Series with enough terms; nothing here is on a hot path except mr_erf, which
 * reads a table built once by the same arithmetic. */
#include "common/ops/math.h"

#include <pthread.h>

double mr_exp_double(double x) {
    const double n = (double)(int64_t)(x * 1.4426950408889634 + (x < 0 ? -0.5 : 0.5));
    double r = x - n * 0.6931471804855391; /* ln 2, its first 33 bits: the product is exact */
    r = r - n * 7.440617110012397e-11;
    double term = 1, sum = 1;
    for (int i = 1; i < 20; i++) {
        term = term * r / i;
        sum = sum + term;
    }
    const int64_t whole = (int64_t)n, half = whole / 2;
    const uint64_t first_bits = (uint64_t)(half + 1023) << 52;
    const uint64_t second_bits = (uint64_t)(whole - half + 1023) << 52;
    double first, second;
    memcpy(&first, &first_bits, sizeof(first));
    memcpy(&second, &second_bits, sizeof(second));
    return sum * first * second;
}

double mr_ln(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof(bits));
    int64_t exponent = (int64_t)(bits >> 52) - 1023;
    bits = (bits & 0x000fffffffffffffull) | 0x3ff0000000000000ull;
    double m;
    memcpy(&m, &bits, sizeof(m)); /* [1, 2) */
    if (m > 1.4142135623730951) {
        m = m / 2;
        exponent++;
    }
    const double z = (m - 1) / (m + 1), square = z * z; /* ln m = 2 atanh z */
    double power = z, sum = 0;
    for (int i = 1; i < 40; i += 2) {
        sum = sum + power / i;
        power = power * square;
    }
    return 2 * sum + (double)exponent * 0.6931471805599453;
}

void mr_sin_cos(double x, double *sine, double *cosine) {
    const double k = (double)(int64_t)(x * 0.6366197723675814 + (x < 0 ? -0.5 : 0.5));
    double r = x - k * 1.5707963267341256; /* pi/2 in parts of 31 bits: the products are exact */
    r = r - k * 6.07710050359346e-11;
    r = r - k * 2.912732056093356e-20;
    const double square = r * r;
    double s_term = r, c_term = 1, s = r, c = 1;
    for (int i = 1; i < 10; i++) {
        c_term = -c_term * square / ((2 * i - 1) * (2 * i));
        s_term = -s_term * square / ((2 * i) * (2 * i + 1));
        c = c + c_term;
        s = s + s_term;
    }
    switch ((int64_t)k & 3) {
    case 0:
        *sine = s, *cosine = c;
        break;
    case 1:
        *sine = c, *cosine = -s;
        break;
    case 2:
        *sine = -s, *cosine = -c;
        break;
    default:
        *sine = -c, *cosine = s;
        break;
    }
}

static double erf_value[MR_ERF_POINTS], erf_slope[MR_ERF_POINTS];
static pthread_once_t erf_once = PTHREAD_ONCE_INIT;

static void build_erf(void) {
    for (int i = 0; i < MR_ERF_POINTS; i++) {
        const double x = (double)i / MR_ERF_STEPS;
        /* erf x = 2/sqrt(pi) e^(-x^2) sum 2^n x^(2n+1) / (2n+1)!!: all terms positive */
        const double gauss = mr_exp_double(-x * x);
        double term = x, sum = x;
        for (int n = 1; n < 220; n++) {
            term = term * 2 * x * x / (2 * n + 1);
            sum = sum + term;
        }
        erf_slope[i] = 1.1283791670955126 * gauss;
        erf_value[i] = erf_slope[i] * sum;
    }
}

void mr_erf_tables(const double **value, const double **slope) {
    pthread_once(&erf_once, build_erf);
    *value = erf_value;
    *slope = erf_slope;
}

double mr_erf(double x) {
    pthread_once(&erf_once, build_erf);
    return mr_erf_of(x, erf_value, erf_slope);
}
