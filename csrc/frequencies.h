// Cluster frequencies f_j = sum_i q_ij, labels_i = argmax_j s_ij, and how many labels changed.

#pragma once

#include "matrix.h"

namespace deepclust {

// IN z (n, d), previous (n) or null; OUT f (k), labels (n), n_changed (n where previous is null).
template <typename T>
struct Frequencies {
    Matrix<T> z;
    int64_t n;
    Head<T> head;
    const int64_t* previous;
    double* f;
    int64_t* labels;
    int64_t* n_changed;
    int n_threads;
    bool check;
};

}  // namespace deepclust
