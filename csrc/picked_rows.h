// Rows of a matrix picked by number, which lie apart: copied side by side, block by block, so that
// what reads them need not know. Rows to come are called into the cache meanwhile.

#pragma once

#include "panels.h"
#include "parallel.h"

namespace deepclust::DEEPCLUST_ISA {

template <typename T>
struct PickedRows {
    static constexpr int64_t kAheadBytes = 2 << 10;  // of rows on their way at a time
    static constexpr int64_t kChunkRows = 64;

    Matrix<T> x;
    const int64_t* rows;  // (n), or null: those of x in order
    int64_t n, d;

    // What a block of them takes; its last row may be read past by a vector.
    int64_t room(int64_t n_rows) const { return rows == nullptr ? 0 : n_rows * d + kLanes<T>; }

    // A matrix whose rows [first, first + n_rows) they are: x, or copies in `memory`.
    Matrix<T> block(int64_t first, int64_t n_rows, T* memory) const {
        if (rows == nullptr) return x;
        copy(first, 1, n_rows, memory);
        return {memory - first * d, d, 1};
    }

    // OUT to (count, d): every step-th row from the first on.
    void copy(int64_t first, int64_t step, int64_t count, T* to) const {
        if (d <= kNarrow && x.col_stride == 1)
            with_constant<kNarrow>(static_cast<int>(d),
                                   [&](auto width) { copy_rows<width()>(first, step, count, to); });
        else
            copy_rows<0>(first, step, count, to);
    }

    // OUT to (n, d): all of them.
    void copy_all(int n_threads, T* to) const {
        const int64_t n_chunks = (n + kChunkRows - 1) / kChunkRows;
        n_threads = useful_threads(n_threads, n_chunks, work());
        for_each_chunk(n_chunks, n_threads, [&](int64_t chunk, int) {
            const int64_t first = chunk * kChunkRows;
            copy(first, 1, least(kChunkRows, n - first), to + first * d);
        });
    }

    // What copying them takes, in multiply-adds: a row waits for memory as long as 64 take.
    double work() const { return rows == nullptr ? 0 : double(n) * double(64 + d); }

  private:
    const T* row(int64_t i) const { return x.row(rows == nullptr ? i : rows[i]); }

    // kWidth: d, of numbers side by side; or 0, of any.
    template <int kWidth>
    void copy_rows(int64_t first, int64_t step, int64_t count, T* to) const {
        constexpr int64_t kLine = 64 / sizeof(T);
        const int64_t width = kWidth > 0 ? kWidth : d;
        const int64_t ahead = most(1, kAheadBytes / (width * int64_t(sizeof(T)))) * step;
        for (int64_t i = first; i < first + count * step; i += step, to += width) {
            if (i + ahead < n) {
                const T* const later = row(i + ahead);
                // Into the second cache, which waits for more lines at a time than the first.
                for (int64_t e = 0; e < width; e += kLine) __builtin_prefetch(later + e, 0, 2);
                __builtin_prefetch(later + width - 1, 0, 2);
            }
            const T* const from = row(i);
            if (x.col_stride == 1)
                std::memcpy(to, from, static_cast<size_t>(width) * sizeof(T));
            else
                for (int64_t e = 0; e < width; ++e) to[e] = from[e * x.col_stride];
        }
    }
};

}  // namespace deepclust::DEEPCLUST_ISA
