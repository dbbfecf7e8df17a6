// The clustering loss, from a target p to the assignment q, with its gradients.

#pragma once

#include "matrix.h"

namespace deepclust {

// IN z (n, d); the target, which is p (n, k) if `given`, else the snapshot of these n points: p =
// softmax_j(power * s_old + bias_j), one-hot where power is infinite (s_old + bias_j then).
// OUT loss, and unless dparams[0] is null dz (n, d) and the gradients to the head's parameters, all
// of them times `scale`. kl: sum_ij p log(p / q), else -sum_ij p log q.
template <typename T>
struct TargetLoss {
    Matrix<T> z;
    int64_t n;
    Head<T> head;
    Matrix<T> p;
    Matrix<T> old_z;
    Head<T> old_head;
    const T* bias;
    double power;
    bool given;
    bool kl;
    double scale;
    T* loss;
    T* dz;
    T* dparams[3];
    int n_threads;
    bool check;
};

}  // namespace deepclust
