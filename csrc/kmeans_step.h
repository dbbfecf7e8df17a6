// Hard assignment of rows that were assigned before, to centroids that have moved since.

#pragma once

#include "matrix.h"

namespace deepclust {

// IN x (n, d), mu (k, d), moved (k): at least the distance each centroid moved since the last call;
// IN/OUT labels (n), upper (n): at least the distance of a row to its label, lower (n, groups): at
// most that to any other centroid of the group;
// OUT sq_dist (n) to the labels, unless null.
template <typename T>
struct KMeansStep {
    Matrix<T> x, mu;
    int64_t n, d, k;
    const T* moved;
    int64_t* labels;
    T* upper;
    T* lower;
    T* sq_dist;
    int n_threads;
};

}  // namespace deepclust
