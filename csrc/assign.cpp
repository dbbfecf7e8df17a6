// q_ij = e_ij / sum_l e_il, e_ij = exp(s_ij - max_l s_il): heads.h has the scores.
//
// Backward: ds_ij = q_ij (dq_ij - sum_l q_il dq_il), then pull_back.h. The distances are computed
// again, for nothing but q is kept.
//
// q of few clusters is made by panels, and turned; of many, by rows.
//
// Memory: the head twice over; for each thread a block of points and their scores. Reads n d
// numbers and writes n k; 2 n k d operations, and 6 n k d for backward.

#include "assign.h"

#include "kernels.h"
#include "pull_back.h"
#include "rows.h"

namespace deepclust::DEEPCLUST_ISA {
namespace {

constexpr int64_t kManyClusters = 64;  // from here on q goes out by rows

// IN s (k, kPoints): products; dq, q. OUT s: gradients to the products.
template <Form kForm, typename T>
void fill_w(const PackedHead<T>& head, const T* sq_norm, const T* dq, const T* q, T* s) {
    PerPoint<T> best, inner = {};
    PerPoint<IntLike<T>> labels;
    to_keys<kForm, false>(head, sq_norm, s, best, labels);
    for (int64_t first = 0; first < head.k; first += kRunLength) {
        Lanes<T> run[kVectors] = {};
        for (int64_t j = first; j < least(first + kRunLength, head.k); ++j)
            for (int v = 0; v < kVectors; ++v) {
                const int64_t at = j * kPoints<T> + v * kLanes<T>;
                run[v] += load(q + at) * load(dq + at);
            }
        for (int v = 0; v < kVectors; ++v) inner[v] += run[v];
    }
    for (int64_t j = 0; j < head.k; ++j)
        for (int v = 0; v < kVectors; ++v) {
            const int64_t at = j * kPoints<T> + v * kLanes<T>;
            const Lanes<T> ds = load(q + at) * (load(dq + at) - inner[v]);
            Lanes<T> factor = {};
            if constexpr (kForm == Form::kRational) factor = inverse<T>(load(s + at));
            if constexpr (kForm == Form::kStudentT) factor = T(1) / (load(s + at) + head.nu);
            store<T>(s + at, to_product<kForm>(head, ds, factor));
        }
}

// OUT q (n, k), for few clusters: by panels.
template <typename T>
BadRow assign_panels(const AssignForward<T>& call, const PackedHead<T>& head) {
    const Grid grid = grid_for(head, call.n);
    Layout layout;
    const ScoredLayout<T> place(layout, head, grid);
    return for_each_with_memory<T>(
        grid.n_blocks, layout, work_of(head, call.n), call.n_threads, head.bad,
        [&](int64_t block, T* memory) {
            const Scored<T> scored = place.at(memory);
            const int64_t first = block * grid.block_rows, n_rows = grid.rows_of(block);
            const BadRow bad = score_block(head, call.z, call.n, first, n_rows, scored, call.check);
            for (int64_t at = 0; at < n_rows; at += kPoints<T>) {
                T* const s = scored.s + at / kPoints<T> * head.scores_size();
                PerPoint<T> sum;
                PerPoint<IntLike<T>> labels;
                with_form(head.form, [&](auto form) {
                    weigh<form(), false>(head, scored.sq_norms + at, s, sum, labels);
                });
                for (int v = 0; v < kVectors; ++v) sum[v] = T(1) / sum[v];
                store_panel(s, sum, least(kPoints<T>, n_rows - at), head.k,
                            call.q + (first + at) * head.k);
            }
            return bad;
        });
}

// OUT q (k): weights s times `factor`.
template <typename T>
inline void store_row(const T* s, T factor, int64_t k, T* q) {
    int64_t j = 0;
    for (; j + kLanes<T> <= k; j += kLanes<T>) store<T>(q + j, load(s + j) * factor);
    if (j < k) store_some(q + j, load(s + j) * factor, k - j);
}

// The same for many: by rows.
template <typename T>
BadRow assign_rows(const AssignForward<T>& call, const PackedHead<T>& head) {
    const ColumnLanes<T> columns(head);
    const Grid grid(call.n, kBlockRows);
    Layout layout;
    const int64_t features_at = layout.add(kBlockRows * head.stride);
    const int64_t norms_at = layout.add(kBlockRows);
    const int64_t folds_at = layout.add(kBlockRows * kLanes<T>);
    const int64_t s_at = layout.add(kBlockRows * columns.stride);
    return for_each_with_memory<T>(
        grid.n_blocks, layout, work_of(head, call.n), call.n_threads, head.bad,
        [&](int64_t block, T* memory) {
            T *const features = memory + features_at, *const sq_norm = memory + norms_at;
            T *const folds = memory + folds_at, *const s = memory + s_at;
            const int64_t first = block * kBlockRows, n_rows = grid.rows_of(block);
            const BadRow bad = load_rows(head, call.z, call.n, first, n_rows, features, folds,
                                         sq_norm, call.check);
            multiply_rows(head, columns, features, n_rows, s, call.q + first * head.k);
            for (int64_t at = 0; at < n_rows; at += kLanes<T>) {
                const int64_t end = least(at + kLanes<T>, n_rows);
                with_form(head.form, [&](auto form) {
                    for (int64_t i = at; i < end; ++i)
                        weigh_row<form()>(head, columns, sq_norm[i], s + i * columns.stride,
                                          folds + (i - at) * kLanes<T>);
                });
                T factor[kLanes<T>];
                store<T>(factor, T(1) / sum_folds(folds));
                for (int64_t i = at; i < end; ++i)
                    store_row(s + i * columns.stride, factor[i - at], head.k,
                              call.q + (first + i) * head.k);
            }
            return bad;
        });
}

}  // namespace

template <typename T>
BadRow assign_forward(const AssignForward<T>& call) {
    const bool by_panels = call.head.k < kManyClusters;
    const PackedHead<T> head(call.head, false, call.check, by_panels);
    return by_panels ? assign_panels(call, head) : assign_rows(call, head);
}

template <typename T>
BadRow assign_backward(const AssignBackward<T>& call) {
    const PackedHead<T> head(call.head, true, false);
    const Grid grid = grid_for(head, call.n);
    Layout layout;
    const PanelLayout<T> dq(layout, head.k), q(layout, head.k);
    return pull_back(head, call.head, grid, layout, 3 * work_of(head, call.n), call.n_threads,
                     call.dz, call.dparams, [&](int64_t block, const Scored<T>& scored, T* memory) {
                         const int64_t first = block * grid.block_rows,
                                       n_rows = grid.rows_of(block);
                         score_block(head, call.z, call.n, first, n_rows, scored, false);
                         for (int64_t at = 0; at < n_rows; at += kPoints<T>) {
                             const T* const dq_panel = dq.load(call.dq, call.n, first + at, memory);
                             const T* const q_panel = q.load(call.q, call.n, first + at, memory);
                             T* const s = scored.s + at / kPoints<T> * head.scores_size();
                             with_form(head.form, [&](auto form) {
                                 fill_w<form()>(head, scored.sq_norms + at, dq_panel, q_panel, s);
                             });
                         }
                         return BadRow{};
                     });
}

template BadRow assign_forward(const AssignForward<float>&);
template BadRow assign_forward(const AssignForward<double>&);
template BadRow assign_backward(const AssignBackward<float>&);
template BadRow assign_backward(const AssignBackward<double>&);

}  // namespace deepclust::DEEPCLUST_ISA
