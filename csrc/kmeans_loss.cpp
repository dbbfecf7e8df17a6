// L = sum_i ||z_i - mu_{l_i}||^2, dz_i = 2 (z_i - mu_{l_i}), dmu_j = -sum of dz_i over l_i = j.
//
// Memory: the sums of label_sums.h. Reads n d numbers, and writes as many with gradients; 3 n d
// operations, or 5.

#include "kmeans_loss.h"

#include "kernels.h"
#include "label_sums.h"

namespace deepclust::DEEPCLUST_ISA {
namespace {

// Returns ||z - mu||^2 over d columns. OUT dz; IN/OUT dmu, unless they are null.
template <typename T>
inline double add_row(const T* z, int64_t z_stride, const T* mu, int64_t d, T factor, T* dz,
                      double* dmu) {
    constexpr int kRun = 16;  // running sums, side by side
    double sum[kRun] = {};
    int64_t e = 0;
    for (; e + kRun <= d; e += kRun)
        for (int i = 0; i < kRun; ++i) {
            const T difference = z[(e + i) * z_stride] - mu[e + i];
            sum[i] += double(difference) * difference;
        }
    for (; e < d; ++e) {
        const T difference = z[e * z_stride] - mu[e];
        sum[0] += double(difference) * difference;
    }
    for (e = 0; dz != nullptr && e < d; ++e) {
        dz[e] = factor * (z[e * z_stride] - mu[e]);
        dmu[e] -= dz[e];
    }
    for (int half = kRun / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
    return sum[0];
}

}  // namespace

template <typename T>
BadRow kmeans_loss(const KMeansLoss<T>& call) {
    const int64_t d = call.d;
    const LabelSums label_sums(call.n, call.k, d);
    const Buffer<double> sums(call.k * d);
    const Buffer<double> losses(label_sums.n_tasks());
    const Buffer<int64_t> bad_label(label_sums.n_tasks());
    const T factor = static_cast<T>(2 * call.scale);
    label_sums.run(sums.get(), call.n_threads, [&](const LabelTask& task) {
        bad_label[task.index] = -1;
        losses[task.index] = 0;
        for (int64_t i = task.first; i < task.end; ++i) {
            const int64_t label = call.labels[i];
            if (label < 0 || label >= call.k) {
                bad_label[task.index] = i;
                break;
            }
            const T* const z = call.z.row(i) + task.begin * call.z.col_stride;
            const T* const mu = call.mu.row(label) + task.begin;
            const int64_t width = task.stop - task.begin;
            T* const dz = call.dz == nullptr ? nullptr : call.dz + i * d + task.begin;
            double* const dmu = task.sums + label * d + task.begin;
            losses[task.index] += call.z.col_stride == 1  // a constant stride makes it vectorise
                                      ? add_row(z, 1, mu, width, factor, dz, dmu)
                                      : add_row(z, call.z.col_stride, mu, width, factor, dz, dmu);
        }
    });
    BadRow bad;
    double loss = 0;
    for (int64_t task = 0; task < label_sums.n_tasks(); ++task) {
        loss += losses[task];
        if (bad_label[task] >= 0) bad.note({kLabels, bad_label[task]});
    }
    if (bad.input >= 0) return bad;
    *call.loss = static_cast<T>(loss * call.scale);
    if (call.dmu != nullptr)
        for (int64_t i = 0; i < call.k * d; ++i) call.dmu[i] = static_cast<T>(sums[i]);
    if (!call.check) return bad;
    bad.note(first_bad_row(1, call.mu, 0, call.k, d));
    if (!std::isfinite(loss)) bad.note(first_bad_row(0, call.z, 0, call.n, d));
    return bad;
}

template BadRow kmeans_loss(const KMeansLoss<float>&);
template BadRow kmeans_loss(const KMeansLoss<double>&);

}  // namespace deepclust::DEEPCLUST_ISA
