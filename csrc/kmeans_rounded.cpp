// Hard assignment of rows that were rounded once and for all (integers.h), for who assigns the same
// rows again and again.
//
//   labels_i = argmin_j ||x_i - mu_j||^2, ties to the lowest index: what kmeans_assign.cpp gives
//
// Memory: 2 d + 8 bytes a row; the centroids packed once. Reads that, and d numbers of each row
// that integers leave open, or of each where sq_dist is wanted; 2 n k d operations.

#include "kmeans_rounded.h"

#include "integer_rows.h"
#include "kernels.h"

namespace deepclust::DEEPCLUST_ISA {
namespace {

// The origin, then the panels.
template <typename T>
struct Rounded {
    int64_t n_panels, panels_at;

    Rounded(int64_t n, int64_t d)
        : n_panels((n + kIntegerRows - 1) / kIntegerRows),
          panels_at((round_up<T>(d) * int64_t(sizeof(T)) + 63) / 64 * 64) {}
    template <typename Bytes>
    auto panels(Bytes* bytes) const {
        using Word = std::conditional_t<std::is_const_v<Bytes>, const int32_t, int32_t>;
        using Byte = std::conditional_t<std::is_const_v<Bytes>, const char, char>;
        return reinterpret_cast<Word*>(static_cast<Byte*>(bytes) + panels_at);
    }
};

// OUT origin (d to whole lanes): the mean of some rows. Centroids will lie around it, and what
// integers lose of them grows with their distance from it.
template <typename T>
void mean_origin(Matrix<T> x, int64_t n, int64_t d, T* origin) {
    constexpr int64_t kMost = 256;
    const int64_t count = least(n, kMost);
    const Buffer<double> sums(d);
    for (int64_t e = 0; e < d; ++e) sums[e] = 0;
    for (int64_t i = 0; i < count; ++i)
        for (int64_t e = 0; e < d; ++e) sums[e] += double(x(i * n / count, e)) / double(count);
    for (int64_t e = 0; e < round_up<T>(d); ++e) origin[e] = e < d ? static_cast<T>(sums[e]) : 0;
}

Grid grid_of(int64_t n, int64_t d) {
    return Grid(n, kIntegerRows, panel_numbers(d) * int64_t(sizeof(int32_t)));
}

}  // namespace

template <typename T>
int64_t kmeans_rounded_bytes(int64_t n, int64_t d) {
    const Rounded<T> rounded(n, d);
    return rounded.panels_at + rounded.n_panels * panel_numbers(d) * int64_t(sizeof(int32_t));
}

template <typename T>
BadRow kmeans_round(const KMeansRound<T>& call) {
    T* const origin = static_cast<T*>(call.rounded);
    mean_origin(call.x, call.n, call.d, origin);
    int32_t* const panels = Rounded<T>(call.n, call.d).panels(call.rounded);
    const Grid grid = grid_of(call.n, call.d);
    Layout layout;
    const RowRounder<T> rounder(layout, call.d, origin);
    const double work = double(call.n) * double(call.d) * 4;
    return for_each_with_memory<T>(
        grid.n_blocks, layout, work, call.n_threads, {}, [&](int64_t block, T* memory) {
            const int64_t first = block * grid.block_rows, end = first + grid.rows_of(block);
            for (int64_t i = first; i < end; i += kIntegerRows)
                rounder.round(call.x, call.n, i, memory,
                              panels + i / kIntegerRows * panel_numbers(call.d));
            return BadRow{};
        });
}

template <typename T>
BadRow kmeans_rounded(const KMeansRounded<T>& call) {
    const T* const origin = static_cast<const T*>(call.rounded);
    const int32_t* const panels = Rounded<T>(call.n, call.d).panels(call.rounded);
    const IntegerCentroids centroids(call.mu, call.d, call.k, origin);
    const IntegerAssignment<T> assignment{call.x,      call.mu,      call.d,
                                          call.labels, call.sq_dist, centroids};
    const Grid grid = grid_of(call.n, call.d);
    Layout layout;
    const int64_t copies_at = layout.add(2 * call.d);
    const double work = double(call.n) * double(call.k) * double(call.d);
    *call.n_open = 0;
    return for_each_with_memory<T>(
        grid.n_blocks, layout, work, call.n_threads, {}, [&](int64_t block, T* memory) {
            const int64_t first = block * grid.block_rows;
            const int64_t n_open =
                assignment.run(panels + first / kIntegerRows * panel_numbers(call.d), first,
                               grid.rows_of(block), memory + copies_at);
            __atomic_fetch_add(call.n_open, n_open, __ATOMIC_RELAXED);
            return BadRow{};
        });
}

template BadRow kmeans_round(const KMeansRound<float>&);
template BadRow kmeans_round(const KMeansRound<double>&);
template BadRow kmeans_rounded(const KMeansRounded<float>&);
template BadRow kmeans_rounded(const KMeansRounded<double>&);
template int64_t kmeans_rounded_bytes<float>(int64_t, int64_t);
template int64_t kmeans_rounded_bytes<double>(int64_t, int64_t);

}  // namespace deepclust::DEEPCLUST_ISA
