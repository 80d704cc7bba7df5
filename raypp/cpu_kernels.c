/* What a step does to every weight for pruning, and to every hidden state for dropout, on a CPU: one pass over memory
   each, on torch's own threads.

   Plain C with OpenMP, compiled on first use and called through ctypes by cpu_kernels.py, which says what is passed.
   Matrices are contiguous, so a matrix is a pointer and a size. */

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { BLOCK = 64, CHUNK = 16384, NOISE = 512 }; /* CHUNK a multiple of BLOCK, NOISE of the 4 gates that a random word makes */

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
    void NAME(int64_t size, const float *weight, const bool *mask, TYPE *out, int threads) {                           \
        _Pragma("omp parallel for simd num_threads(threads)")                                                          \
        for (int64_t i = 0; i < size; i++) out[i] = to_##TYPE(weight[i] * (float)mask[i]);                             \
    }
MULTIPLY(multiply_float, float)
MULTIPLY(multiply_bfloat16, bfloat16)

/* for_weight = gradient * mask, for_scores = gradient * weight */
#define GRADIENTS(NAME, TYPE)                                                                                          \
    void NAME(int64_t size, const TYPE *gradient, const float *weight, const bool *mask, float *for_weight,            \
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

/* Marks the scores above a threshold; returns how many that are. */
int64_t mark_above(int64_t size, const float *scores, float threshold, bool *mask, int threads) {
    int64_t above = 0;
#pragma omp parallel for simd num_threads(threads) reduction(+ : above)
    for (int64_t i = 0; i < size; i++) {
        bool is_above = scores[i] > threshold;
        mask[i] = is_above;
        above += is_above;
    }
    return above;
}

/* Marks the scores above `high`, writes the places of those from `low` to `high` in order (room for all), and returns
   how many places there are. Scores are looked at in blocks, so few that most blocks have none near the threshold. */
int64_t split(int64_t size, const float *scores, float low, float high, bool *mask, int64_t *places, int64_t *above,
              int threads) {
    int64_t chunks = (size + CHUNK - 1) / CHUNK;
    int64_t found_of[chunks > 0 ? chunks : 1];
    int64_t total = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : total)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        int64_t first = chunk * CHUNK, end = first + CHUNK < size ? first + CHUNK : size;
        int64_t found = 0;
        for (int64_t start = first; start < end; start += BLOCK) {
            int64_t stop = start + BLOCK < end ? start + BLOCK : end;
            int32_t block_above = 0, block_reached = 0;
            for (int64_t i = start; i < stop; i++) {
                mask[i] = scores[i] > high;
                block_above += scores[i] > high;
                block_reached += scores[i] >= low;
            }
            total += block_above;
            if (block_above == block_reached) continue;
            for (int64_t i = start; i < stop; i++) {
                places[first + found] = i; /* overwritten by the next one, unless this one counts: no branch */
                found += (scores[i] >= low) & (scores[i] <= high);
            }
        }
        found_of[chunk] = found;
    }
    int64_t found = 0;
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        memmove(places + found, places + chunk * CHUNK, found_of[chunk] * sizeof *places);
        found += found_of[chunk];
    }
    *above = total;
    return found;
}

/* gradient += factor * d sigmoid(scores + shift) / d scores; returns the sum of the sigmoids. */
double add_sigmoid_gradient(int64_t size, const float *scores, float shift, float factor, float *gradient,
                            int threads) {
    double total = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : total) schedule(static)
    for (int64_t start = 0; start < size; start += NOISE) {
        int64_t stop = start + NOISE < size ? start + NOISE : size;
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

static inline void draw(Noise *noise, uint16_t bits[NOISE]) {
    uint64_t raw[NOISE / 4];
    for (int word = 0; word < NOISE / 4; word++) raw[word] = next(noise);
    memcpy(bits, raw, sizeof raw);
}

/* out = in * scale, or 0 where a 16-bit number is below `dropped`. Every chunk has a generator of its own, so that the
   numbers depend on the seed alone and not on the threads, and the backward pass draws them again. */
#define DROPOUT(NAME, TYPE)                                                                                            \
    void NAME(int64_t size, const TYPE *in, TYPE *out, uint64_t seed, uint32_t dropped, float scale, int threads) {    \
        int64_t chunks = (size + CHUNK - 1) / CHUNK;                                                                   \
        _Pragma("omp parallel for num_threads(threads)")                                                               \
        for (int64_t chunk = 0; chunk < chunks; chunk++) {                                                             \
            Noise noise = {seed, chunk, 0, 1};                                                                         \
            for (int i = 0; i < 18; i++) next(&noise); /* until every bit of the state depends on both */              \
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

/* Hard concrete gates of each matrix and their derivatives by log_alpha, with noise drawn on the way from a generator of
   the matrix's own, 16 bits a gate.

   With a temperature of 2/3, sigmoid((logit(u) + log_alpha) / temperature) is 1 / (1 + r * sqrt(r)) of
   r = exp(-log_alpha) * (1 - u) / u: no logarithm. */
void sample_gates(int64_t matrices, const int64_t *sizes, const float *const *all_log_alpha,
                  const uint64_t (*states)[4], float lift, float low, float high, float margin, float *const *gates,
                  float *const *slopes, int threads) {
    float stretch = high - low;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t m = 0; m < matrices; m++) {
        const float *log_alpha = all_log_alpha[m];
        float *gate = gates[m], *slope = slopes[m];
        Noise noise = {states[m][0], states[m][1], states[m][2], states[m][3]};
        uint16_t bits[NOISE];
        for (int64_t start = 0; start < sizes[m]; start += NOISE) {
            int64_t length = sizes[m] - start < NOISE ? sizes[m] - start : NOISE;
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
