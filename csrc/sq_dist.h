// Squared distances by direct differences, which decide where products round too much.

#pragma once

#include "lanes.h"
#include "matrix.h"

namespace deepclust::DEEPCLUST_ISA {

// sum_e (x_e - mu_e)^2, in kRun interleaved running sums.
// Never inlined, where a multiplication and an addition may be fused at one place and not at
// another.
template <typename T>
__attribute__((noinline)) T sq_dist_between(const T* x, const T* mu, int64_t d) {
    constexpr int kRun = 16;
    T sum[kRun] = {};
    int64_t e = 0;
    for (; e + kRun <= d; e += kRun)
        for (int i = 0; i < kRun; ++i) {
            const T difference = x[e + i] - mu[e + i];
            sum[i] += difference * difference;
        }
    for (int i = 0; e < d; ++e, ++i) {
        const T difference = x[e] - mu[e];
        sum[i] += difference * difference;
    }
    for (int half = kRun / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
    return sum[0];
}

// Up to this width kmeans_assign.cpp decides by direct differences alone, added up in order.
constexpr int64_t kDirectWidth = 16;

// The squared distance that decides, everywhere alike.
template <typename T>
__attribute__((noinline)) T deciding_sq_dist(const T* x, const T* mu, int64_t d) {
    if (d > kDirectWidth) return sq_dist_between(x, mu, d);
    // In lanes, all of them the same, as add_sq_differences has them: of numbers a compiler may
    // fuse other multiplications with their additions than it does of lanes.
    Lanes<T> sum = {};
    for (int64_t e = 0; e < d; ++e) {
        const Lanes<T> difference = broadcast(x[e]) - broadcast(mu[e]);
        sum += difference * difference;
    }
    return sum[0];
}

// Row i of x with its numbers side by side: where it is, or copied there.
template <typename T>
inline const T* row_of(Matrix<T> x, int64_t i, int64_t d, T* copy) {
    if (x.col_stride == 1) return x.row(i);
    for (int64_t e = 0; e < d; ++e) copy[e] = x(i, e);
    return copy;
}

// Calls row i, which the processor does not foresee, into the cache. Always inlined: of a function
// without another effect GCC drops the calls.
template <typename T>
inline __attribute__((always_inline)) void call_ahead(Matrix<T> x, int64_t i, int64_t d) {
    constexpr int64_t kLine = 64 / sizeof(T);
    if (x.col_stride == 1)
        for (int64_t e = 0; e < d; e += kLine) __builtin_prefetch(x.row(i) + e);
}

}  // namespace deepclust::DEEPCLUST_ISA
