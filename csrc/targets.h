// The target from a stored q: p_ij = (q_ij (u_j / f_j)^(1/2))^power, divided by its row sum.

#pragma once

#include "matrix.h"

namespace deepclust {

// IN q (n, k); f (k) or null: its column sums; u (k) or null: uniform. OUT p (n, k). power: 1 or 2.
template <typename T>
struct Targets {
    Matrix<T> q;
    int64_t n, k;
    const double* f;
    const double* u;
    double power;
    T* p;
    int n_threads;
    bool check;
};

}  // namespace deepclust
