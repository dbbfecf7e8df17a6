// p_ij = r_ij^power / sum_l r_il^power, r_ij = q_ij (u_j / f_j)^(1/2) over the row's largest.
//
// Divided by the row's largest, no power underflows where it matters. A row of zeros stays one.
//
// Memory: for f, a row of sums for each of at most kParts parts of the rows, added up in order; for
// each thread a panel. Reads n k numbers, twice without f, and writes as many.

#include "targets.h"

#include "blocks.h"
#include "kernels.h"

namespace deepclust::DEEPCLUST_ISA {
namespace {

// IN/OUT q (k, kPoints): to p, up to the factor `inverse`. Returns whether its values are finite
// and not negative.
template <typename T>
bool fill_target(int64_t k, const T* factor, bool square, T* q, PerPoint<T>& inverse) {
    const Lanes<T> tiny = broadcast(std::numeric_limits<T>::min());
    Lanes<T> lowest[kVectors] = {}, largest[kVectors], total[kVectors] = {};
    for (int v = 0; v < kVectors; ++v) largest[v] = tiny;
    for (int64_t j = 0; j < k; ++j)
        for (int v = 0; v < kVectors; ++v) {
            T* const at = q + j * kPoints<T> + v * kLanes<T>;
            const Lanes<T> value = load(at);
            const Lanes<T> ratio = value * factor[j];
            lowest[v] = min(value, lowest[v]);
            largest[v] = max(largest[v], ratio);
            total[v] += value;
            store<T>(at, ratio);
        }
    Lanes<T> sum[kVectors] = {};
    for (int v = 0; v < kVectors; ++v) largest[v] = T(1) / largest[v];
    for (int64_t first = 0; first < k; first += kRunLength) {
        Lanes<T> run[kVectors] = {};
        for (int64_t j = first; j < least(first + kRunLength, k); ++j)
            for (int v = 0; v < kVectors; ++v) {
                T* const at = q + j * kPoints<T> + v * kLanes<T>;
                Lanes<T> weight = load(at) * largest[v];
                if (square) weight *= weight;
                store<T>(at, weight);
                run[v] += weight;
            }
        for (int v = 0; v < kVectors; ++v) sum[v] += run[v];
    }
    for (int v = 0; v < kVectors; ++v) inverse[v] = T(1) / max(sum[v], tiny);
    bool good = true;
    for (int v = 0; v < kVectors; ++v)
        for (int i = 0; i < kLanes<T>; ++i)
            good &= lowest[v][i] >= 0 && total[v][i] < kInfinity<T>;  // false of NaN, too
    return good;
}

// OUT f (k): the column sums of q.
template <typename T>
void sum_columns(const Targets<T>& call, const Grid& grid, double* f) {
    const Parts parts(grid, call.k, kParts);
    const Buffer<double> sums(parts.count * call.k);
    const double work = double(call.n) * double(call.k);
    for_each_chunk(parts.count, useful_threads(call.n_threads, parts.count, work),
                   [&](int64_t part, int) {
                       double* const mine = &sums[part * call.k];
                       for (int64_t j = 0; j < call.k; ++j) mine[j] = 0;
                       const int64_t first = parts.first(part) * grid.block_rows;
                       const int64_t end = least(call.n, parts.first(part + 1) * grid.block_rows);
                       for (int64_t i = first; i < end; ++i) {
                           const T* const row = call.q.row(i);
                           if (call.q.col_stride == 1)
                               for (int64_t j = 0; j < call.k; ++j) mine[j] += row[j];
                           else
                               for (int64_t j = 0; j < call.k; ++j)
                                   mine[j] += row[j * call.q.col_stride];
                       }
                   });
    for (int64_t j = 0; j < call.k; ++j) {
        f[j] = 0;
        for (int64_t part = 0; part < parts.count; ++part) f[j] += sums[part * call.k + j];
    }
}

}  // namespace

template <typename T>
BadRow targets(const Targets<T>& call) {
    const int64_t k = call.k;
    Layout layout;
    const PanelLayout<T> panel(layout, k);
    const Grid grid(call.n, kPoints<T>, round_up<T>(k) * kPoints<T> * int64_t(sizeof(T)));
    const Buffer<double> f(k);
    const Buffer<T> factor(k);
    if (call.f == nullptr) sum_columns(call, grid, f.get());
    for (int64_t j = 0; j < k; ++j) {
        const double f_j = call.f == nullptr ? f[j] : call.f[j];
        const double tiny = std::numeric_limits<T>::min();
        factor[j] = static_cast<T>(
            std::sqrt((call.u == nullptr ? 1.0 : call.u[j]) / (f_j < tiny ? tiny : f_j)));
    }
    return for_each_with_memory<T>(
        grid.n_blocks, layout, 4 * double(call.n) * double(k), call.n_threads, {},
        [&](int64_t block, T* memory) {
            BadRow bad;
            const int64_t begin = block * grid.block_rows;
            for (int64_t at = begin; at < begin + grid.rows_of(block); at += kPoints<T>) {
                const int64_t n_rows = least(kPoints<T>, begin + grid.rows_of(block) - at);
                T* const p = panel.load(call.q, call.n, at, memory);
                PerPoint<T> inverse;
                if (!fill_target(k, factor.get(), call.power == 2, p, inverse) && call.check)
                    bad.note(first_bad_row(0, call.q, at, n_rows, k, true));
                store_panel(p, inverse, n_rows, k, call.p + at * k);
            }
            return bad;
        });
}

template BadRow targets(const Targets<float>&);
template BadRow targets(const Targets<double>&);

}  // namespace deepclust::DEEPCLUST_ISA
