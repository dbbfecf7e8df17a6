// L = sum_i ||z_i - mu_{l_i}||^2, dz_i = 2 (z_i - mu_{l_i}), dmu_j = -sum of dz_i over l_i = j.
//
// Memory: the sums of label_sums.h. Reads n d numbers, and writes as many with gradients; 3 n d
// operations, or 5.

#include "kmeans_loss.h"

#include "kernels.h"
#include "label_sums.h"

namespace deepclust::DEEPCLUST_ISA {
namespace {

// A row's numbers, its label's centroid's, and where their gradients go, unless dz is null. The
// centroids' are padded to whole lanes.
template <typename T>
struct Row {
    const T *z, *mu;
    T* dz;
    double* dmu;
};

// Columns [e, e + count) of a row, count <= kLanes. kRoomy: whole lanes may be read past a row's
// end, and written, too, for the next row mends that. IN/OUT squares: sums of (z - mu)^2.
template <bool kRoomy, typename T>
inline void add_lanes(const Row<T>& row, int64_t e, int64_t count, T factor, Lanes<T>& squares) {
    Lanes<T> z;
    if constexpr (kRoomy)
        z = first_lanes<T>(load(row.z + e), count);
    else
        z = load_some(row.z + e, count);
    const Lanes<T> difference = z - load(row.mu + e);
    squares += difference * difference;
    if (row.dz == nullptr) return;
    const Lanes<T> gradient = difference * factor;
    if constexpr (kRoomy)
        store<T>(row.dz + e, gradient);
    else
        store_some(row.dz + e, gradient, count);
    add_widened<T>(row.dmu + e, -gradient);
}

// The rows of a task, kWidth contiguous columns of them unless that is 0. mu (k, stride) and
// task.sums have zeros in their padding. Returns the rows' loss; OUT bad_label: the first row whose
// label is none, or -1.
template <int kWidth, typename T>
double add_rows(const KMeansLoss<T>& call, const T* mu, int64_t stride, const LabelTask& task,
                T factor, int64_t& bad_label) {
    constexpr int64_t kL = kLanes<T>;
    const int64_t width = kWidth > 0 ? kWidth : least(call.d, task.stop) - task.begin;
    const bool strided = call.z.col_stride != 1;
    const Buffer<T> copy(strided ? width : 0);
    double loss[kL] = {};
    bad_label = -1;
    for (int64_t i = task.first; i < task.end; ++i) {
        const int64_t label = call.labels[i];
        if (label < 0 || label >= call.k) {
            bad_label = i;
            break;
        }
        const int64_t at = label * stride + task.begin;
        Row<T> row{call.z.row(i) + task.begin * call.z.col_stride, mu + at,
                   call.dz == nullptr ? nullptr : call.dz + i * call.d + task.begin,
                   task.sums + at};
        if (kWidth > 0 && i + kL < task.end) {
            Lanes<T> squares = {};
            for (int64_t e = 0; e < width; e += kL)
                add_lanes<true>(row, e, least(kL, width - e), factor, squares);
            add_widened<T>(loss, squares);
            continue;
        }
        if (strided) {
            for (int64_t e = 0; e < width; ++e) copy[e] = row.z[e * call.z.col_stride];
            row.z = copy.get();
        }
        for (int64_t first = 0; first < width; first += kRunLength * kL) {
            const int64_t end = least(width, first + kRunLength * kL);
            Lanes<T> squares = {};
            int64_t e = first;
            for (; e + kL <= end; e += kL) add_lanes<true>(row, e, kL, factor, squares);
            if (e < end) add_lanes<false>(row, e, end - e, factor, squares);
            add_widened<T>(loss, squares);
        }
    }
    return sum_of_doubles<T>(loss);
}

}  // namespace

template <typename T>
BadRow kmeans_loss(const KMeansLoss<T>& call) {
    const int64_t d = call.d;
    const int64_t stride = round_up<T>(d);
    const LabelSums label_sums(call.n, call.k, stride);
    const Buffer<double> sums(call.k * stride);
    const Buffer<T> mu(call.k * stride);
    for (int64_t j = 0; j < call.k; ++j)
        for (int64_t e = 0; e < stride; ++e) mu[j * stride + e] = e < d ? call.mu(j, e) : T(0);
    const Buffer<double> losses(label_sums.n_tasks());
    const Buffer<int64_t> bad_label(label_sums.n_tasks());
    const T factor = static_cast<T>(2 * call.scale);
    label_sums.run(sums.get(), call.n_threads, [&](const LabelTask& task) {
        const auto add = [&](auto constant) {
            losses[task.index] =
                add_rows<constant()>(call, mu.get(), stride, task, factor, bad_label[task.index]);
        };
        if (is_narrow(call.z, d))
            with_constant<kNarrow>(static_cast<int>(d), add);
        else
            add(std::integral_constant<int, 0>());
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
        for (int64_t j = 0; j < call.k; ++j)
            for (int64_t e = 0; e < d; ++e)
                call.dmu[j * d + e] = static_cast<T>(sums[j * stride + e]);
    if (!call.check) return bad;
    bad.note(first_bad_row(1, call.mu, 0, call.k, d));
    if (!std::isfinite(loss)) bad.note(first_bad_row(0, call.z, 0, call.n, d));
    return bad;
}

template BadRow kmeans_loss(const KMeansLoss<float>&);
template BadRow kmeans_loss(const KMeansLoss<double>&);

}  // namespace deepclust::DEEPCLUST_ISA
