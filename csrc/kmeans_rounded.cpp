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
#include "label_sums.h"

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

// sum_i ||x_i - m||^2, of the same sum around an origin near the rows' mean m. sums (k, d): of all
// rows, in k parts.
template <typename T>
double scatter_of(double around_origin, const T* origin, const double* sums, int64_t n, int64_t d,
                  int64_t k) {
    double sq_dist = 0;
    for (int64_t e = 0; e < d && n > 0; ++e) {
        double sum = 0;
        for (int64_t j = 0; j < k; ++j) sum += sums[j * d + e];
        const double difference = sum / double(n) - double(origin[e]);
        sq_dist += difference * difference;
    }
    return around_origin - double(n) * sq_dist;
}

// Those behind the panels of n_rows rows: read next, or written.
Later panels_to_come(const int32_t* here, int64_t n_rows, int64_t d) {
    const int64_t size = panel_numbers(d);
    return {here + n_rows / kIntegerRows * size, size * int64_t(sizeof(int32_t))};
}

// Whether rows in full take no longer, once they have to be read for their distances.
bool reads_as_much(int64_t d, int64_t k) {
    return d <= kDirectWidth || is_read_bound(d, k);
}

}  // namespace

template <typename T>
int64_t kmeans_rounded_bytes(int64_t n, int64_t d) {
    const Rounded<T> rounded(n, d);
    return rounded.panels_at + rounded.n_panels * panel_numbers(d) * int64_t(sizeof(int32_t));
}

template <typename T>
BadRow kmeans_round(const KMeansRound<T>& call) {
    const int64_t n = call.n, d = call.d, k = call.k;
    T* const origin = static_cast<T*>(call.rounded);
    mean_origin(call.x, n, d, origin);
    int32_t* const panels = Rounded<T>(n, d).panels(call.rounded);
    const IntegerCentroids centroids(call.mu, d, k, origin);
    const IntegerAssignment<T> assignment{call.x, call.mu, d, call.labels, nullptr, centroids};
    // Rows and panels stay in cache until all is done with them.
    const Grid grid(
        n, kIntegerRows,
        panel_numbers(d) * int64_t(sizeof(int32_t)) + kIntegerRows * d * int64_t(sizeof(T)));
    Layout layout;
    const RowRounder<T> rounder(layout, d, origin, false);
    const int64_t copies_at = layout.add(2 * d);
    const double work = double(n) * double(d) * double(4 + k);
    const Buffer<double> sq_dists(grid.n_blocks);  // of blocks: in order they add up to the same
    *call.n_open = 0;
    const auto label = [&](int64_t first, int64_t n_rows, T* memory) {
        int32_t* const here = panels + first / kIntegerRows * panel_numbers(d);
        double sq_dist = 0;
        for (int64_t i = 0; i < n_rows; i += kIntegerRows)
            sq_dist += rounder.round(call.x, n, first + i, memory,
                                     here + i / kIntegerRows * panel_numbers(d));
        sq_dists[first / grid.block_rows] = sq_dist;
        const int64_t n_open = assignment.run(here, panels_to_come(here, n_rows, d), first, n_rows,
                                              memory + copies_at);
        __atomic_fetch_add(call.n_open, n_open, __ATOMIC_RELAXED);
        return BadRow{};
    };
    if (d >= kWideRows && sums_are_fused<T>(d, k)) {  // to read narrow rows again costs less
        const WeightedRows<T> rows{call.x, n, d, k, call.labels, nullptr, nullptr};
        label_and_add(rows, grid, grid.block_rows, layout, work, call.n_threads, {}, call.sums,
                      call.counts, [&](int64_t first, int64_t n_rows, T* memory, WeightedRows<T>&) {
                          return label(first, n_rows, memory);
                      });
    } else {
        for_each_with_memory<T>(
            grid.n_blocks, layout, work, call.n_threads, {}, [&](int64_t block, T* memory) {
                return label(block * grid.block_rows, grid.rows_of(block), memory);
            });
        kmeans_update<T>(
            {call.x, n, d, k, call.labels, nullptr, call.sums, call.counts, call.n_threads, false});
    }
    double around_origin = 0;
    for (int64_t block = 0; block < grid.n_blocks; ++block) around_origin += sq_dists[block];
    *call.scatter = scatter_of(around_origin, origin, call.sums, n, d, k);
    return {};
}

template <typename T>
BadRow kmeans_rounded(const KMeansRounded<T>& call) {
    const int64_t n = call.n, d = call.d, k = call.k;
    if (call.sq_dist != nullptr && reads_as_much(d, k)) {
        *call.n_open = 0;
        return kmeans_assign<T>({call.x, call.mu, n, d, k, call.labels, call.sq_dist, nullptr,
                                 call.sums, call.counts, call.n_threads, false, nullptr,
                                 call.before});
    }
    const T* const origin = static_cast<const T*>(call.rounded);
    const int32_t* const panels = Rounded<T>(n, d).panels(call.rounded);
    const IntegerCentroids centroids(call.mu, d, k, origin);
    const IntegerAssignment<T> assignment{call.x, call.mu, d, call.labels, call.sq_dist, centroids};
    const Grid grid(n, kIntegerRows, panel_numbers(d) * int64_t(sizeof(int32_t)));
    Layout layout;
    const int64_t copies_at = layout.add(2 * d);
    const double work = double(n) * double(k) * double(d);
    *call.n_open = 0;
    for_each_with_memory<T>(
        grid.n_blocks, layout, work, call.n_threads, {}, [&](int64_t block, T* memory) {
            const int64_t first = block * grid.block_rows;
            const int64_t n_rows = grid.rows_of(block);
            const int32_t* const here = panels + first / kIntegerRows * panel_numbers(d);
            const int64_t n_open = assignment.run(here, panels_to_come(here, n_rows, d), first,
                                                  n_rows, memory + copies_at);
            __atomic_fetch_add(call.n_open, n_open, __ATOMIC_RELAXED);
            return BadRow{};
        });
    if (call.sums == nullptr) return {};
    // In a pass of its own: rows that changed have to be read for it, wherever they lie.
    return kmeans_update<T>({call.x, n, d, k, call.labels, nullptr, call.sums, call.counts,
                             call.n_threads, false, call.before});
}

template BadRow kmeans_round(const KMeansRound<float>&);
template BadRow kmeans_round(const KMeansRound<double>&);
template BadRow kmeans_rounded(const KMeansRounded<float>&);
template BadRow kmeans_rounded(const KMeansRounded<double>&);
template int64_t kmeans_rounded_bytes<float>(int64_t, int64_t);
template int64_t kmeans_rounded_bytes<double>(int64_t, int64_t);

}  // namespace deepclust::DEEPCLUST_ISA
