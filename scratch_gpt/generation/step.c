// Run a complete decoding step: new tokens and the cache -> logits. compiled_step.py builds and calls it.
//
// It computes decoder.py's Net with matmul.py's products, in the same order. There a step takes a thousand calls. Here
// threads start once per step; each SHARED loop is divided among them, and they wait for each other at its end.
// Everything is computed in fp32; only the storage of matrices differs.
//
// B prompts, T new tokens each, N = B * T; S tokens so far, `columns` tokens fit into the cache; D = H * K is the
// width, H heads of size K, V the vocabulary. The shape of an array is written (rows, columns); it is stored by rows.

#include <math.h>
#include <stdint.h>
#include <string.h>

#define SHARED _Pragma("omp for schedule(static)")
#define INLINE static inline __attribute__((always_inline))  // so constant arguments are known to the compiler

enum { FP32, INT8 };  // kinds of matrices, with the numbers of compiled_step.py
enum { GELU_TANH, GELU, RELU, SILU };  // activations, with the numbers of compiled_step.py
enum { STREAMS = 4 };  // rows of a matrix that a thread reads at once: memory is faster than with one
enum { ROWS = 4 };     // rows of x that use a weight while it is in a register

// compiled_step.py packs these structs: each field has 8 bytes.
typedef struct { const float *weight, *bias; double eps; } Norm;
typedef struct { const void *weights; const float *scales, *sums, *bias; int64_t out, in, kind; } Matrix;
typedef struct { Norm norm_1; Matrix qkv, out; Norm norm_2; Matrix up, down; } Block;
typedef struct { Norm norm; Matrix head; } Last;

typedef struct { uint8_t *codes; float *step, *zero; } Rounded;  // (N, in), (N,), (N,): x is (codes - zero) * step
typedef float Vector __attribute__((vector_size(4 * LANES)));  // compiled_step.py defines LANES


// e^x with a relative error of at most 3e-7: 2^n from a float's exponent, the rest (at most log(2) / 2) from a Taylor
// series.
INLINE float exponential(float x) {
    x = x < -87 ? -87 : x > 88 ? 88 : x;
    float n = rintf(x * 1.44269504f), r = x - n * 0.693359375f + n * 2.12194440e-4f;  // log(2) in two parts
    float e = 1 + r * (1 + r * (1 / 2.f + r * (1 / 6.f + r * (1 / 24.f + r * (1 / 120.f + r / 720)))));
    union { int32_t bits; float value; } power = {((int32_t)n + 127) << 23};
    return e * power.value;
}

static void activate(float *x, int64_t n, int64_t act) {
    SHARED for (int64_t part = 0; part < n; part += 256) {
        int64_t end = part + 256 < n ? part + 256 : n;
        #define EACH(y) for (int64_t i = part; i < end; i++) { float v = x[i]; x[i] = y; } break
        switch (act) {
        case GELU_TANH: EACH(v / (1 + exponential(-1.59576912f * (v + 0.044715f * v * v * v))));  // 2 sqrt(2 / pi)
        case GELU: EACH(0.5f * v * (1 + erff(v * 0.707106781f)));
        case RELU: EACH(v < 0 ? 0 : v);
        case SILU: EACH(v / (1 + exponential(-v)));
        }
    }
}

// LayerNorm of x (N, D) -> y (N, D).
static void normalize(const float *x, Norm norm, float *y, int64_t N, int64_t D) {
    SHARED for (int64_t n = 0; n < N; n++) {
        const float *row = x + n * D;
        float sum = 0, squares = 0;
        #pragma omp simd reduction(+:sum)
        for (int64_t i = 0; i < D; i++) sum += row[i];
        float mean = sum / D;
        #pragma omp simd reduction(+:squares)
        for (int64_t i = 0; i < D; i++) squares += (row[i] - mean) * (row[i] - mean);
        float scale = 1 / sqrtf(squares / D + norm.eps);
        for (int64_t i = 0; i < D; i++) y[n * D + i] = (row[i] - mean) * scale * norm.weight[i] + norm.bias[i];
    }
}

// Round each row of x (N, in) by its own range, as matmul.py's round_rows. If a row has a number that is not finite,
// its step is NaN, so that the result is NaN too.
static void round_rows(const float *x, int64_t N, int64_t in, int64_t top, Rounded to) {
    SHARED for (int64_t n = 0; n < N; n++) {
        const float *row = x + n * in;
        float low = 0, high = 0, zero_or_nan = 0;
        #pragma omp simd reduction(min:low) reduction(max:high) reduction(+:zero_or_nan)
        for (int64_t i = 0; i < in; i++) {
            low = row[i] < low ? row[i] : low;
            high = row[i] > high ? row[i] : high;
            zero_or_nan += row[i] * 0;
        }
        double range = ((double)high - low) / top;
        range = range < 1e-38 ? 0.1 : range;  // a row of zeros
        float zero = -(float)rint(low / range), step = range < 6.1e-5 ? 6.1e-5f : (float)range, rate = 1 / step;
        for (int64_t i = 0; i < in; i++) {
            float code = rintf(row[i] * rate + zero);
            to.codes[n * in + i] = (uint8_t)(int32_t)(code > 0 ? code < top ? code : top : 0);
        }
        to.step[n] = step + zero_or_nan, to.zero[n] = zero;
    }
}

INLINE void put(float *y, float value, int add) { *y = add ? *y + value : value; }

INLINE Vector vector(const float *p) {
    Vector value;
    memcpy(&value, p, sizeof value);
    return value;
}

// Multiply `rows` rows of x (N, in), from row n on, by rows o, o + apart, ... of an fp32 matrix -> y (N, out).
INLINE void by_fp32(const float *x, Matrix w, float *y, int64_t n, int64_t o, int64_t apart, int rows, int streams,
                    int add) {
    const float *a = x + n * w.in, *b = (const float *)w.weights + o * w.in;
    Vector sums[ROWS][STREAMS] = {{{0}}};
    for (int64_t i = 0; i < w.in; i += LANES) {
        Vector weights[STREAMS];
        #pragma GCC unroll 4
        for (int k = 0; k < streams; k++) weights[k] = vector(b + k * apart * w.in + i);
        #pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
            #pragma GCC unroll 4
            for (int k = 0; k < streams; k++) sums[r][k] += vector(a + r * w.in + i) * weights[k];
    }
    for (int r = 0; r < rows; r++)
        for (int k = 0; k < streams; k++) {
            float sum = w.bias[o + k * apart];
            #pragma omp simd reduction(+:sum)
            for (int lane = 0; lane < LANES; lane++) sum += sums[r][k][lane];
            put(y + (n + r) * w.out + o + k * apart, sum, add);
        }
}

// Multiply one row of codes by rows of an int8 matrix in the same way. In this form compilers use the instruction for
// products of bytes.
INLINE void by_int8(Rounded x, Matrix w, float *y, int64_t n, int64_t o, int64_t apart, int streams, int add) {
    const uint8_t *a = x.codes + n * w.in;
    const int8_t *b = (const int8_t *)w.weights + o * w.in;
    int32_t sums[STREAMS] = {0};
    for (int64_t i = 0; i < w.in; i++)
        #pragma GCC unroll 4
        for (int k = 0; k < streams; k++) sums[k] += a[i] * b[k * apart * w.in + i];
    for (int k = 0; k < streams; k++) {
        int64_t j = o + k * apart;
        put(y + n * w.out + j, (sums[k] * w.scales[j] - x.zero[n] * w.sums[j]) * x.step[n] + w.bias[j], add);
    }
}

// Multiply all N rows by `streams` rows of a matrix; each weight is read from memory once.
INLINE void all_rows(const float *x, Rounded rounded, Matrix w, float *y, int64_t N, int64_t o, int64_t apart,
                     int streams, int add) {
    int64_t n = 0;
    if (w.kind == INT8) {
        for (; n < N; n++) by_int8(rounded, w, y, n, o, apart, streams, add);
        return;
    }
    for (; n + ROWS <= N; n += ROWS) by_fp32(x, w, y, n, o, apart, ROWS, streams, add);
    for (; n + 2 <= N; n += 2) by_fp32(x, w, y, n, o, apart, 2, streams, add);
    for (; n < N; n++) by_fp32(x, w, y, n, o, apart, 1, streams, add);
}

// x W^T + b -> y (N, out); with `add`, the result is added to y. For int8, x is rounded into the buffers of `rounded`.
static void multiply(const float *x, Rounded rounded, int64_t top, Matrix w, float *y, int64_t N, int add) {
    int64_t apart = w.out / STREAMS;
    if (w.kind == INT8) round_rows(x, N, w.in, top, rounded);
    #pragma omp for schedule(static) nowait
    for (int64_t o = 0; o < apart; o++) all_rows(x, rounded, w, y, N, o, apart, STREAMS, add);
    SHARED for (int64_t o = apart * STREAMS; o < w.out; o++) all_rows(x, rounded, w, y, N, o, 0, 1, add);  // the rest
}

// q, k and v (N, 3, H, K) -> y (N, H, K); k and v are written to the cache (2, B, H, columns, K), after its `past`
// tokens. `mask` (1 or B, T, S), if not null, is added to the scores (B, H, S).
static void attend(const float *restrict qkv, float *restrict cache, const float *restrict mask, int64_t mask_rows,
                   float *restrict y, float *restrict scores, int64_t B, int64_t T, int64_t H, int64_t K, int64_t past,
                   int64_t columns) {
    int64_t S = past + T, D = H * K;
    float scale = 1 / sqrtf(K);
    SHARED for (int64_t head = 0; head < B * H; head++) {
        int64_t b = head / H, first = b * T * 3 * D + head % H * K;  // offset of its first query
        float *keys = cache + head * columns * K, *values = keys + B * H * columns * K, *p = scores + head * S;
        for (int64_t t = 0; t < T; t++)
            for (int64_t i = 0; i < K; i++) {
                keys[(past + t) * K + i] = qkv[first + t * 3 * D + D + i];
                values[(past + t) * K + i] = qkv[first + t * 3 * D + 2 * D + i];
            }
        for (int64_t t = 0; t < T; t++) {
            const float *q = qkv + first + t * 3 * D;
            const float *mask_row = mask ? mask + (mask_rows > 1 ? b * T + t : t) * S : 0;
            float *o = y + (b * T + t) * D + head % H * K, largest = -INFINITY, sum = 0;
            for (int64_t s = 0; s < S; s++) {
                float score = 0;
                #pragma omp simd reduction(+:score)
                for (int64_t i = 0; i < K; i++) score += q[i] * keys[s * K + i];
                p[s] = score * scale + (mask_row ? mask_row[s] : 0);
                largest = p[s] > largest ? p[s] : largest;
            }
            #pragma omp simd reduction(+:sum)
            for (int64_t s = 0; s < S; s++) sum += p[s] = exponential(p[s] - largest);
            for (int64_t i = 0; i < K; i++) o[i] = 0;
            for (int64_t s = 0; s < S; s++) {
                if (p[s] < 1e-30f * sum) continue;  // masked: numbers this small are slow
                float share = p[s] / sum;
                for (int64_t i = 0; i < K; i++) o[i] += share * values[s * K + i];
            }
        }
    }
}

// x (N, D) -> logits (N, V). x is changed, and the new keys and values are written to the cache (layers, 2, B, H,
// columns, K). Buffers: scores (B, H, S), wide and other (N, widest output), steps and zeros (N,), codes like wide.
void step(const Block *blocks, const Last *last, float *x, float *cache, float *logits, float *scores, float *wide,
          float *other, float *steps, float *zeros, uint8_t *codes, const float *mask, int64_t mask_rows,
          int64_t layers, int64_t act, int64_t top, int64_t B, int64_t T, int64_t H, int64_t K, int64_t past,
          int64_t columns, int64_t threads) {
    int64_t N = B * T, D = H * K;
    Rounded rounded = {codes, steps, zeros};
    #pragma omp parallel num_threads(threads)
    {
        for (const Block *block = blocks; block < blocks + layers; block++) {
            float *block_cache = cache + (block - blocks) * 2 * B * columns * D;
            normalize(x, block->norm_1, other, N, D);
            multiply(other, rounded, top, block->qkv, wide, N, 0);
            attend(wide, block_cache, mask, mask_rows, other, scores, B, T, H, K, past, columns);
            multiply(other, rounded, top, block->out, x, N, 1);
            normalize(x, block->norm_2, other, N, D);
            multiply(other, rounded, top, block->up, wide, N, 0);
            activate(wide, N * block->up.out, act);
            multiply(wide, rounded, top, block->down, x, N, 1);
        }
        normalize(x, last->norm, other, N, D);
        multiply(other, rounded, top, last->head, logits, N, 0);
    }
}
