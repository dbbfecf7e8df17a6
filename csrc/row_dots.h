// Products of wide rows with few centroids, features along the lanes: to turn such rows into panels
// (panels.h) would take as long as the products.
//
//   m        (k, stride)               mu_j - c, zeros past d; stride is d to whole lanes
//   folds    (k + 1, kLanes, kLanes)   of kLanes rows z_i . m_j, and ||z_i||^2, z_i = x_i - c,
//                                      each a sum as far as it is one lane by lane
//
// A tile is as many rows by as many centroids as leave their sums in registers.

#pragma once

#include "rows.h"
#include "sq_dist.h"

namespace deepclust::DEEPCLUST_ISA {

template <typename T>
struct RowDots {
    static constexpr int kRows = kRegisters == 32 ? 4 : 2, kColumns = kRegisters == 32 ? 5 : 4;

    int64_t d, k, stride;
    const T* origin;  // c (stride), zeros past d
    Tiling tiling;
    Buffer<T> m;

    RowDots(Matrix<T> mu, int64_t d, int64_t k, const T* origin)
        : d(d), k(k), stride(round_up<T>(d)), origin(origin), tiling(k, kColumns), m(k * stride) {
        for (int64_t j = 0; j < k; ++j)
            for (int64_t e = 0; e < stride; ++e)
                m[j * stride + e] = e < d ? mu(j, e) - origin[e] : 0;
    }
    int64_t folds_size() const { return (k + 1) * kLanes<T> * kLanes<T>; }

    // The longest chain of additions in a sum, its last ones those of lanes.
    int64_t chain() const { return stride / kLanes<T> + 8; }

    // IN x: where kLanes rows lie, and later: what is read some rows later; OUT folds.
    void multiply(const T* const* x, const T* const* later, T* folds) const {
        constexpr int kL = kLanes<T>;
        // So many features at a time that a tile's centroids stay in the first cache.
        constexpr int64_t kRun = (16 << 10) / (kColumns * int64_t(sizeof(T))) / kL * kL;
        for (int64_t first = 0; first < d; first += kRun)
            for (int64_t j = 0; j < k; j += tiling.width)
                with_constant<kColumns>(
                    static_cast<int>(least(tiling.width, k - j)), [&](auto columns) {
                        for (int i = 0; i < kL; i += kRows) {
                            const Tile tile{
                                x + i, later + i, j, first, least(d, first + kRun), folds + i * kL};
                            if (j == 0)
                                multiply_tile<columns(), true>(tile);
                            else
                                multiply_tile<columns(), false>(tile);
                        }
                    });
    }

  private:
    // kRows rows, centroids from j on, and features [first, end).
    struct Tile {
        const T* const* x;
        const T* const* later;
        int64_t j, first, end;
        T* folds;  // from the first of the rows on
    };

    template <int kWidth, bool kNorms>
    void multiply_tile(const Tile& tile) const {
        constexpr int kL = kLanes<T>;
        T* const folds = tile.folds + tile.j * kL * kL;
        T* const squares = tile.folds + k * kL * kL;
        Lanes<T> sum[kRows][kWidth] = {}, sq_norm[kRows] = {};
        if (tile.first > 0)
            for (int r = 0; r < kRows; ++r) {
                for (int c = 0; c < kWidth; ++c) sum[r][c] = load(folds + (c * kL + r) * kL);
                if constexpr (kNorms) sq_norm[r] = load(squares + r * kL);
            }
        const auto add = [&](const T* const* rows, int64_t at, int64_t e) {
            Lanes<T> m_j[kWidth];
            for (int c = 0; c < kWidth; ++c) m_j[c] = load(&m[(tile.j + c) * stride + e]);
            const Lanes<T> shift = load(origin + e);
            for (int r = 0; r < kRows; ++r) {
                const Lanes<T> z = load(rows[r] + at) - shift;
                if constexpr (kNorms) sq_norm[r] += z * z;
                for (int c = 0; c < kWidth; ++c) sum[r][c] += z * m_j[c];
            }
        };
        // Each tile calls its share, so that memory does not rest while the others are computed.
        const int64_t share = (tile.end - tile.first) * (tile.j / tiling.width) / tiling.n_tiles;
        const int64_t step = (kL + tiling.n_tiles - 1) / tiling.n_tiles;
        int64_t e = tile.first;
        for (int64_t at = e + share; e + kL <= tile.end; e += kL, at += step) {
            for (int r = 0; r < kRows; ++r) __builtin_prefetch(tile.later[r] + at, 0, 2);
            add(tile.x, e, e);
        }
        if (e < tile.end) {  // what lies past a row's end may be no memory
            T last[kRows][kL] = {};
            const T* rows[kRows];
            for (int r = 0; r < kRows; ++r) {
                std::memcpy(last[r], tile.x[r] + e, static_cast<size_t>(d - e) * sizeof(T));
                rows[r] = last[r];
            }
            add(rows, 0, e);
        }
        for (int r = 0; r < kRows; ++r) {
            for (int c = 0; c < kWidth; ++c) store<T>(folds + (c * kL + r) * kL, sum[r][c]);
            if constexpr (kNorms) store<T>(squares + r * kL, sq_norm[r]);
        }
    }
};

}  // namespace deepclust::DEEPCLUST_ISA
