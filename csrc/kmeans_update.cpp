// sums_j = sum_{i: labels_i = j} w_i x_i, counts_j = sum_{i: labels_i = j} w_i, in double.
//
// From the labels before, the same of what changed alone: a row whose label is another than before
// is added where it came, and taken from where it was; no other row is read.
//
// Memory: the sums of label_sums.h. Reads n d numbers; n d additions. Of changes, 2 n labels, d
// numbers of each row that changed, and no more bytes of sums than of labels.

#include "kmeans_update.h"

#include "kernels.h"
#include "label_sums.h"

namespace deepclust::DEEPCLUST_ISA {

template <typename T>
BadRow kmeans_update(const KMeansUpdate<T>& call) {
    const WeightedRows<T> rows{call.x,      call.n,      call.d,     call.k,
                               call.labels, call.weight, call.before};
    const int64_t width = sums_width<T>(call.d);
    const int64_t labels_bytes = 2 * call.n * int64_t(sizeof(int64_t));
    const LabelSums label_sums(
        call.n, call.k, width,
        call.before == nullptr ? kPartsBytes : least(kPartsBytes, labels_bytes));
    const Buffer<double> wide(call.k * width);
    const Buffer<int64_t> bad_label(label_sums.n_tasks());
    label_sums.run(wide.get(), call.n_threads,
                   [&](const LabelTask& task) { bad_label[task.index] = rows.add(task); });
    BadRow bad;
    for (int64_t task = 0; task < label_sums.n_tasks(); ++task)
        if (const int64_t row = bad_label[task]; row >= 0)
            bad.note({rows.is_label(call.labels[row]) ? kBefore : kLabels, row});
    if (bad.input >= 0) return bad;
    rows.split(wide.get(), call.sums, call.counts);
    return call.check ? rows.find_bad(call.sums, call.counts) : bad;
}

template BadRow kmeans_update(const KMeansUpdate<float>&);
template BadRow kmeans_update(const KMeansUpdate<double>&);

}  // namespace deepclust::DEEPCLUST_ISA
