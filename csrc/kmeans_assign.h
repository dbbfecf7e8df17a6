// Hard assignment: labels_i = argmin_j ||x_i - mu_j||^2, sq_dist_i the minimum.

#pragma once

#include "matrix.h"

namespace deepclust {

// IN x (n, d), mu (k, d); OUT labels (n), sq_dist (n), unless null. With `sums`, the centroid
// update in the same pass: IN weight (n) or null: all 1; OUT sums (k, d), counts (k). There, with
// `rows` (n), row i is row rows[i] of x, which has any number of them: nothing checks that it is
// there; with `before` (n), sums and counts are what they gain as labels take the place of these.
template <typename T>
struct KMeansAssign {
    Matrix<T> x, mu;
    int64_t n, d, k;
    int64_t* labels;
    T* sq_dist;
    const T* weight;
    double* sums;
    double* counts;
    int n_threads;
    bool check;
    const int64_t* rows = nullptr;
    const int64_t* before = nullptr;
};

}  // namespace deepclust
