// Soft assignment: q_ij = softmax_j(s_ij), and its gradients.

#pragma once

#include "matrix.h"

namespace deepclust {

// IN z (n, d); OUT q (n, k). Returns the first bad row, if `check` asks for it.
template <typename T>
struct AssignForward {
    Matrix<T> z;
    int64_t n;
    Head<T> head;
    T* q;
    int n_threads;
    bool check;
};

// IN dq, q (n, k), z (n, d); OUT dz (n, d) and the gradients to the head's parameters.
template <typename T>
struct AssignBackward {
    Matrix<T> dq, q, z;
    int64_t n;
    Head<T> head;
    T* dz;
    T* dparams[3];
    int n_threads;
};

}  // namespace deepclust
