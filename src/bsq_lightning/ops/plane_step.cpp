// The step of plane_step.py for all tensors at once: planes and momentum are read once and written once.
//
// Sums run in a fixed order, over 16 lanes and pieces of 2048 weights, and nothing is contracted to fused
// multiply-adds: the result depends neither on the number of threads nor on the width of the machine's vectors.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t PIECE = 2048;  // weights: what is computed on the way stays in the first cache
constexpr int LANES = 16;  // MAX_PRECISION is given to the compiler: the bits of a layer are 1 to that many
using BFloat16 = uint16_t;

struct Layer {
    void *planes, *momentum;  // [2, precision, size]
    const void *grad;         // [size]
    void *weight;             // [size]
    void *scale, *scale_momentum;
    const void *decay;  // [precision]
    void *squares;      // [precision]
    int64_t size;
    int32_t precision, clip;
};

struct Piece {
    int layer;
    int64_t start, size;
};

template <typename T>
struct Rates {
    T lr, momentum, weight_decay;
};

uint32_t hash(uint32_t x) {  // every bit of the result depends on every bit of x
    x ^= x >> 16;
    x *= 0x21f0aaadu;
    x ^= x >> 15;
    x *= 0xd35a2d97u;
    return x ^ (x >> 15);
}

// Writes x as bfloat16, up or down by chance so that the mean is x; x becomes what was written.
void round_by_chance(float *__restrict x, BFloat16 *__restrict to, int64_t size, const uint32_t *random, int shift) {
#pragma omp simd
    for (int64_t i = 0; i < size; i++) {
        uint32_t bits;
        std::memcpy(&bits, &x[i], 4);
        bits = (bits + ((random[i] >> shift) & 0xffff)) & 0xffff0000u;
        to[i] = uint16_t(bits >> 16);
        std::memcpy(&x[i], &bits, 4);
    }
}

void widen(const BFloat16 *__restrict from, float *__restrict x, int64_t size) {
#pragma omp simd
    for (int64_t i = 0; i < size; i++) {
        const uint32_t bits = uint32_t(from[i]) << 16;
        std::memcpy(&x[i], &bits, 4);
    }
}

// One plane of one sign: v <- mu v + c G + k p, p <- clamp(p - lr v); adds the plane to the value and its squares.
template <typename T>
void step_plane(T *__restrict plane, T *__restrict momentum, const T *__restrict grad, int64_t size, T coefficient,
                T decay, const Rates<T> &rates, T worth, T *__restrict value, T *__restrict lanes) {
    auto one = [&](int64_t i, int64_t lane) {
        const T v = rates.momentum * momentum[i] + decay * plane[i] + coefficient * grad[i];
        const T p = std::min(std::max(plane[i] - rates.lr * v, T(0)), T(2));
        momentum[i] = v;
        plane[i] = p;
        value[i] += worth * p;
        lanes[lane] += p * p;
    };
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES)
#pragma omp simd
        for (int64_t lane = 0; lane < LANES; lane++) one(i + lane, lane);
    for (int64_t lane = 0; i + lane < size; lane++) one(i + lane, lane);
}

// The same where 16 bits are kept: momentum is rounded before the plane moves by it, the plane before it counts.
void step_plane(BFloat16 *plane, BFloat16 *momentum, const float *grad, int64_t size, float coefficient, float decay,
                const Rates<float> &rates, float worth, float *__restrict value, float *__restrict lanes,
                uint32_t key) {
    float v[PIECE], p[PIECE];
    uint32_t random[PIECE];
    widen(plane, p, size);
    widen(momentum, v, size);
#pragma omp simd
    for (int64_t i = 0; i < size; i++) {
        random[i] = hash(key + uint32_t(i));
        v[i] = rates.momentum * v[i] + decay * p[i] + coefficient * grad[i];
    }
    round_by_chance(v, momentum, size, random, 0);
#pragma omp simd
    for (int64_t i = 0; i < size; i++) p[i] = std::min(std::max(p[i] - rates.lr * v[i], 0.f), 2.f);
    round_by_chance(p, plane, size, random, 16);
    auto one = [&](int64_t i, int64_t lane) {
        value[i] += worth * p[i];
        lanes[lane] += p[i] * p[i];
    };
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES)
#pragma omp simd
        for (int64_t lane = 0; lane < LANES; lane++) one(i + lane, lane);
    for (int64_t lane = 0; i + lane < size; lane++) one(i + lane, lane);
}

template <typename T>
double dot(const Layer &layer, const Piece &piece) {
    const T *grad = static_cast<const T *>(layer.grad) + piece.start;
    const T *weight = static_cast<const T *>(layer.weight) + piece.start;
    double lanes[LANES] = {}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= piece.size; i += LANES)
#pragma omp simd
        for (int64_t lane = 0; lane < LANES; lane++) lanes[lane] += double(grad[i + lane]) * double(weight[i + lane]);
    for (int64_t lane = 0; i + lane < piece.size; lane++) lanes[lane] += double(grad[i + lane]) * double(weight[i + lane]);
    for (double lane : lanes) sum += lane;
    return sum;
}

// Planes, momentum and W of a piece; the sums of squares of its planes go to squares[precision].
template <typename T, typename Stored>
void step_piece(const Layer &layer, const Piece &piece, T old_step, T new_step, const Rates<T> &rates, uint32_t seed,
                double *squares) {
    const T *grad = static_cast<const T *>(layer.grad) + piece.start;
    T value[PIECE];
    std::fill(value, value + piece.size, T(0));
    for (int bit = 0; bit < layer.precision; bit++) {
        T lanes[LANES] = {};
        for (int sign = 0; sign < 2; sign++) {
            const int64_t offset = (int64_t(sign) * layer.precision + bit) * layer.size + piece.start;
            Stored *plane = static_cast<Stored *>(layer.planes) + offset;
            Stored *momentum = static_cast<Stored *>(layer.momentum) + offset;
            const T worth = T(1 << bit) * T(sign ? -1 : 1);
            const T decay = rates.weight_decay + static_cast<const T *>(layer.decay)[bit];
            if constexpr (sizeof(Stored) == 2)
                step_plane(plane, momentum, grad, piece.size, worth * old_step, decay, rates, worth, value, lanes,
                           hash(seed ^ uint32_t(offset)));
            else
                step_plane(plane, momentum, grad, piece.size, worth * old_step, decay, rates, worth, value, lanes);
        }
        for (T lane : lanes) squares[bit] += double(lane);
    }
    T *__restrict weight = static_cast<T *>(layer.weight) + piece.start;
    const T top = layer.clip ? T((1 << layer.precision) - 1) : T(INFINITY);
#pragma omp simd
    for (int64_t i = 0; i < piece.size; i++)
        weight[i] = std::min(std::max(std::nearbyint(value[i]), -top), top) * new_step;
}

template <typename T, typename Stored>
void step(const Layer *layers, int count, const Rates<T> &rates, uint32_t seed, int threads) {
    std::vector<Piece> pieces;
    for (int l = 0; l < count; l++)
        for (int64_t start = 0; start < layers[l].size; start += PIECE)
            pieces.push_back({l, start, std::min(PIECE, layers[l].size - start)});
    const int64_t total = pieces.size();
    std::vector<double> dots(total), squares(total * MAX_PRECISION);
    std::vector<T> old_steps(count), new_steps(count);

#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t k = 0; k < total; k++) dots[k] = dot<T>(layers[pieces[k].layer], pieces[k]);
    for (int64_t l = 0, k = 0; l < count; l++) {
        double sum = 0;
        for (; k < total && pieces[k].layer == l; k++) sum += dots[k];
        T &scale = *static_cast<T *>(layers[l].scale), &momentum = *static_cast<T *>(layers[l].scale_momentum);
        const T levels = T((1 << layers[l].precision) - 1);
        old_steps[l] = scale / levels;
        momentum = rates.momentum * momentum + (T(sum) / scale + rates.weight_decay * scale);
        scale = std::max(scale - rates.lr * momentum, T(1e-8));
        new_steps[l] = scale / levels;
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t k = 0; k < total; k++) {
        const int l = pieces[k].layer;
        step_piece<T, Stored>(layers[l], pieces[k], old_steps[l], new_steps[l], rates, hash(seed + uint32_t(l)),
                              &squares[k * MAX_PRECISION]);
    }
    for (int64_t l = 0, k = 0; l < count; l++) {
        double sums[MAX_PRECISION] = {};
        for (; k < total && pieces[k].layer == l; k++)
            for (int bit = 0; bit < layers[l].precision; bit++) sums[bit] += squares[k * MAX_PRECISION + bit];
        for (int bit = 0; bit < layers[l].precision; bit++) static_cast<T *>(layers[l].squares)[bit] = T(sums[bit]);
    }
}

}  // namespace

#define EXPORT(NAME, T, STORED)                                                                                       \
    extern "C" void NAME(const Layer *layers, int count, double lr, double momentum, double weight_decay,             \
                         uint32_t seed, int threads) {                                                                \
        step<T, STORED>(layers, count, {T(lr), T(momentum), T(weight_decay)}, seed, threads);                         \
    }
EXPORT(step_float32, float, float)
EXPORT(step_float64, double, double)
EXPORT(step_bfloat16, float, BFloat16)
