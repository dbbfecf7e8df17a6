// A step of mini-batch k-means (Sculley, 2010), on the rows x_i of a batch:
//
//   labels_i = argmin_j ||x_i - mu_j||^2         inertia = sum_i w_i ||x_i - mu_{labels_i}||^2
//
//   n'_j = n_j + sum_{i: labels_i = j} w_i
//   mu'_j = (n_j mu_j + sum_{i: labels_i = j} w_i x_i) / n'_j, or mu_j where n'_j = 0
//
// kmeans_assign.cpp finds labels and sums. Sums and means are in double, rounded where the torch
// code of the same step rounds them, so that both give the same bits from the same sums.
//
// Memory: labels and distances of the batch, k (d + 1) sums. Reads n d + k d numbers; 2 n k d
// operations, or 3 n k d, and 3 k d.

#include "kmeans_batch.h"

#include "blocks.h"
#include "kernels.h"

namespace deepclust::DEEPCLUST_ISA {
namespace {

// sum_i w_i values_i, in as many running sums as there are lanes.
template <typename T>
double weighted_sum(const T* values, const T* weight, int64_t n) {
    double sums[kLanes<T>] = {};
    int64_t i = 0;
    for (; weight == nullptr && i + kLanes<T> <= n; i += kLanes<T>)
        add_widened<T>(sums, load(values + i));
    for (; i < n; ++i)
        sums[i % kLanes<T>] += (weight == nullptr ? 1.0 : double(weight[i])) * values[i];
    return sum_of_doubles<T>(sums);
}

// OUT product (d): n mu_j. Never inlined, or the multiplication may be fused with the addition.
template <typename T>
__attribute__((noinline)) void multiply(Matrix<T> mu, int64_t j, int64_t d, double n,
                                        double* product) {
    for (int64_t e = 0; e < d; ++e) product[e] = n * mu(j, e);
}

}  // namespace

template <typename T>
BadRow kmeans_batch(const KMeansBatch<T>& call) {
    const int64_t n = call.n, d = call.d, k = call.k;
    const Buffer<int64_t> labels(n);
    const Buffer<T> sq_dist(n);
    const Buffer<double> sums(k * d), given(k), product(d);
    kmeans_assign<T>({call.x, call.mu, n, d, k, labels.get(), sq_dist.get(), call.weight,
                      sums.get(), given.get(), call.n_threads, false, call.rows});
    *call.inertia = weighted_sum<T>(sq_dist.get(), call.weight, n);
    for (int64_t j = 0; j < k; ++j) {
        T* const to = call.new_mu + j * d;
        const double count = call.new_counts[j] = call.counts[j] + given[j];
        multiply(call.mu, j, d, call.counts[j], product.get());
        for (int64_t e = 0; e < d; ++e)
            to[e] =
                count > 0 ? static_cast<T>((sums[j * d + e] + product[e]) / count) : call.mu(j, e);
    }
    return {};
}

template BadRow kmeans_batch(const KMeansBatch<float>&);
template BadRow kmeans_batch(const KMeansBatch<double>&);

}  // namespace deepclust::DEEPCLUST_ISA
