// Hard assignment: labels_i = argmin_j ||x_i - mu_j||^2, sq_dist_i the minimum.

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

// IN x (n, d), mu (k, d); OUT labels (n,), sq_dist (n,). n >= 0, d, k, n_threads >= 1.
// Returns the first row of x with NaN or Inf, or -1; always -1 without check.
template <typename T>
int64_t kmeans_assign(Matrix<T> x, Matrix<T> mu, int64_t n, int64_t d, int64_t k, int64_t* labels,
                      T* sq_dist, int n_threads, bool check);

}  // namespace deepclust
