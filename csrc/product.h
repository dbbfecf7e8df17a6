// The matrix products under every kernel, in one register tile: points or features along the lanes,
// up to kMaxWidth columns side by side, their sums in registers for the whole inner dimension.

#pragma once

#include "lanes.h"
#include "memory.h"
#include "panels.h"

namespace deepclust::DEEPCLUST_ISA {

constexpr int kMaxWidth = kRegisters == 32 ? 8 : 6;  // x kVectors sums, and room for the operands
constexpr int kMaxSingles = 2 * kMaxWidth;           // columns of one vector each
constexpr int64_t kRunLength = 256;  // terms in one running sum; a longer sum adds up such sums

// IN/OUT sum[j][v] += sum_l a[l * a_stride + lanes v] * b[l * b_stride + j * b_column], l < length.
template <int kWidth, int kWide, typename T>
inline void add_products(const T* a, int64_t a_stride, const T* b, int64_t b_stride,
                         int64_t b_column, int64_t length, Lanes<T> (&sum)[kWidth][kWide]) {
#pragma GCC unroll 4  // the loop's own instructions take ports from the multiply-adds
    for (int64_t l = 0; l < length; ++l) {
        Lanes<T> a_l[kWide];
        for (int v = 0; v < kWide; ++v) a_l[v] = load(a + l * a_stride + v * kLanes<T>);
        for (int j = 0; j < kWidth; ++j) {
            const Lanes<T> b_j = broadcast(b[l * b_stride + j * b_column]);
            for (int v = 0; v < kWide; ++v) sum[j][v] += a_l[v] * b_j;
        }
    }
}

// Columns cut into tiles of one width with the least padding, which holds zeros.
struct Tiling {
    int64_t n_tiles, width;

    explicit Tiling(int64_t n_columns, int64_t most = kMaxWidth)
        : n_tiles((n_columns + most - 1) / most), width((n_columns + n_tiles - 1) / n_tiles) {}
    int64_t padded() const { return n_tiles * width; }
};

// A matrix (length, n_columns) in the order in which the tile reads it: (tile, l, column in tile).
template <typename T>
struct PackedColumns {
    Tiling tiling{1};
    int64_t length = 0;
    Buffer<T> data;

    PackedColumns() = default;
    // value(l, column) gives the elements.
    template <typename Value>
    PackedColumns(int64_t length, int64_t n_columns, const Value& value)
        : tiling(n_columns), length(length), data(tiling.padded() * length) {
        for (int64_t tile = 0; tile < tiling.n_tiles; ++tile)
            for (int64_t l = 0; l < length; ++l)
                for (int64_t j = 0; j < tiling.width; ++j) {
                    const int64_t column = tile * tiling.width + j;
                    data[(tile * length + l) * tiling.width + j] =
                        column < n_columns ? value(l, column) : T(0);
                }
    }
    const T* tile(int64_t i) const { return data.get() + i * length * tiling.width; }
};

// IN/OUT sum: (z - m)^2, summed over d.
template <int kWidth, typename T>
inline void add_sq_differences(const T* z, const T* m, int64_t d,
                               Lanes<T> (&sum)[kWidth][kVectors]) {
    for (int64_t e = 0; e < d; ++e)
        for (int j = 0; j < kWidth; ++j)
            for (int v = 0; v < kVectors; ++v) {
                const Lanes<T> difference =
                    load(z + e * kPoints<T> + v * kLanes<T>) - broadcast(m[e * kWidth + j]);
                sum[j][v] += difference * difference;
            }
}

// IN panels (n_panels, panel_size), each (columns.length, kPoints);
// OUT out (n_panels, out_size), each (columns.tiling.padded(), kPoints): the products.
template <typename T>
void multiply_panels(const T* panels, int64_t panel_size, int64_t n_panels,
                     const PackedColumns<T>& columns, T* out, int64_t out_size) {
    with_constant<kMaxWidth>(static_cast<int>(columns.tiling.width), [&](auto constant) {
        constexpr int kWidth = decltype(constant)::value;
        for (int64_t l = 0; l < columns.length; l += kRunLength)
            for (int64_t tile = 0; tile < columns.tiling.n_tiles; ++tile)
                for (int64_t p = 0; p < n_panels; ++p) {
                    Lanes<T> sum[kWidth][kVectors] = {};
                    add_products(panels + p * panel_size + l * kPoints<T>, kPoints<T>,
                                 columns.tile(tile) + l * kWidth, kWidth, 1,
                                 least(kRunLength, columns.length - l), sum);
                    T* to = out + p * out_size + tile * kWidth * kPoints<T>;
                    for (int j = 0; j < kWidth; ++j)
                        for (int v = 0; v < kVectors; ++v, to += kLanes<T>)
                            store<T>(to, l == 0 ? sum[j][v] : load(to) + sum[j][v]);
                }
    });
}

// IN/OUT sums[j][lanes] += sum over the points of w[j][point] * rows[point][lanes], kWide vectors.
template <int kWidth, int kWide, typename T>
inline void add_outer_tile(const T* w, int64_t w_size, const T* rows, int64_t stride,
                           int64_t n_panels, double* sums, int64_t sums_stride) {
    Lanes<T> sum[kWidth][kWide] = {};
    for (int64_t p = 0; p < n_panels; ++p)
        add_products(rows + p * kPoints<T> * stride, stride, w + p * w_size, 1, kPoints<T>,
                     kPoints<T>, sum);
    for (int j = 0; j < kWidth; ++j)
        for (int v = 0; v < kWide; ++v)
            add_widened<T>(sums + j * sums_stride + v * kLanes<T>, sum[j][v]);
}

// The tiles of n_columns sums over points, which lie `stride` numbers wide.
template <typename T>
inline Tiling outer_tiling(int64_t n_columns, int64_t stride) {
    return Tiling(n_columns, stride == kLanes<T> ? kMaxSingles : kMaxWidth);
}

// IN w (n_panels, w_size), each (n_columns, kPoints); rows (n_panels * kPoints, stride);
// IN/OUT sums (n_columns, stride) and totals (n_columns), of which tile `tile` is added to:
// sums[j] += sum over the points of w[j][point] rows[point], totals[j] += sum of w[j][point].
template <typename T>
void add_outer_products(const T* w, int64_t w_size, const T* rows, int64_t stride, int64_t n_panels,
                        const Tiling& tiling, int64_t n_columns, int64_t tile, double* sums,
                        double* totals) {
    constexpr int64_t kRunPanels = kRunLength / kPoints<T>;
    const int64_t first = tile * tiling.width;
    const int width = static_cast<int>(least(tiling.width, n_columns - first));
    w += first * kPoints<T>;
    sums += first * stride;
    totals += first;
    for (int64_t p = 0; p < n_panels; p += kRunPanels) {
        const int64_t run = least(kRunPanels, n_panels - p);
        const T* w_run = w + p * w_size;
        const T* rows_run = rows + p * kPoints<T> * stride;
        const auto add = [&](auto constant, auto wide, int64_t e) {
            add_outer_tile<constant(), wide()>(w_run, w_size, rows_run + e, stride, run, sums + e,
                                               stride);
        };
        if (stride == kLanes<T>)
            with_constant<kMaxSingles>(
                width, [&](auto constant) { add(constant, std::integral_constant<int, 1>(), 0); });
        else
            with_constant<kMaxWidth>(width, [&](auto constant) {
                int64_t e = 0;
                for (; e + kPoints<T> <= stride; e += kPoints<T>)
                    add(constant, std::integral_constant<int, kVectors>(), e);
                if (e < stride) add(constant, std::integral_constant<int, 1>(), e);
            });
        for (int j = 0; j < width; ++j) {
            Lanes<T> sum[kVectors] = {};
            for (int64_t at = j * kPoints<T>; at < run * w_size; at += w_size)
                for (int v = 0; v < kVectors; ++v) sum[v] += load(w_run + at + v * kLanes<T>);
            DoubleLanes<T> total = {};
            for (int v = 0; v < kVectors; ++v) total += widen<T>(sum[v]);
            totals[j] += sum_of_doubles<T>(total);
        }
    }
}

}  // namespace deepclust::DEEPCLUST_ISA
