// Rows kept as 16-bit integers, in half of the memory of float32, and their nearest centroids.

#pragma once

#include "matrix.h"

namespace deepclust {

// IN x (n, d); OUT rounded, of as many bytes as kmeans_rounded_bytes says.
template <typename T>
struct KMeansRound {
    Matrix<T> x;
    int64_t n, d;
    void* rounded;
    int n_threads;
};

// IN rounded, of x (n, d); mu (k, d); OUT labels (n), sq_dist (n), unless null, n_open: of how many
// rows integers left more than one centroid in question. x is read for these, and for sq_dist.
template <typename T>
struct KMeansRounded {
    const void* rounded;
    Matrix<T> x, mu;
    int64_t n, d, k;
    int64_t* labels;
    T* sq_dist;
    int64_t* n_open;
    int n_threads;
};

}  // namespace deepclust
