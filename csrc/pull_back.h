// Gradients of any function of the scores, from the gradients w to the products under them.
//
// dz takes a second product, w times the weights, while w is in cache. The parameters' gradients
// take w^T features, K x F sums over all points. Where these are few, the points are cut into at
// most kParts parts with sums of their own, added up in order at the end; a part runs on one
// thread. Where they are many, parts would take too much memory: a slab of points at a time goes
// through, and then each thread owns some of the columns. Which of the two it is depends on sizes
// alone.

#pragma once

#include "blocks.h"

namespace deepclust::DEEPCLUST_ISA {

constexpr int64_t kSlabBytes = 16 << 20;  // for the features and weights of a slab
constexpr int64_t kSlabRows = 2048;

// OUT dz: n_rows rows of d, from w (scored.s) and the features of a block. `products`: a panel of
// gradients for each panel of the block; the block's rows are kept.
template <typename T>
void pull_back_points(const PackedHead<T>& head, const Scored<T>& scored, int64_t n_rows,
                      T* products, T* dz) {
    const int64_t n_panels = (n_rows + kPoints<T> - 1) / kPoints<T>;
    const int64_t size = head.panel_size();
    multiply_panels(scored.s, head.scores_size(), n_panels, head.backward, products, size);
    for (int64_t p = 0; p < n_panels; ++p) {
        T* const panel = products + p * size;
        finish_points(head, scored.s + p * head.scores_size(), scored.panels + p * size, panel);
        const int64_t first = p * kPoints<T>;
        store_panel(panel, {broadcast(T(1)), broadcast(T(1))}, least(kPoints<T>, n_rows - first),
                    head.d, dz + first * head.d);
    }
}

// Points past the end take no part in sums over points.
template <typename T>
void clear_missing(const PackedHead<T>& head, T* w, int64_t n_rows) {
    const int64_t last = n_rows / kPoints<T>;
    if (n_rows % kPoints<T> == 0) return;
    for (int64_t j = 0; j < head.k; ++j)
        for (int64_t i = n_rows % kPoints<T>; i < kPoints<T>; ++i)
            w[last * head.scores_size() + j * kPoints<T> + i] = 0;
}

// fill(block, scored, memory) makes the features and w of a block, in scored, with the memory that
// `layout` holds so far, and returns the first bad row that it met, as this does.
// OUT dz (n, d) and the gradients to the parameters.
template <typename T, typename Fill>
BadRow pull_back(const PackedHead<T>& head, const Head<T>& raw, const Grid& grid, Layout layout,
                 double work, int n_threads, T* dz, T* const dparams[3], const Fill& fill) {
    const int64_t k = head.k, stride = head.stride;
    const int64_t panels = grid.block_rows / kPoints<T>;
    const int64_t products = layout.add(panels * head.panel_size());
    const auto run = [&](int64_t block, const Scored<T>& scored, T* memory) {
        const int64_t first = block * grid.block_rows, n_rows = grid.rows_of(block);
        const BadRow bad = fill(block, scored, memory);
        clear_missing(head, scored.s, n_rows);
        pull_back_points(head, scored, n_rows, memory + products, dz + first * head.d);
        return bad;
    };
    const auto panels_of = [](int64_t n_rows) { return (n_rows + kPoints<T> - 1) / kPoints<T>; };
    const Tiling tiling = outer_tiling<T>(k, stride);
    const int64_t sums_size = k * stride + k;  // and the totals behind them

    const bool few = sums_size * static_cast<int64_t>(sizeof(double)) * kParts <= kPartsBytes;
    const Parts parts(grid, sums_size, 1);
    const int64_t n_sums = (few ? parts.count : 1) * sums_size;
    const Buffer<double> sums(n_sums);
    std::memset(sums.get(), 0, static_cast<size_t>(n_sums) * sizeof(double));

    BadRow bad = head.bad;
    if (few) {
        const ScoredLayout<T> place(layout, head, grid);
        bad = for_each_with_memory<T>(
            parts.count, layout, work, n_threads, bad, [&](int64_t part, T* memory) {
                const Scored<T> scored = place.at(memory);
                double* const to = &sums[part * sums_size];
                BadRow found;
                for (int64_t block = parts.first(part); block < parts.first(part + 1); ++block) {
                    found.note(run(block, scored, memory));
                    for (int64_t tile = 0; tile < tiling.n_tiles; ++tile)
                        add_outer_products(scored.s, head.scores_size(), scored.rows, stride,
                                           panels_of(grid.rows_of(block)), tiling, k, tile, to,
                                           to + k * stride);
                }
                return found;
            });
        for (int64_t part = 1; part < parts.count; ++part)
            add_numbers(&sums[part * sums_size], sums_size, sums.get());
    } else {
        const int64_t panels_at = layout.add(panels * head.panel_size());
        const int64_t norms_at = layout.add(grid.block_rows);
        const int64_t rows_size = grid.block_rows * stride, w_size = panels * head.scores_size();
        const int64_t affordable = kSlabBytes / ((rows_size + w_size) * int64_t(sizeof(T)));
        const int64_t slab_blocks =
            most(1, least(least(kSlabRows / grid.block_rows, affordable), grid.n_blocks));
        const Buffer<T> rows(slab_blocks * rows_size);
        const Buffer<T> w(slab_blocks * w_size);
        for (int64_t first = 0; first < grid.n_blocks; first += slab_blocks) {
            const int64_t n_blocks = least(slab_blocks, grid.n_blocks - first);
            const int64_t n_rows =
                least(grid.n - first * grid.block_rows, n_blocks * grid.block_rows);
            const double part_of_work = work * double(n_rows) / double(grid.n);
            bad = for_each_with_memory<T>(
                n_blocks, layout, part_of_work, n_threads, bad, [&](int64_t i, T* memory) {
                    return run(first + i,
                               {rows.get() + i * rows_size, memory + panels_at, memory + norms_at,
                                w.get() + i * w_size},
                               memory);
                });
            for_each_chunk(tiling.n_tiles, useful_threads(n_threads, tiling.n_tiles, part_of_work),
                           [&](int64_t tile, int) {
                               add_outer_products(w.get(), head.scores_size(), rows.get(), stride,
                                                  panels_of(n_rows), tiling, k, tile, sums.get(),
                                                  &sums[k * stride]);
                           });
        }
    }
    finish_params(head, raw, sums.get(), &sums[k * stride], dparams);
    return bad;
}

}  // namespace deepclust::DEEPCLUST_ISA
