// A step of mini-batch k-means: centroids as running means of the rows that were nearest to them.

#pragma once

#include "matrix.h"

namespace deepclust {

// IN x (any, d), rows (n): which of its rows are the batch, or null: the first n, weight (n) or
// null: all 1, mu (k, d), counts (k): the weight that each centroid was given so far;
// OUT new_mu (k, d), new_counts (k), inertia (1): of the batch, before.
template <typename T>
struct KMeansBatch {
    Matrix<T> x;
    const int64_t* rows;
    Matrix<T> mu;
    int64_t n, d, k;
    const T* weight;
    const double* counts;
    T* new_mu;
    double* new_counts;
    double* inertia;
    int n_threads;
};

}  // namespace deepclust
