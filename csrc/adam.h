// A step of Adam on weights that are kept in float32 and used in bfloat16.

#pragma once

#include <cstdint>

namespace deepclust {

// With m = first, v = second, g = gradient, all of n numbers:
//     m <- beta1 m + (1 - beta1) g;    v <- beta2 v + (1 - beta2) g^2
//     weight <- weight - step_size m / (sqrt(v) / root_correction + eps);    copy <- weight
// IN/OUT weight, first, second; IN gradient, OUT copy: the upper halves of float32s.
struct Adam {
    float* weight;
    float* first;
    float* second;
    const uint16_t* gradient;
    uint16_t* copy;
    int64_t n;
    double step_size, beta1, beta2, root_correction, eps;
    int n_threads;
};

}  // namespace deepclust
