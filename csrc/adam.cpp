// Memory: nothing beyond the arguments. Reads 14 n bytes and writes 14 n: the weight's copy is made
// while it is in a register.

#include "adam.h"

#include "kernels.h"
#include "lanes.h"
#include "panels.h"
#include "parallel.h"

namespace deepclust::DEEPCLUST_ISA {
namespace {

constexpr int64_t kChunk = 1 << 15;

// To the nearest, halves to even. A NaN's payload must not round up to something else.
inline uint16_t rounded(float value) {
    const uint32_t bits = bits_as<uint32_t>(value);
    const uint32_t nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return static_cast<uint16_t>(value == value ? nearest : 0x7fc0);
}

void step(const Adam& call, int64_t begin, int64_t end) {
    float* __restrict__ const weight = call.weight;
    float* __restrict__ const first = call.first;
    float* __restrict__ const second = call.second;
    const uint16_t* __restrict__ const gradient = call.gradient;
    uint16_t* __restrict__ const copy = call.copy;
    const auto single = [](double value) { return static_cast<float>(value); };
    const float beta1 = single(call.beta1), rest1 = single(1 - call.beta1);
    const float beta2 = single(call.beta2), rest2 = single(1 - call.beta2);
    const float root_scale = single(1 / call.root_correction);
    const float step_size = single(call.step_size), eps = single(call.eps);
    for (int64_t i = begin; i < end; ++i) {
        const float g = bits_as<float>(static_cast<uint32_t>(gradient[i]) << 16);
        const float m = beta1 * first[i] + rest1 * g;
        const float v = beta2 * second[i] + rest2 * g * g;
        const float w = weight[i] - step_size * m / (__builtin_sqrtf(v) * root_scale + eps);
        first[i] = m;
        second[i] = v;
        weight[i] = w;
        copy[i] = rounded(w);
    }
}

}  // namespace

void adam(const Adam& call) {
    const int64_t n_chunks = (call.n + kChunk - 1) / kChunk;
    const double work = 20.0 * static_cast<double>(call.n);
    for_each_chunk(n_chunks, useful_threads(call.n_threads, n_chunks, work),
                   [&](int64_t chunk, int) {
                       step(call, chunk * kChunk, least(call.n, (chunk + 1) * kChunk));
                   });
}

}  // namespace deepclust::DEEPCLUST_ISA
