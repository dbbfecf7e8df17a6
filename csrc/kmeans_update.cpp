// sums_j = sum_{i: labels_i = j} w_i x_i, counts_j = sum_{i: labels_i = j} w_i, in double.
//
// Memory: the sums of label_sums.h. Reads n d numbers; n d additions.

#include "kmeans_update.h"

#include "kernels.h"
#include "label_sums.h"

namespace deepclust::DEEPCLUST_ISA {

template <typename T>
BadRow kmeans_update(const KMeansUpdate<T>& call) {
    const WeightedRows<T> rows{call.x, call.n, call.d, call.k, call.labels, call.weight};
    const int64_t width = sums_width<T>(call.d);
    const LabelSums label_sums(call.n, call.k, width);
    const Buffer<double> wide(call.k * width);
    const Buffer<int64_t> bad_label(label_sums.n_tasks());
    label_sums.run(wide.get(), call.n_threads,
                   [&](const LabelTask& task) { bad_label[task.index] = rows.add(task); });
    BadRow bad;
    for (int64_t task = 0; task < label_sums.n_tasks(); ++task)
        if (bad_label[task] >= 0) bad.note({kLabels, bad_label[task]});
    if (bad.input >= 0) return bad;
    rows.split(wide.get(), call.sums, call.counts);
    return call.check ? rows.find_bad(call.sums, call.counts) : bad;
}

template BadRow kmeans_update(const KMeansUpdate<float>&);
template BadRow kmeans_update(const KMeansUpdate<double>&);

}  // namespace deepclust::DEEPCLUST_ISA
