// What the kernels take: matrices with strides, and the three heads.

#pragma once

#include <cstdint>

namespace deepclust {

// A matrix in memory; strides count elements and may be zero or negative.
template <typename T>
struct Matrix {
    const T* data;
    int64_t row_stride, col_stride;

    const T* row(int64_t i) const { return data + i * row_stride; }
    T operator()(int64_t i, int64_t j) const { return data[i * row_stride + j * col_stride]; }
};

enum class HeadKind { kStudentT, kLinear, kGaussian };

// A score s_ij for each point and cluster; params are contiguous, k clusters of d numbers each:
//   kStudentT  centroids (k, d)                               s = -(nu+1)/2 log1p(||z - mu||^2 /
//   nu) kLinear    weight (k, d), bias (k) or null                s = z . theta + b kGaussian means
//   (k, d), log_var (k, d), log_weights (k)  s = log pi + log N(z; mu, v)
template <typename T>
struct Head {
    HeadKind kind;
    T nu;
    int64_t k, d;
    const T* params[3];
};

// Inputs by number: the points are 0, and a head's parameters (the centroids, a weight) from 1 on.
constexpr int kTarget = 4, kLabels = 5, kBefore = 6;

// The first row with NaN or Inf, a negative target, or a label out of range.
struct BadRow {
    int input = -1;  // -1: none
    int64_t row = -1;

    // Keeps the one that a reader would meet first.
    void note(BadRow other) {
        if (other.input < 0) return;
        if (input < 0 || other.input < input || (other.input == input && other.row < row))
            *this = other;
    }
};

}  // namespace deepclust
