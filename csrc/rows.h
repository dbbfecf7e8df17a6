// Points as they lie, a row each, with the clusters along the lanes: for who writes a row of q, so
// that nothing has to be turned.
//
//   features (rows, head.stride)    as in heads.h
//   s        (rows, stride)         products, keys, weights; stride is k to whole lanes
//   folds    (rows, kLanes)         a row's sum, as far as it is a sum lane by lane
//
// A block is few rows: their features and a tile of the columns stay in the first cache.

#pragma once

#include "blocks.h"

namespace deepclust::DEEPCLUST_ISA {

constexpr int64_t kBlockRows = 32;  // a multiple of any number of lanes

// A head's columns by panels, as if they were points, and the offsets behind their products.
template <typename T>
struct ColumnLanes {
    int64_t stride, panel_size;
    Buffer<T> panels;  // (panels, features to whole lanes, kPoints)
    Buffer<T> offset;  // (stride), so that no cluster that is not there is the best

    explicit ColumnLanes(const PackedHead<T>& head)
        : stride(round_up<T>(head.k)),
          panel_size(head.stride * kPoints<T>),
          panels((head.k + kPoints<T> - 1) / kPoints<T> * panel_size),
          offset(stride) {
        const Matrix<T> weights{head.weights.get(), head.features, 1};
        const T factor = head.product_factor();
        for (int64_t j = 0; j < head.k; j += kPoints<T>) {
            T* const panel = panel_of(j);
            load_panel<T>(weights, head.k, j, head.features, nullptr, {panel});
            for (int64_t i = 0; i < head.features * kPoints<T>; i += kLanes<T>)
                store<T>(panel + i, load(panel + i) * factor);
        }
        const T absent = head.form == Form::kLinear ? -kInfinity<T> : kInfinity<T>;
        for (int64_t j = 0; j < stride; ++j) offset[j] = j < head.k ? head.offset[j] : absent;
    }
    // The one that begins with column j.
    T* panel_of(int64_t j) const { return &panels[j / kPoints<T> * panel_size]; }
};

// The sum of each of kLanes folds, one a lane.
template <typename T>
inline Lanes<T> sum_folds(const T* folds) {
    Lanes<T> tile[kLanes<T>];
    for (int i = 0; i < kLanes<T>; ++i) tile[i] = load(folds + i * kLanes<T>);
    transpose<T>(tile);
    for (int half = kLanes<T> / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) tile[i] += tile[i + half];
    return tile[0];
}

// OUT features, and squares (kLanes), the fold of ||z - c||^2, of row i of z (n, d).
template <typename T>
inline void load_row(const PackedHead<T>& head, Matrix<T> z, int64_t n, int64_t i, T* features,
                     T* squares) {
    const int64_t d = head.d;
    const T* const from = z.row(i);
    Lanes<T> sum = {};
    for (int64_t e = 0; e < d; e += kLanes<T>) {
        const int64_t count = least(kLanes<T>, d - e);
        __builtin_prefetch(from + kBlockRows * z.row_stride + e);  // for the next block
        Lanes<T> value = {};
        // Lanes past the row's end are read, too, where later rows lie there.
        if (z.col_stride == 1 &&
            (count == kLanes<T> || (n - 1 - i) * z.row_stride >= kLanes<T> - count))
            value = load(from + e);
        else
            for (int64_t l = 0; l < count; ++l) value[l] = from[(e + l) * z.col_stride];
        if (count < kLanes<T>) value = first_lanes<T>(value, count);
        value -= load(&head.origin[e]);
        store<T>(features + e, value);
        sum += value * value;
    }
    store<T>(squares, sum);
    if (head.kind == HeadKind::kGaussian)
        for (int64_t e = 0; e < d; ++e) features[d + e] = features[e] * features[e];
}

// OUT features and sq_norm (n_rows, in whole lanes) of rows [first, first + n_rows) of z (n, d),
// with folds for a while. Returns the first bad row, where `check` asks for it.
template <typename T>
BadRow load_rows(const PackedHead<T>& head, Matrix<T> z, int64_t n, int64_t first, int64_t n_rows,
                 T* features, T* folds, T* sq_norm, bool check) {
    for (int64_t i = 0; i < n_rows; ++i)
        load_row(head, z, n, first + i, features + i * head.stride, folds + i * kLanes<T>);
    for (int64_t i = n_rows; i % kLanes<T> != 0; ++i) store<T>(folds + i * kLanes<T>, Lanes<T>{});
    for (int64_t i = 0; i < n_rows; i += kLanes<T>)
        store<T>(sq_norm + i, sum_folds(folds + i * kLanes<T>));
    if (!check || all_finite(sq_norm, n_rows)) return {};
    return first_bad_row(0, z, first, n_rows, head.d);
}

// IN features (n_rows, head.stride). OUT s (n_rows, columns.stride): the products. q (n_rows, k),
// to be written soon, is called into the caches meanwhile: memory rests while a product runs.
template <typename T>
void multiply_rows(const PackedHead<T>& head, const ColumnLanes<T>& columns, const T* features,
                   int64_t n_rows, T* s, const T* q) {
    const auto multiply = [&](auto width, auto wide, int64_t first, int64_t row, int64_t l) {
        constexpr int kWidth = width(), kWide = wide();
        for (int i = 0; i < kWidth; ++i)
            for (int v = 0; v < kWide; ++v)
                __builtin_prefetch(q + (row + i) * head.k + first + v * kLanes<T>, 1);
        Lanes<T> sum[kWidth][kWide] = {};
        add_products(columns.panel_of(first) + l * kPoints<T>, kPoints<T>,
                     features + row * head.stride + l, 1, head.stride,
                     least(kRunLength, head.features - l), sum);
        for (int i = 0; i < kWidth; ++i)
            for (int v = 0; v < kWide; ++v) {
                T* const to = s + (row + i) * columns.stride + first + v * kLanes<T>;
                store<T>(to, l == 0 ? sum[i][v] : load(to) + sum[i][v]);
            }
    };
    for (int64_t l = 0; l < head.features; l += kRunLength)
        for (int64_t first = 0; first < columns.stride; first += kPoints<T>)
            with_constant<kVectors>(
                static_cast<int>(least(kVectors, (columns.stride - first) / kLanes<T>)),
                [&](auto wide) {
                    constexpr int kMost = wide() == 1 ? kMaxSingles : kMaxWidth;
                    for (int64_t row = 0; row < n_rows; row += kMost)
                        with_constant<kMost>(
                            static_cast<int>(least(kMost, n_rows - row)),
                            [&](auto width) { multiply(width, wide, first, row, l); });
                });
}

// IN/OUT s (stride): one row's products to weights. OUT fold: of their sum.
template <Form kForm, typename T>
void weigh_row(const PackedHead<T>& head, const ColumnLanes<T>& columns, T sq_norm, T* s, T* fold) {
    const Lanes<T> sq_norms = broadcast(sq_norm);
    const T* const offset = columns.offset.get();
    const int64_t k = head.k;
    const auto key_at = [&](int64_t j) {
        return key_of<kForm, T>(load(s + j), load(offset + j), sq_norms);
    };
    Lanes<T> start = {};
    if constexpr (kForm != Form::kRational) {
        Lanes<T> best = broadcast(kForm == Form::kLinear ? -kInfinity<T> : kInfinity<T>);
        for (int64_t j = 0; j < k; j += kLanes<T>) {
            const Lanes<T> key = key_at(j);
            best = kForm == Form::kLinear ? max(best, key) : min(key, best);
            store<T>(s + j, key);
        }
        T first = best[0];
        for (int i = 1; i < kLanes<T>; ++i)
            if (kForm == Form::kLinear ? first < best[i] : best[i] < first) first = best[i];
        start = start_of_logs<kForm>(head, broadcast(first));
    }
    const auto weight_at = [&](int64_t j) {
        if constexpr (kForm == Form::kRational)
            return inverse<T>(key_at(j));
        else
            return exp<T>(log_weight<kForm>(head, load(s + j), start));
    };
    Lanes<T> sum = {};
    for (int64_t from = 0; from < k; from += kRunLength * kLanes<T>) {
        const int64_t end = least(k, from + kRunLength * kLanes<T>);
        Lanes<T> run = {};
        int64_t j = from;
        for (; j + kLanes<T> <= end; j += kLanes<T>) {
            const Lanes<T> e = weight_at(j);
            store<T>(s + j, e);
            run += e;
        }
        if (j < end) {
            const Lanes<T> e = first_lanes<T>(weight_at(j), end - j);
            store<T>(s + j, e);
            run += e;
        }
        sum += run;
    }
    store<T>(fold, sum);
}

}  // namespace deepclust::DEEPCLUST_ISA
