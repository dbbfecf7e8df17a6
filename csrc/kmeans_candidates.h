// Candidates for a further centroid: how near each row would be, and what would be left in all.

#pragma once

#include "matrix.h"

namespace deepclust {

// IN x (n, d), candidates (k, d), nearest (n) or null: all Inf, weight (n) or null: all 1;
// OUT sq_dist (k, n), potentials (k).
template <typename T>
struct KMeansCandidates {
    Matrix<T> x, candidates;
    int64_t n, d, k;
    const T* nearest;
    const T* weight;
    T* sq_dist;
    double* potentials;
    int n_threads;
    bool check;
};

}  // namespace deepclust
