// f_j = sum_i e_ij / sum_l e_il, in double; labels_i = argmax_j s_ij, ties to the lowest index.
//
// Memory: the head, and f for each of at most kParts parts of the points, which are added up in
// order. Reads n d numbers, writes n labels; 2 n k d operations.

#include "frequencies.h"

#include "blocks.h"
#include "kernels.h"

namespace deepclust::DEEPCLUST_ISA {
namespace {

// IN s (k, kPoints): products. OUT s: weights; share (kPoints): what turns a point's weights to q,
// 0 for absent points, of which n_rows are there; labels (n_rows).
template <Form kForm, typename T>
void weigh_and_label(const PackedHead<T>& head, const T* sq_norm, int64_t n_rows, T* s, T* share,
                     int64_t* labels) {
    PerPoint<T> sum;
    PerPoint<IntLike<T>> label;
    weigh<kForm, true>(head, sq_norm, s, sum, label);
    for (int v = 0; v < kVectors; ++v) sum[v] = T(1) / sum[v];
    clear_absent<T>(n_rows, sum);
    for (int v = 0; v < kVectors; ++v) store<T>(share + v * kLanes<T>, sum[v]);
    for (int64_t i = 0; i < n_rows; ++i) labels[i] = label[i / kLanes<T>][i % kLanes<T>];
}

// IN s (n_panels, s_size): weights; share (n_panels, kPoints). IN/OUT f (k, kLanes): sums of q.
template <typename T>
void add_shares(const T* s, int64_t s_size, const T* share, int64_t n_panels, int64_t k,
                double* f) {
    for (int64_t j = 0; j < k; ++j, f += kLanes<T>) {
        Lanes<T> q[kVectors] = {};  // over at most kRunLength points
        for (int64_t p = 0; p < n_panels; ++p)
            for (int v = 0; v < kVectors; ++v)
                q[v] += load(s + p * s_size + j * kPoints<T> + v * kLanes<T>) *
                        load(share + p * kPoints<T> + v * kLanes<T>);
        for (int v = 0; v < kVectors; ++v) add_widened<T>(f, q[v]);
    }
}

}  // namespace

template <typename T>
BadRow frequencies(const Frequencies<T>& call) {
    const PackedHead<T> head(call.head, false, call.check);
    const Grid grid = grid_for(head, call.n);
    const int64_t k = head.k;
    const Parts parts(grid, k, 4);
    const Buffer<double> f(parts.count * k);
    const Buffer<int64_t> n_changed(parts.count);
    Layout layout;
    const ScoredLayout<T> place(layout, head, grid);
    const int64_t shares_at = layout.add(grid.block_rows);
    const int64_t f_at = layout.add(k * kLanes<T> * int64_t(sizeof(double) / sizeof(T)));
    const BadRow bad = for_each_with_memory<T>(
        parts.count, layout, work_of(head, call.n), call.n_threads, head.bad,
        [&](int64_t part, T* memory) {
            const Scored<T> scored = place.at(memory);
            T* const shares = memory + shares_at;
            auto* const f_lanes = reinterpret_cast<double*>(memory + f_at);  // (k, kLanes)
            for (int64_t i = 0; i < k * kLanes<T>; ++i) f_lanes[i] = 0;
            n_changed[part] = 0;
            BadRow found;
            for (int64_t block = parts.first(part); block < parts.first(part + 1); ++block) {
                const int64_t first = block * grid.block_rows, n_rows = grid.rows_of(block);
                found.note(score_block(head, call.z, call.n, first, n_rows, scored, call.check));
                int64_t p = 0;
                for (int64_t at = 0; at < n_rows; at += kPoints<T>, ++p)
                    with_form(head.form, [&](auto form) {
                        weigh_and_label<form()>(head, scored.sq_norms + at,
                                                least(kPoints<T>, n_rows - at),
                                                scored.s + p * head.scores_size(), shares + at,
                                                call.labels + first + at);
                    });
                add_shares(scored.s, head.scores_size(), shares, p, k, f_lanes);
                for (int64_t i = first; i < first + n_rows; ++i)
                    n_changed[part] +=
                        call.previous == nullptr || call.labels[i] != call.previous[i];
            }
            for (int64_t j = 0; j < k; ++j)
                f[part * k + j] = sum_of_doubles<T>(f_lanes + j * kLanes<T>);
            return found;
        });
    for (int64_t j = 0; j < k; ++j) call.f[j] = 0;
    for (int64_t part = 0; part < parts.count; ++part) add_numbers(&f[part * k], k, call.f);
    *call.n_changed = 0;
    for (int64_t part = 0; part < parts.count; ++part) *call.n_changed += n_changed[part];
    return bad;
}

template BadRow frequencies(const Frequencies<float>&);
template BadRow frequencies(const Frequencies<double>&);

}  // namespace deepclust::DEEPCLUST_ISA
