// q_ij = e_ij / sum_l e_il, e_ij = exp(s_ij - max_l s_il): heads.h has the scores.
//
// Backward: ds_ij = q_ij (dq_ij - sum_l q_il dq_il), then pull_back.h. The distances are computed
// again, for nothing but q is kept.
//
// Memory: the head twice over; for each thread a block of points and their scores. Reads n d
// numbers and writes n k; 2 n k d operations, and 6 n k d for backward.

#include "assign.h"

#include "kernels.h"
#include "pull_back.h"

namespace deepclust::DEEPCLUST_ISA {
namespace {

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

}  // namespace

template <typename T>
BadRow assign_forward(const AssignForward<T>& call) {
    const PackedHead<T> head(call.head, false, call.check);
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
