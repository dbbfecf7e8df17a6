// Rows kept as 16-bit integers, in half of the memory of float32, and their nearest centroids.

#pragma once

#include "matrix.h"

namespace deepclust {

// The first iteration of Lloyd's algorithm on rows to be kept. IN x (n, d), mu (k, d); OUT rounded,
// of as many bytes as kmeans_rounded_bytes says, labels (n), sums (k, d), counts (k), n_open as
// below, and scatter: sum_i ||x_i - m||^2, m the mean of all rows, which NaN and Inf in x do not
// leave finite.
template <typename T>
struct KMeansRound {
    Matrix<T> x, mu;
    int64_t n, d, k;
    void* rounded;
    int64_t* labels;
    double* sums;
    double* counts;
    int64_t* n_open;
    double* scatter;
    int n_threads;
};

// IN rounded, of x (n, d); mu (k, d); OUT labels (n), sq_dist (n), unless null, n_open: of how many
// rows integers left more than one centroid in question. x is read for these, and for sq_dist. With
// `sums`: IN before (n), labels; OUT sums (k, d), counts (k), what they gain as the new ones take
// the place of these.
template <typename T>
struct KMeansRounded {
    const void* rounded;
    Matrix<T> x, mu;
    int64_t n, d, k;
    int64_t* labels;
    T* sq_dist;
    const int64_t* before;
    double* sums;
    double* counts;
    int64_t* n_open;
    int n_threads;
};

}  // namespace deepclust
