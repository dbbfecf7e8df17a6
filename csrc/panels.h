// Points by the panel, kPoints of them:
//
//   panel    (width, kPoints)    a feature's (or cluster's) numbers side by side, one point a lane
//   rows     (kPoints, stride)   a point's numbers side by side, as in memory, padded to whole
//   lanes
//
// Padding holds anything; the last lanes of a panel hold zeros where points run out.

#pragma once

#include <cmath>

#include "lanes.h"
#include "matrix.h"

namespace deepclust::DEEPCLUST_ISA {

constexpr int kVectors = 2;
constexpr int kNarrow = 16;  // up to this width a panel's loads and stores are unrolled
template <typename T>
constexpr int kPoints = kVectors * kLanes<T>;

template <typename T>
inline int64_t round_up(int64_t width) {
    return (width + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

inline int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

inline int64_t most(int64_t a, int64_t b) {
    return a < b ? b : a;
}

// Whether rows of so few numbers lie one after the other.
template <typename T>
inline bool is_narrow(Matrix<T> x, int64_t width) {
    return width <= kNarrow && x.col_stride == 1 && x.row_stride == width;
}

// A square of x less origin: row `first + i` to tile[i], from column e on; zeros past n rows.
template <typename T>
inline void load_tile(Matrix<T> x, int64_t n, int64_t first, int64_t e, int64_t width,
                      Lanes<T> origin, Lanes<T> (&tile)[kLanes<T>]) {
    constexpr int kL = kLanes<T>;
    const T* from = x.row(first) + e * x.col_stride;
    const int64_t count = least(kL, width - e);
    // Lanes past a row's end are read, too, where later rows lie there.
    if (x.col_stride == 1 && first + kL <= n &&
        (count == kL || (n - first - kL) * x.row_stride >= kL - count)) {
        for (int i = 0; i < kL; ++i, from += x.row_stride) {
            tile[i] = load(from) - origin;
            __builtin_prefetch(from + kPoints<T> * x.row_stride);  // for the next panel
        }
        return;
    }
    T square[kL][kL] = {};
    for (int64_t i = 0; i < least(kL, n - first); ++i, from += x.row_stride)
        for (int64_t j = 0; j < count; ++j) square[i][j] = from[j * x.col_stride] - origin[j];
    for (int i = 0; i < kL; ++i) tile[i] = load(square[i]);
}

// Where a panel's numbers go: panel (width to whole lanes, kPoints); sq_norm (kPoints), unless
// null: the sum of squares of each point; rows (kPoints, stride), unless null: the same numbers by
// rows.
template <typename T>
struct PanelOut {
    T* panel;
    T* sq_norm = nullptr;
    T* rows = nullptr;
    int64_t stride = 0;

    // A tile's columns [0, count), which are the points' from e on, or more, up to `stored`. IN/OUT
    // squares: their sums.
    inline __attribute__((always_inline)) void put(Lanes<T> (&tile)[kLanes<T>], int v, int64_t e,
                                                   int64_t count, int stored,
                                                   Lanes<T>& squares) const {
        constexpr int kL = kLanes<T>;
        if (rows != nullptr) {
            T* to = rows + v * kL * stride + e;
            for (int i = 0; i < kL; ++i, to += stride) store<T>(to, tile[i]);
        }
        transpose<T>(tile);
        T* to = panel + e * kPoints<T> + v * kL;
        for (int i = 0; i < stored; ++i) store<T>(to + i * kPoints<T>, tile[i]);
        if (sq_norm != nullptr)
            for (int64_t i = 0; i < count; ++i, to += kPoints<T>) squares += load(to) * load(to);
    }
};

// The same for kPoints rows one after the other in memory, of which the last may be read past by
// less than kLanes: the distances between rows are constants, and shuffles for no column drop out.
template <int kWidth, typename T>
void load_narrow(const T* from, const T* shift, const PanelOut<T>& out) {
    constexpr int kL = kLanes<T>;
    constexpr int kAhead = 4 * kPoints<T> * kWidth, kLine = 64 / sizeof(T);
    for (int i = 0; i < kPoints<T> * kWidth; i += kLine) __builtin_prefetch(from + kAhead + i);
    for (int v = 0; v < kVectors; ++v, from += kL * kWidth) {
        Lanes<T> squares = {};
        for (int e = 0; e < kWidth; e += kL) {
            const Lanes<T> origin = shift == nullptr ? Lanes<T>{} : load(shift + e);
            Lanes<T> tile[kL];
            for (int i = 0; i < kL; ++i) tile[i] = load(from + i * kWidth + e) - origin;
            const int count = kWidth - e < kL ? kWidth - e : kL;
            out.put(tile, v, e, count, count, squares);
        }
        if (out.sq_norm != nullptr) store<T>(out.sq_norm + v * kL, squares);
    }
}

// OUT out: rows [first, first + kPoints) of x (n, width) less shift, zeros past n. shift (width to
// whole lanes) may be null.
template <typename T>
void load_panel(Matrix<T> x, int64_t n, int64_t first, int64_t width, const T* shift,
                const PanelOut<T>& out) {
    constexpr int kL = kLanes<T>;
    if (is_narrow(x, width) && (n - first - kPoints<T>)*width >= kL)
        return with_constant<kNarrow>(static_cast<int>(width), [&](auto constant) {
            load_narrow<constant()>(x.row(first), shift, out);
        });
    for (int v = 0; v < kVectors; ++v) {
        Lanes<T> squares = {};
        for (int64_t e = 0; e < width; e += kL) {
            Lanes<T> tile[kL];
            load_tile(x, n, first + v * kL, e, width,
                      shift == nullptr ? Lanes<T>{} : load(shift + e), tile);
            out.put(tile, v, e, least(kL, width - e), kL, squares);
        }
        if (out.sq_norm != nullptr) store<T>(out.sq_norm + v * kL, squares);
    }
}

// store_panel for a whole panel, its rows' width a constant; the memory of one to come is called.
template <int kWidth, typename T>
void store_narrow(const T* panel, const Lanes<T> (&factor)[kVectors], T* to) {
    constexpr int kL = kLanes<T>;
    constexpr int kAhead = 4 * kPoints<T> * kWidth, kLine = 64 / sizeof(T);
    for (int i = 0; i < kPoints<T> * kWidth; i += kLine) __builtin_prefetch(to + kAhead + i, 1);
    for (int e = (kWidth - 1) / kL * kL; e >= 0; e -= kL)
        for (int v = 0; v < kVectors; ++v) {
            const int count = kWidth - e < kL ? kWidth - e : kL;
            Lanes<T> tile[kL];
            for (int i = 0; i < kL; ++i)
                tile[i] = i < count ? load(panel + (e + i) * kPoints<T> + v * kL) * factor[v]
                                    : Lanes<T>{};
            transpose<T>(tile);
            for (int i = 0; i < kL; ++i) {
                const int at = (v * kL + i) * kWidth + e;
                if (at + kL <= kPoints<T> * kWidth)
                    store<T>(to + at, tile[i]);
                else
                    std::memcpy(to + at, &tile[i], count * sizeof(T));
            }
        }
}

// IN panel (width to whole lanes, kPoints), times factor[v]; OUT to (n_rows, width), contiguous.
template <typename T>
void store_panel(const T* panel, const Lanes<T> (&factor)[kVectors], int64_t n_rows, int64_t width,
                 T* to) {
    constexpr int kL = kLanes<T>;
    if (width <= kNarrow && n_rows == kPoints<T>)
        return with_constant<kNarrow>(static_cast<int>(width), [&](auto constant) {
            store_narrow<constant()>(panel, factor, to);
        });
    // The last columns come first: where lanes are written past a row's end, the later columns of
    // the panel's later rows mend it.
    for (int64_t e = (width - 1) / kL * kL; e >= 0; e -= kL)
        for (int v = 0; v < kVectors; ++v) {
            T* const at = to + v * kL * width + e;
            const int64_t count = least(kL, width - e), present = n_rows - v * kL;
            // Padding is not computed with, the last row instead: a subnormal among its bits would
            // cost 100 cycles.
            Lanes<T> tile[kL];
            for (int i = 0; i < kL; ++i)
                tile[i] = load(panel + least(e + i, width - 1) * kPoints<T> + v * kL) * factor[v];
            transpose<T>(tile);
            // of the rows that there are, those after which whole lanes are the panel's own
            const int64_t whole =
                least(present, count == kL ? kL : present - (kL - count + width - 1) / width);
            if (whole >= kL) {
                for (int i = 0; i < kL; ++i) store<T>(at + i * width, tile[i]);
                continue;
            }
            T spill[kL][kL];
            for (int i = 0; i < kL; ++i) store<T>(spill[i], tile[i]);
            for (int64_t i = 0; i < least(kL, present); ++i)
                if (i < whole)
                    store<T>(at + i * width, load(spill[i]));
                else
                    for (int64_t j = 0; j < count; ++j) at[i * width + j] = spill[i][j];
        }
}

// Of kPoints numbers those of the points that there are, and zero for those past n_rows.
template <typename T>
inline void clear_absent(int64_t n_rows, Lanes<T> (&numbers)[kVectors]) {
    for (int v = 0; v < kVectors; ++v)
        numbers[v] = first_lanes<T>(numbers[v], n_rows - v * kLanes<T>);
}

// Whether `count` numbers, in whole lanes, are neither NaN nor Inf.
template <typename T>
inline bool all_finite(const T* numbers, int64_t count) {
    Lanes<T> zero = {};
    for (int64_t i = 0; i < count; i += kLanes<T>) zero += load(numbers + i) * T(0);
    return all_zero<T>(zero);
}

// The first row of [first, first + n_rows) of x, which is `input`, with NaN or Inf (or, if asked, a
// negative).
template <typename T>
BadRow first_bad_row(int input, Matrix<T> x, int64_t first, int64_t n_rows, int64_t width,
                     bool negatives = false) {
    for (int64_t i = first; i < first + n_rows; ++i)
        for (int64_t e = 0; e < width; ++e)
            if (!std::isfinite(x(i, e)) || (negatives && x(i, e) < 0)) return {input, i};
    return {};
}

}  // namespace deepclust::DEEPCLUST_ISA
