// The k-means loss sum_i ||z_i - mu_{labels_i}||^2, with its gradients.

#pragma once

#include "matrix.h"

namespace deepclust {

// IN z (n, d), mu (k, d), labels (n) in [0, k); OUT loss, and unless dz is null dz (n, d) and
// dmu (k, d), all of them times `scale`.
template <typename T>
struct KMeansLoss {
    Matrix<T> z, mu;
    int64_t n, d, k;
    const int64_t* labels;
    double scale;
    T* loss;
    T* dz;
    T* dmu;
    int n_threads;
    bool check;
};

}  // namespace deepclust
