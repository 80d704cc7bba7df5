/* What a step does to every weight for pruning and in the optimizer, and to every hidden state for dropout, on a CPU: one
   pass over memory each, on torch's own threads.

   Plain C with OpenMP, compiled on first use and called through ctypes by kernels.py, which says what is passed.
   Matrices are contiguous, so a matrix is a pointer and a size. A mask is bytes of 0 or 1: gcc does not vectorize a loop
   that reads a bool. */

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    BLOCK = 64,      /* scores that are compared with a threshold at a time; a multiple of 8 */
    CHUNK = 16384,   /* random numbers of one generator, as in noise.py */
    WARM_UP = 18,    /* words that are discarded first, as in noise.py */
    NOISE = 512,     /* random numbers that are drawn at a time, 4 from a word */
    ADDED = 512,     /* numbers that are added in float before their sum goes into a double */
    SUMMED = 131072, /* … and into a double of their own */
};

/* exp(x) for |x| <= 80, to the last bit or two: 2**n times the series of the rest. Vectorized, as expf is not. */
static inline float exponential(float x) {
    float n = floorf(x * 1.44269504f + 0.5f);
    float rest = x - n * 0.693359375f; /* ln 2 in two parts, the first of few bits, so that this product is exact */
    rest -= n * -2.12194440e-4f;
    float series = 1.0f / 5040;
    series = series * rest + 1.0f / 720;
    series = series * rest + 1.0f / 120;
    series = series * rest + 1.0f / 24;
    series = series * rest + 1.0f / 6;
    series = series * rest + 0.5f;
    series = series * rest + 1.0f;
    series = series * rest + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return series * power;
}

static inline float clamp(float x, float low, float high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

/* bfloat16 is the upper half of a float32. */
typedef uint16_t bfloat16;

static inline float from_float(float x) { return x; }
static inline float to_float(float x) { return x; }

static inline float from_bfloat16(bfloat16 half) {
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Rounded to the nearest, ties to even; NaN stays one. */
static inline bfloat16 to_bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return x == x ? (bfloat16)bits : 0x7fc0;
}

/* out = weight * mask */
#define MULTIPLY(NAME, TYPE)                                                                                           \
    void NAME(int64_t size, const float *weight, const uint8_t *mask, TYPE *out, int threads) {                        \
        _Pragma("omp parallel for simd num_threads(threads)")                                                          \
        for (int64_t i = 0; i < size; i++) out[i] = to_##TYPE(weight[i] * (float)mask[i]);                             \
    }
MULTIPLY(multiply_float, float)
MULTIPLY(multiply_bfloat16, bfloat16)

/* for_weight = gradient * mask, for_scores = gradient * weight */
#define GRADIENTS(NAME, TYPE)                                                                                          \
    void NAME(int64_t size, const TYPE *gradient, const float *weight, const uint8_t *mask, float *for_weight,         \
              float *for_scores, int threads) {                                                                        \
        _Pragma("omp parallel for simd num_threads(threads)")                                                          \
        for (int64_t i = 0; i < size; i++) {                                                                           \
            float wide = from_##TYPE(gradient[i]);                                                                     \
            for_weight[i] = wide * (float)mask[i];                                                                     \
            for_scores[i] = wide * weight[i];                                                                          \
        }                                                                                                              \
    }
GRADIENTS(gradients_float, float)
GRADIENTS(gradients_bfloat16, bfloat16)

/* The same with gates as the mask, and their derivative. */
#define GATE_GRADIENTS(NAME, TYPE)                                                                                     \
    void NAME(int64_t size, const TYPE *gradient, const float *weight, const float *gate, const float *slope,          \
              float *for_weight, float *for_scores, int threads) {                                                     \
        _Pragma("omp parallel for simd num_threads(threads)")                                                          \
        for (int64_t i = 0; i < size; i++) {                                                                           \
            float wide = from_##TYPE(gradient[i]);                                                                     \
            for_weight[i] = wide * gate[i];                                                                            \
            for_scores[i] = wide * weight[i] * slope[i];                                                               \
        }                                                                                                              \
    }
GATE_GRADIENTS(gate_gradients_float, float)
GATE_GRADIENTS(gate_gradients_bfloat16, bfloat16)

/* mean = decay * mean + (1 - decay) * factor * gradient^2 */
void average_squares(int64_t size, float *mean, const float *gradient, double decay, double factor, int threads) {
    float keep = decay, rest = (1 - decay) * factor;
#pragma omp parallel for simd num_threads(threads)
    for (int64_t i = 0; i < size; i++) mean[i] = keep * mean[i] + rest * (gradient[i] * gradient[i]);
}

/* The sum of the squares of all values, the same for every number of threads: chunk by chunk of all tensors in a row. */
double sum_squares(int64_t tensors, const int64_t *sizes, const float *const *values, int threads) {
    int64_t total = 0;
    for (int64_t t = 0; t < tensors; t++) total += sizes[t];
    int64_t chunks = total / SUMMED + 1;
    double sums[chunks];
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        int64_t begin = chunk * SUMMED, end = begin + SUMMED;
        sums[chunk] = 0;
        for (int64_t t = 0, offset = 0; t < tensors && offset < end; offset += sizes[t++]) {
            int64_t from = begin > offset ? begin - offset : 0;
            int64_t to = end - offset < sizes[t] ? end - offset : sizes[t];
            const float *value = values[t];
            for (int64_t start = from; start < to; start += ADDED) {
                int64_t stop = start + ADDED < to ? start + ADDED : to;
                float squares = 0;
#pragma omp simd reduction(+ : squares)
                for (int64_t i = start; i < stop; i++) squares += value[i] * value[i];
                sums[chunk] += squares;
            }
        }
    }
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; chunk++) sum += sums[chunk];
    return sum;
}

/* A step of AdamW (Loshchilov and Hutter 2019, algorithm 2) with gradients times `scale`; `steps` counts this one. */
void adamw(int64_t tensors, const int64_t *sizes, float *const *parameters, const float *const *gradients,
           float *const *means, float *const *squares, const double *steps, double rate, double weight_decay,
           double beta1, double beta2, double epsilon, double scale, int threads) {
    int64_t total = 0;
    for (int64_t t = 0; t < tensors; t++) total += sizes[t];
    float factor = scale, shrink = 1 - rate * weight_decay, margin = epsilon;
    float rest1 = 1 - beta1, keep2 = beta2, rest2 = 1 - beta2;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++) {
        int64_t begin = total * part / threads, end = total * (part + 1) / threads;
        for (int64_t t = 0, offset = 0; t < tensors; offset += sizes[t++]) {
            int64_t from = begin > offset ? begin - offset : 0;
            int64_t to = end - offset < sizes[t] ? end - offset : sizes[t];
            if (from >= to) continue;
            float *parameter = parameters[t], *mean = means[t], *square = squares[t];
            const float *gradient = gradients[t];
            float size = rate / (1 - pow(beta1, steps[t])), correction = 1 / sqrt(1 - pow(beta2, steps[t]));
#pragma omp simd
            for (int64_t i = from; i < to; i++) {
                float slope = gradient[i] * factor;
                mean[i] += rest1 * (slope - mean[i]);
                square[i] = keep2 * square[i] + rest2 * (slope * slope);
                parameter[i] = parameter[i] * shrink - size * mean[i] / (sqrtf(square[i]) * correction + margin);
            }
        }
    }
}

/* Marks the scores above a threshold; returns how many that are. */
int64_t mark_above(int64_t size, const float *scores, float threshold, uint8_t *mask, int threads) {
    int64_t above = 0;
#pragma omp parallel for simd num_threads(threads) reduction(+ : above)
    for (int64_t i = 0; i < size; i++) {
        bool is_above = scores[i] > threshold;
        mask[i] = is_above;
        above += is_above;
    }
    return above;
}

/* A score that is near its selection's threshold, and its place in its matrix. */
typedef struct {
    float score;
    uint32_t place;
} Near;

/* The `rank`-th smallest value, counted from 0, by quickselect; values are reordered. */
static float nth_smallest(float *values, int64_t size, int64_t rank) {
    int64_t low = 0, high = size - 1;
    while (low < high) {
        float pivot = values[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (values[i] < pivot) i++;
            while (values[j] > pivot) j--;
            if (i > j) break;
            float value = values[i];
            values[i++] = values[j];
            values[j--] = value;
        }
        if (rank <= j) high = j;
        else if (rank >= i) low = i;
        else break;
    }
    return values[rank];
}

/* For each selection the threshold above and at which its matrices together have `counts` scores, looked for from `lows`
   to `highs`; its masks mark what is at or above it, and `kept` says how many that are, matrix by matrix. The threshold
   is NaN where it is not there; the masks mean nothing then.

   Selection s is of the matrices first[s] to first[s + 1] - 1, all of fewer than 2**32 scores; `near` has room for all
   scores. All matrices are read once, in as many equal parts as there are threads; then each selection takes its few
   scores near the threshold. Scores are looked at in blocks, so few that most blocks have none of those. */
void select_near(int64_t selections, const int64_t *first, const int64_t *counts, const float *lows, const float *highs,
                 const int64_t *sizes, const float *const *scores, uint8_t *const *masks, Near *near, float *thresholds,
                 int64_t *kept, int threads) {
    int64_t matrices = first[selections], total = 0;
    for (int64_t m = 0; m < matrices; m++) total += sizes[m];
    struct {
        int64_t start, found, above; /* where in `near`, how many there, and how many above the range */
    } (*tallies)[threads] = malloc(matrices * sizeof *tallies);
    for (int64_t s = 0; s < selections; s++) thresholds[s] = NAN;
    if (!tallies) return;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++) {
        int64_t begin = total * part / threads, end = total * (part + 1) / threads;
        int64_t next = begin, offset = 0;
        for (int64_t s = 0; s < selections; s++) {
            float low = lows[s], high = highs[s];
            for (int64_t m = first[s]; m < first[s + 1]; offset += sizes[m++]) {
                int64_t from = begin > offset ? begin - offset : 0;
                int64_t to = end - offset < sizes[m] ? end - offset : sizes[m];
                const float *score = scores[m];
                uint8_t *mask = masks[m];
                int64_t before = next, above = 0;
                for (int64_t block = from; block < to; block += BLOCK) {
                    int64_t stop = block + BLOCK < to ? block + BLOCK : to;
                    int32_t block_above = 0, block_near = 0;
                    uint8_t is_near[BLOCK] = {0};
                    for (int64_t i = block; i < stop; i++) {
                        bool is_above = score[i] > high, is_reached = score[i] >= low;
                        mask[i] = is_above;
                        is_near[i - block] = is_reached & !is_above;
                        block_above += is_above;
                        block_near += is_reached & !is_above;
                    }
                    above += block_above;
                    for (int word = 0; block_near && word < BLOCK / 8; word++) {
                        uint64_t bytes; /* the first one lowest */
                        memcpy(&bytes, is_near + 8 * word, sizeof bytes);
                        for (; bytes; bytes &= bytes - 1) {
                            int64_t i = block + 8 * word + __builtin_ctzll(bytes) / 8;
                            near[next++] = (Near){score[i], i};
                        }
                    }
                }
                tallies[m][part].start = before;
                tallies[m][part].found = next - before;
                tallies[m][part].above = above;
            }
        }
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t s = 0; s < selections; s++) {
        int64_t found = 0, above = 0;
        for (int64_t m = first[s]; m < first[s + 1]; m++)
            for (int part = 0; part < threads; part++) {
                found += tallies[m][part].found;
                above += tallies[m][part].above;
            }
        int64_t rank = found - (counts[s] - above);
        if (rank < 0 || rank >= found) continue;
        float *values = malloc(found * sizeof *values);
        if (!values) continue;
        int64_t gathered = 0;
        for (int64_t m = first[s]; m < first[s + 1]; m++)
            for (int part = 0; part < threads; part++)
                for (int64_t i = 0; i < tallies[m][part].found; i++)
                    values[gathered++] = near[tallies[m][part].start + i].score;
        float threshold = nth_smallest(values, found, rank);
        free(values);
        for (int64_t m = first[s]; m < first[s + 1]; m++) {
            kept[m] = 0;
            for (int part = 0; part < threads; part++) {
                const Near *each = near + tallies[m][part].start;
                kept[m] += tallies[m][part].above;
                for (int64_t i = 0; i < tallies[m][part].found; i++) {
                    bool is_kept = each[i].score >= threshold;
                    masks[m][each[i].place] = is_kept;
                    kept[m] += is_kept;
                }
            }
        }
        thresholds[s] = threshold;
    }
    free(tallies);
}

/* gradient += factor * d sigmoid(scores + shift) / d scores; returns the sum of the sigmoids. */
double add_sigmoid_gradient(int64_t size, const float *scores, float shift, float factor, float *gradient,
                            int threads) {
    double total = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : total) schedule(static)
    for (int64_t start = 0; start < size; start += ADDED) {
        int64_t stop = start + ADDED < size ? start + ADDED : size;
        float part = 0;
#pragma omp simd reduction(+ : part)
        for (int64_t i = start; i < stop; i++) {
            float sigmoid = 1 / (1 + exponential(-clamp(scores[i] + shift, -80, 80)));
            part += sigmoid;
            gradient[i] += factor * sigmoid * (1 - sigmoid);
        }
        total += part;
    }
    return total;
}

/* An SFC64 generator (numpy.random.SFC64's), whose raw numbers make four 16-bit ones each. */
typedef struct {
    uint64_t a, b, c, counter;
} Noise;

static inline uint64_t next(Noise *noise) {
    uint64_t raw = noise->a + noise->b + noise->counter++;
    noise->a = noise->b ^ (noise->b >> 11);
    noise->b = noise->c + (noise->c << 3);
    noise->c = ((noise->c << 24) | (noise->c >> 40)) + raw;
    return raw;
}

/* The generator of a chunk: the numbers depend on the seed alone and not on the threads. */
static inline Noise seeded(uint64_t seed, uint64_t chunk) {
    Noise noise = {seed, chunk, 0, 1};
    for (int i = 0; i < WARM_UP; i++) next(&noise);
    return noise;
}

static inline void draw(Noise *noise, uint16_t bits[NOISE]) {
    uint64_t raw[NOISE / 4];
    for (int word = 0; word < NOISE / 4; word++) raw[word] = next(noise);
    memcpy(bits, raw, sizeof raw);
}

/* out = in * scale, or 0 where a 16-bit number is below `dropped`. The backward pass draws the same numbers again. */
#define DROPOUT(NAME, TYPE)                                                                                            \
    void NAME(int64_t size, const TYPE *in, TYPE *out, uint64_t seed, uint32_t dropped, float scale, int threads) {    \
        int64_t chunks = (size + CHUNK - 1) / CHUNK;                                                                   \
        _Pragma("omp parallel for num_threads(threads)")                                                               \
        for (int64_t chunk = 0; chunk < chunks; chunk++) {                                                             \
            Noise noise = seeded(seed, chunk);                                                                         \
            uint16_t bits[NOISE];                                                                                      \
            int64_t end = (chunk + 1) * CHUNK < size ? (chunk + 1) * CHUNK : size;                                     \
            for (int64_t start = chunk * CHUNK; start < end; start += NOISE) {                                         \
                int64_t length = end - start < NOISE ? end - start : NOISE;                                            \
                draw(&noise, bits);                                                                                    \
                _Pragma("omp simd")                                                                                    \
                for (int64_t i = 0; i < length; i++) {                                                                 \
                    TYPE kept = to_##TYPE(from_##TYPE(in[start + i]) * scale);                                         \
                    out[start + i] = bits[i] < dropped ? 0 : kept;                                                     \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }
DROPOUT(dropout_float, float)
DROPOUT(dropout_bfloat16, bfloat16)

/* Hard concrete gates of each matrix and their derivatives by log_alpha, with noise drawn on the way from the matrix's
   seed, 16 bits a gate.

   With a temperature of 2/3, sigmoid((logit(u) + log_alpha) / temperature) is 1 / (1 + r * sqrt(r)) of
   r = exp(-log_alpha) * (1 - u) / u: no logarithm. */
void sample_gates(int64_t matrices, const int64_t *sizes, const float *const *all_log_alpha, const uint64_t *seeds,
                  float lift, float low, float high, float margin, float *const *gates, float *const *slopes,
                  int threads) {
    float stretch = high - low;
#pragma omp parallel num_threads(threads)
    for (int64_t m = 0; m < matrices; m++) {
        const float *log_alpha = all_log_alpha[m];
        float *gate = gates[m], *slope = slopes[m];
#pragma omp for schedule(dynamic) nowait
        for (int64_t begin = 0; begin < sizes[m]; begin += CHUNK) {
            Noise noise = seeded(seeds[m], begin / CHUNK);
            uint16_t bits[NOISE];
            int64_t end = begin + CHUNK < sizes[m] ? begin + CHUNK : sizes[m];
            for (int64_t start = begin; start < end; start += NOISE) {
                int64_t length = end - start < NOISE ? end - start : NOISE;
                draw(&noise, bits);
#pragma omp simd
                for (int64_t i = 0; i < length; i++) {
                    float uniform = clamp(((float)bits[i] + 0.5f) * 0x1p-16f, margin, 1 - margin);
                    float odds = exponential(-clamp(log_alpha[start + i] + lift, -80, 80)) * ((1 - uniform) / uniform);
                    float sigmoid = 1 / (1 + odds * sqrtf(odds));
                    float stretched = low + stretch * sigmoid;
                    float clamped = clamp(stretched, 0, 1);
                    slope[start + i] = stretched == clamped ? 1.5f * stretch * sigmoid * (1 - sigmoid) : 0;
                    gate[start + i] = clamped;
                }
            }
        }
    }
}
