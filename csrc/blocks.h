// The passes over all points that every primitive with a head makes.
//
// Points go through in blocks of some panels: features in, scores by one product, and then what the
// primitive makes of them. A block is a fixed number of rows, and sums over blocks are taken in the
// order of the rows, so nothing depends on the number of threads.

#pragma once

#include "heads.h"
#include "parallel.h"

namespace deepclust::DEEPCLUST_ISA {

constexpr int64_t kMaxPanels = 8;
constexpr int64_t kBlockBytes = 256 << 10;  // for a block's scores: they stay in the second cache
constexpr int64_t kParts = 64;
constexpr int64_t kPartsBytes = 16 << 20;    // for the sums of all parts
constexpr int64_t kThreadsBytes = 48 << 20;  // for the buffers of all threads

// Cuts a thread's memory into pieces, each from a cache line on.
struct Layout {
    int64_t size = 0;

    int64_t add(int64_t count) {
        constexpr int64_t kCacheLine = 16;  // floats, or two lines of doubles
        const int64_t at = size;
        size += (count + kCacheLine - 1) / kCacheLine * kCacheLine;
        return at;
    }
};

// How n points are cut into blocks.
struct Grid {
    int64_t n, block_rows, n_blocks;

    Grid(int64_t n, int64_t block_rows)
        : n(n), block_rows(block_rows), n_blocks((n + block_rows - 1) / block_rows) {}
    // Blocks of as many panels as stay in the second cache.
    Grid(int64_t n, int64_t panel_rows, int64_t panel_bytes)
        : Grid(n, panel_rows * most(1, least(kMaxPanels, kBlockBytes / panel_bytes))) {}
    int64_t rows_of(int64_t block) const { return least(block_rows, n - block * block_rows); }
};

// Blocks cut into parts with sums of their own, which are added up in order at the end: as many
// parts as kPartsBytes hold, `fewest` at least, but no more than kParts, `worth` and one a block.
struct Parts {
    int64_t n_blocks, count;

    Parts(const Grid& grid, int64_t sums_each, int64_t fewest, int64_t worth = kParts)
        : n_blocks(grid.n_blocks) {
        const int64_t affordable = kPartsBytes / (sums_each * int64_t(sizeof(double)));
        const int64_t parts = least(least(kParts, worth), most(fewest, affordable));
        count = most(1, least(parts, n_blocks));
    }
    int64_t first(int64_t part) const { return part * n_blocks / count; }  // its first block
};

// IN/OUT to (size).
inline void add_numbers(const double* from, int64_t size, double* to) {
    for (int64_t i = 0; i < size; ++i) to[i] += from[i];
}

template <typename T>
Grid grid_for(const PackedHead<T>& head, int64_t n) {
    return Grid(n, kPoints<T>, head.scores_size() * static_cast<int64_t>(sizeof(T)));
}

// A block's features and scores.
template <typename T>
struct Scored {
    T* rows;      // (points, head.stride), or null: only gradients to parameters read it
    T* panels;    // (panels, head.panel_size())
    T* sq_norms;  // (points)
    T* s;         // (panels, head.scores_size()): products, then what the primitive makes of them
};

// Where they lie in a thread's memory.
template <typename T>
struct ScoredLayout {
    int64_t rows, panels, sq_norms, s;

    ScoredLayout(Layout& layout, const PackedHead<T>& head, const Grid& grid)
        : rows(head.needs_grad() ? layout.add(grid.block_rows * head.stride) : -1),
          panels(layout.add(grid.block_rows / kPoints<T> * head.panel_size())),
          sq_norms(layout.add(grid.block_rows)),
          s(layout.add(grid.block_rows / kPoints<T> * head.scores_size())) {}
    Scored<T> at(T* memory) const {
        return {rows < 0 ? nullptr : memory + rows, memory + panels, memory + sq_norms, memory + s};
    }
};

// A panel of a given matrix (n, width), in a thread's memory.
template <typename T>
struct PanelLayout {
    int64_t width, panel;

    PanelLayout(Layout& layout, int64_t width)
        : width(width), panel(layout.add(kPoints<T> * round_up<T>(width))) {}

    // The panel of rows [first, first + kPoints) of x, which has n.
    T* load(Matrix<T> x, int64_t n, int64_t first, T* memory) const {
        load_panel<T>(x, n, first, width, nullptr, {memory + panel});
        return memory + panel;
    }
};

// OUT scored: the features of rows [first, first + n_rows) of z (n, d), and their products. Returns
// the first bad row, where `check` asks for it.
template <typename T>
BadRow score_block(const PackedHead<T>& head, Matrix<T> z, int64_t n, int64_t first, int64_t n_rows,
                   const Scored<T>& scored, bool check) {
    int64_t p = 0;
    for (int64_t at = 0; at < n_rows; at += kPoints<T>, ++p)
        load_features(head, z, n, first + at,
                      scored.rows == nullptr ? nullptr : scored.rows + at * head.stride,
                      scored.panels + p * head.panel_size(), scored.sq_norms + at);
    multiply_panels(scored.panels, head.panel_size(), p, head.forward, scored.s,
                    head.scores_size());
    if (!check || all_finite(scored.sq_norms, n_rows)) return {};
    return first_bad_row(0, z, first, n_rows, head.d);
}

// The threads that are worth waking, and whose buffers stay within the budget.
inline int threads_for(int n_threads, int64_t n_chunks, double work, int64_t bytes_each) {
    const int64_t affordable = most(1, kThreadsBytes / most(1, bytes_each));
    return useful_threads(static_cast<int>(least(n_threads, affordable)), n_chunks, work);
}

// One thread's findings; a cache line each, since all threads write theirs.
struct alignas(64) Found {
    BadRow bad;
};

// Calls body(chunk, memory), with `layout.size` numbers of memory, for each chunk in [0, n_chunks);
// it returns the first bad row that it met. Returns the first of all, `bad` among them.
template <typename T, typename Body>
BadRow for_each_with_memory(int64_t n_chunks, const Layout& layout, double work, int n_threads,
                            BadRow bad, const Body& body) {
    n_threads = threads_for(n_threads, n_chunks, work, layout.size * int64_t(sizeof(T)));
    const Buffer<T> memory(n_threads * layout.size);
    const Buffer<Found> found(n_threads);
    for (int i = 0; i < n_threads; ++i) found[i] = {};
    for_each_chunk(n_chunks, n_threads, [&](int64_t chunk, int thread) {
        found[thread].bad.note(body(chunk, memory.get() + thread * layout.size));
    });
    for (int i = 0; i < n_threads; ++i) bad.note(found[i].bad);
    return bad;
}

}  // namespace deepclust::DEEPCLUST_ISA
