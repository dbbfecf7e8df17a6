// f_j = sum_i e_ij / sum_l e_il, in double; labels_i = argmax_j s_ij, ties to the lowest index.
//
// Memory: the head, and f for each of at most kParts parts of the points, which are added up in
// order. Reads n d numbers, writes n labels; 2 n k d operations.

#include "frequencies.h"

#include "blocks.h"
#include "kernels.h"

namespace deepclust::DEEPCLUST_ISA {
namespace {

// IN s (k, kPoints): products, overwritten; n_rows <= kPoints. OUT labels; IN/OUT f.
template <Form kForm, typename T>
void add_frequencies(const PackedHead<T>& head, const T* sq_norm, int64_t n_rows, T* s,
                     int64_t* labels, double* f) {
    PerPoint<T> sum;
    PerPoint<IntLike<T>> label;
    weigh<kForm, true>(head, sq_norm, s, sum, label);
    T present[kPoints<T>];
    for (int i = 0; i < kPoints<T>; ++i) present[i] = i < n_rows ? T(1) : T(0);
    for (int v = 0; v < kVectors; ++v) sum[v] = load(present + v * kLanes<T>) / sum[v];
    for (int64_t j = 0; j < head.k; ++j) {
        DoubleLanes<T> q = {};
        for (int v = 0; v < kVectors; ++v)
            q += widen<T>(load(s + j * kPoints<T> + v * kLanes<T>) * sum[v]);
        f[j] += sum_of_doubles<T>(q);
    }
    for (int i = 0; i < n_rows; ++i) labels[i] = label[i / kLanes<T>][i % kLanes<T>];
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
    const BadRow bad = for_each_with_memory<T>(
        parts.count, layout, work_of(head, call.n), call.n_threads, head.bad,
        [&](int64_t part, T* memory) {
            double* const mine = &f[part * k];
            for (int64_t j = 0; j < k; ++j) mine[j] = 0;
            n_changed[part] = 0;
            BadRow found;
            for (int64_t block = parts.first(part); block < parts.first(part + 1); ++block) {
                const Scored<T> scored = place.at(memory);
                const int64_t first = block * grid.block_rows, n_rows = grid.rows_of(block);
                found.note(score_block(head, call.z, call.n, first, n_rows, scored, call.check));
                for (int64_t at = 0; at < n_rows; at += kPoints<T>)
                    with_form(head.form, [&](auto form) {
                        add_frequencies<form()>(head, scored.sq_norms + at,
                                                least(kPoints<T>, n_rows - at),
                                                scored.s + at / kPoints<T> * head.scores_size(),
                                                call.labels + first + at, mine);
                    });
                for (int64_t i = first; i < first + n_rows; ++i)
                    n_changed[part] +=
                        call.previous == nullptr || call.labels[i] != call.previous[i];
            }
            return found;
        });
    for (int64_t j = 0; j < k; ++j) {
        call.f[j] = 0;
        for (int64_t part = 0; part < parts.count; ++part) call.f[j] += f[part * k + j];
    }
    *call.n_changed = 0;
    for (int64_t part = 0; part < parts.count; ++part) *call.n_changed += n_changed[part];
    return bad;
}

template BadRow frequencies(const Frequencies<float>&);
template BadRow frequencies(const Frequencies<double>&);

}  // namespace deepclust::DEEPCLUST_ISA
