// Centroid update: sums_j = sum of w_i x_i and counts_j = sum of w_i over the rows with label j.

#pragma once

#include "matrix.h"

namespace deepclust {

// IN x (n, d), labels (n) in [0, k), weight (n) or null: all 1, before (n) like labels or null:
// sums and counts of all rows, not of changes; OUT sums (k, d), counts (k).
template <typename T>
struct KMeansUpdate {
    Matrix<T> x;
    int64_t n, d, k;
    const int64_t* labels;
    const T* weight;
    double* sums;
    double* counts;
    int n_threads;
    bool check;
    const int64_t* before = nullptr;
};

}  // namespace deepclust
