// Hard assignment: labels_i = argmin_j ||x_i - mu_j||^2, sq_dist_i the minimum.

#pragma once

#include "matrix.h"

namespace deepclust {

// IN x (n, d), mu (k, d); OUT labels (n), sq_dist (n).
template <typename T>
struct KMeansAssign {
    Matrix<T> x, mu;
    int64_t n, d, k;
    int64_t* labels;
    T* sq_dist;
    int n_threads;
    bool check;
};

}  // namespace deepclust
