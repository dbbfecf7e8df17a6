// sums_j = sum_{i: labels_i = j} w_i x_i, counts_j = sum_{i: labels_i = j} w_i, in double.
//
// Memory: the sums of label_sums.h. Reads n d numbers; n d additions.

#include "kmeans_update.h"

#include "kernels.h"
#include "label_sums.h"

namespace deepclust::DEEPCLUST_ISA {
namespace {

template <typename T>
inline void add_row(const T* x, int64_t x_stride, double weight, int64_t d, double* to) {
    for (int64_t e = 0; e < d; ++e) to[e] += weight * x[e * x_stride];
}

}  // namespace

template <typename T>
BadRow kmeans_update(const KMeansUpdate<T>& call) {
    const int64_t d = call.d;
    const LabelSums sums(call.n, call.k, d), counts(call.n, call.k, 1);
    const Buffer<int64_t> bad_label(sums.n_tasks());
    sums.run(call.sums, call.n_threads, [&](const LabelTask& task) {
        const int64_t width = task.stop - task.begin;
        bad_label[task.index] = -1;
        for (int64_t i = task.first; i < task.end; ++i) {
            const int64_t label = call.labels[i];
            if (label < 0 || label >= call.k) {
                bad_label[task.index] = i;
                break;
            }
            const T* const x = call.x.row(i) + task.begin * call.x.col_stride;
            const double weight = call.weight == nullptr ? 1.0 : call.weight[i];
            double* const to = task.sums + label * d + task.begin;
            if (call.x.col_stride == 1)  // a constant stride makes it vectorise
                add_row(x, 1, weight, width, to);
            else
                add_row(x, call.x.col_stride, weight, width, to);
        }
    });
    BadRow bad;
    for (int64_t task = 0; task < sums.n_tasks(); ++task)
        if (bad_label[task] >= 0) bad.note({kLabels, bad_label[task]});
    if (bad.input >= 0) return bad;
    counts.run(call.counts, call.n_threads, [&](const LabelTask& task) {
        for (int64_t i = task.first; i < task.end; ++i)
            task.sums[call.labels[i]] += call.weight == nullptr ? 1.0 : call.weight[i];
    });
    if (!call.check) return bad;
    bool finite = true;  // and where all sums are, all terms were
    for (int64_t i = 0; i < call.k * d; ++i) finite &= std::isfinite(call.sums[i]);
    for (int64_t j = 0; j < call.k; ++j) finite &= std::isfinite(call.counts[j]);
    if (finite) return bad;
    const BadRow in_x = first_bad_row(0, call.x, 0, call.n, d);
    if (in_x.input >= 0 || call.weight == nullptr) return in_x;
    return first_bad_row(1, Matrix<T>{call.weight, 1, 1}, 0, call.n, 1);
}

template BadRow kmeans_update(const KMeansUpdate<float>&);
template BadRow kmeans_update(const KMeansUpdate<double>&);

}  // namespace deepclust::DEEPCLUST_ISA
