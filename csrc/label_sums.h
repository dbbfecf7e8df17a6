// Sums over the rows of each label, (k, d) of them in double, the same for any number of threads.
//
// Where k d is small, the rows are cut into at most kParts parts with sums of their own, added up
// in order at the end. Where it is large, parts would take too much memory: each task owns a range
// of columns then, and reads all rows.

#pragma once

#include <cmath>

#include "blocks.h"

namespace deepclust::DEEPCLUST_ISA {

// Rows [first, end) and columns [begin, stop) of one task, and where their sums go.
struct LabelTask {
    int64_t index, first, end, begin, stop;
    double* sums;  // (k, d)
};

class LabelSums {
  public:
    // parts_bytes: what the sums of all parts may take.
    LabelSums(int64_t n, int64_t k, int64_t d, int64_t parts_bytes = kPartsBytes)
        : n_(n), k_(k), d_(d) {
        const int64_t affordable = parts_bytes / (k * d * int64_t(sizeof(double)));
        const bool few = affordable >= kFewestParts;
        n_parts_ = few ? most(1, least(least(kParts, affordable), n / kPartRows)) : 1;
        n_ranges_ = few ? 1 : (d + kRange - 1) / kRange;
        rest_ = Buffer<double>((n_parts_ - 1) * k * d);
    }

    int64_t n_tasks() const { return n_parts_ * n_ranges_; }

    // OUT sums (k, d). body(task) adds to task.sums what its rows and columns give.
    template <typename Body>
    void run(double* sums, int n_threads, const Body& body) const {
        const int64_t size = k_ * d_;
        n_threads = useful_threads(n_threads, n_tasks(), double(n_) * double(d_));
        std::memset(sums, 0, static_cast<size_t>(size) * sizeof(double));
        for_each_chunk(n_tasks(), n_threads, [&](int64_t task, int) {
            const int64_t part = task / n_ranges_, range = task % n_ranges_;
            double* const mine = part == 0 ? sums : &rest_[(part - 1) * size];
            if (part > 0) std::memset(mine, 0, static_cast<size_t>(size) * sizeof(double));
            const int64_t width = n_ranges_ == 1 ? d_ : kRange;
            body(LabelTask{task, part * n_ / n_parts_, (part + 1) * n_ / n_parts_, range * width,
                           least(d_, (range + 1) * width), mine});
        });
        for (int64_t part = 1; part < n_parts_; ++part)
            add_numbers(&rest_[(part - 1) * size], size, sums);
    }

  private:
    static constexpr int64_t kFewestParts = 8, kPartRows = 1024, kRange = 64;
    int64_t n_, k_, d_, n_parts_, n_ranges_;
    Buffer<double> rest_;  // the sums of all parts but the first
};

// The sums of the centroid update: a row's sum is its numbers, a 1 and zeros, times its weight, so
// that counts come along in column d of sums (k, sums_width).
template <typename T>
int64_t sums_width(int64_t d) {
    return round_up<T>(d + 1);
}

template <typename T>
struct WeightedRows {
    Matrix<T> x;
    int64_t n, d, k;
    const int64_t* labels;
    const T* weight;                // or null: all 1
    const int64_t* before;          // the labels before, or null
    const int64_t* rows = nullptr;  // row i is x's row rows[i]; or null: row i

    // Adds the rows of a task to its sums; of labels before, those of another label than then, and
    // takes them from what had them. Returns the first row that a label of is none, or -1.
    int64_t add(const LabelTask& task) const {
        if (rows != nullptr || !is_narrow(x, d)) return add_rows<0>(task);
        int64_t found = -1;
        with_constant<kNarrow>(static_cast<int>(d),
                               [&](auto width) { found = add_rows<width()>(task); });
        return found;
    }

    bool is_label(int64_t label) const { return label >= 0 && label < k; }

    // OUT sums (k, d) and counts (k), of `wide` ones.
    void split(const double* wide, double* sums, double* counts) const {
        for (int64_t j = 0; j < k; ++j, wide += sums_width<T>(d)) {
            for (int64_t e = 0; e < d; ++e) sums[j * d + e] = wide[e];
            counts[j] = wide[d];
        }
    }

    // The first row of x or of the weights with NaN or Inf, where sums or counts have.
    BadRow find_bad(const double* sums, const double* counts) const {
        bool finite = true;  // and where all sums are, all terms were
        for (int64_t i = 0; i < k * d; ++i) finite &= std::isfinite(sums[i]);
        for (int64_t j = 0; j < k; ++j) finite &= std::isfinite(counts[j]);
        if (finite) return {};
        const BadRow in_x = first_bad_row(0, x, 0, n, d);
        if (in_x.input >= 0 || weight == nullptr) return in_x;
        return first_bad_row(1, Matrix<T>{weight, 1, 1}, 0, n, 1);
    }

  private:
    static Lanes<T> ending_with_one(Lanes<T> numbers, int64_t count) {
        numbers = first_lanes<T>(numbers, count);
        numbers[count] = 1;
        return numbers;
    }

    double weight_of(int64_t i) const { return weight == nullptr ? 1.0 : weight[i]; }
    const T* row(int64_t i) const { return x.row(rows == nullptr ? i : rows[i]); }

    // kWidth: d, of contiguous rows; or 0, of any. Wide rows go so few at a time that they stay in
    // the second cache while their columns are gone through, and so few columns that their sums
    // stay in the first.
    template <int kWidth>
    int64_t add_rows(const LabelTask& task) const {
        constexpr int64_t kRun = 2048;
        const int64_t fitting = kRunBytes / (d * int64_t(sizeof(T)));
        const int64_t run = kWidth > 0 ? kRun : most(1, least(kRun, fitting));
        const int64_t columns = kWidth > 0 ? task.stop : columns_at_a_time(task.stop - task.begin);
        for (int64_t first = task.first; first < task.end; first += run) {
            const int64_t n_rows = least(run, task.end - first);
            int64_t changed[kRun + kLanes<int64_t>];
            const int64_t n_changed =
                before == nullptr ? 0 : find_changed(first, first + n_rows, changed);
            for (int64_t begin = task.begin; begin < task.stop; begin += columns) {
                LabelTask part = task;
                part.first = first;
                part.end = first + n_rows;
                part.begin = begin;
                part.stop = least(task.stop, begin + columns);
                const int64_t bad = before == nullptr
                                        ? add_all<kWidth>(part)
                                        : add_changed<kWidth>(part, changed, n_changed);
                if (bad >= 0) return bad;
            }
        }
        return -1;
    }

    // OUT changed: the rows of [first, end) of which the label is another than before, and maybe a
    // register's others behind them. Returns how many. Without a branch, which nothing could
    // foresee.
    int64_t find_changed(int64_t first, int64_t end, int64_t* changed) const {
        int64_t count = 0, i = first;
#if defined(__AVX512F__)
        constexpr int64_t kL = kLanes<int64_t>;
        __m512i at =
            _mm512_add_epi64(_mm512_set1_epi64(i), _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
        for (; i + kL <= end; i += kL, at = _mm512_add_epi64(at, _mm512_set1_epi64(kL))) {
            const __mmask8 differs = _mm512_cmpneq_epi64_mask(_mm512_loadu_si512(labels + i),
                                                              _mm512_loadu_si512(before + i));
            _mm512_storeu_si512(changed + count, _mm512_maskz_compress_epi64(differs, at));
            count += __builtin_popcount(differs);
        }
#endif
        for (; i < end; ++i) {
            changed[count] = i;
            count += labels[i] != before[i];
        }
        return count;
    }

    template <int kWidth>
    inline __attribute__((always_inline)) int64_t add_all(LabelTask task) const {
        for (int64_t i = task.first; i < task.end; ++i) {
            if (!is_label(labels[i])) return i;
            if (is_narrow_row<kWidth>(i))
                add_narrow<kWidth, 1>(task, i, {labels[i]}, {weight_of(i)});
            else
                add_columns(task, i, labels[i], weight_of(i));
        }
        return -1;
    }

    template <int kWidth>
    inline __attribute__((always_inline)) int64_t add_changed(LabelTask task,
                                                              const int64_t* changed,
                                                              int64_t n_changed) const {
        constexpr int64_t kAhead = 16, kLine = 64 / sizeof(T);
        // To the end of the line in which a row ends, unless its numbers lie apart.
        const int64_t stop = x.col_stride == 1 ? least(d, task.stop) + kLine : 0;
        // Rows that lie apart, which the processor does not foresee. They are called ahead right
        // here: a function that does nothing else GCC takes for one without effect, and drops.
        for (int64_t r = 0; r < n_changed + kAhead; ++r) {
            for (int64_t e = task.begin; r < n_changed && e < stop; e += kLine)
                __builtin_prefetch(row(changed[r]) + e);
            if (r < kAhead) continue;
            const int64_t i = changed[r - kAhead];
            if (!is_label(labels[i]) || !is_label(before[i])) return i;
            const double w = weight_of(i);
            if (is_narrow_row<kWidth>(i)) {
                add_narrow<kWidth, 2>(task, i, {labels[i], before[i]}, {w, -w});
            } else {
                add_columns(task, i, labels[i], w);
                add_columns(task, i, before[i], -w);
            }
        }
        return -1;
    }

    // Of `width` ones: in whole lines, or all where these would be too few to be worth it.
    int64_t columns_at_a_time(int64_t width) const {
        const int64_t columns = kSumsBytes / (k * int64_t(sizeof(double))) / kLeast * kLeast;
        return columns < kLeast ? width : columns;
    }
    static constexpr int64_t kSumsBytes = 16 << 10, kRunBytes = 128 << 10, kLeast = 64;

    // Adds row i, of a task that has all columns, to the sums of some labels, times a weight each.
    // Past its end lie the next rows: it is none of the last few.
    template <int kWidth, int kCount>
    inline __attribute__((always_inline)) void add_narrow(const LabelTask& task, int64_t i,
                                                          const int64_t (&to)[kCount],
                                                          const double (&w)[kCount]) const {
        constexpr int64_t kL = kLanes<T>;
        const int64_t stride = sums_width<T>(kWidth);
        for (int64_t e = 0; e < stride; e += kL) {
            const Lanes<T> numbers = load(row(i) + e);
            for (int l = 0; l < kCount; ++l)
                add_widened<T>(task.sums + to[l] * stride + e,
                               e + kL <= kWidth ? numbers : ending_with_one(numbers, kWidth - e),
                               w[l]);
        }
    }
    template <int kWidth>
    bool is_narrow_row(int64_t i) const {
        return kWidth > 0 && i + kLanes<T> < n;
    }

    // Adds a task's columns of row i, times w, to the sums of a label.
    void add_columns(const LabelTask& task, int64_t i, int64_t label, double w) const {
        const T* const from = row(i);
        double* const to = task.sums + label * sums_width<T>(d);
        const int64_t stop = least(d, task.stop);
        if (x.col_stride == 1)  // a constant stride makes it vectorise
            for (int64_t e = task.begin; e < stop; ++e) to[e] += w * from[e];
        else
            for (int64_t e = task.begin; e < stop; ++e) to[e] += w * from[e * x.col_stride];
        if (task.stop == sums_width<T>(d)) to[d] += w;
    }
};

constexpr int64_t kFusedBytes = 64 << 10;  // of sums; larger ones take a pass of their own
constexpr int64_t kNumbersPerSum = 64;     // that a part reads at least: its sums then cost little

template <typename T>
bool sums_are_fused(int64_t d, int64_t k) {
    return k * sums_width<T>(d) * int64_t(sizeof(double)) <= kFusedBytes;
}

// Labels, and the sums of their rows while these are in cache. body(first, n_rows, memory, some)
// labels rows [first, first + n_rows), at most `most_rows` of a block, and returns the first bad
// one, with memory as `layout` says; it may point some.x to where they lie now. Rows are as many as
// the grid has, and of each part the sums are its own. OUT sums (k, d), counts (k).
template <typename T, typename Body>
BadRow label_and_add(const WeightedRows<T>& rows, const Grid& grid, int64_t most_rows,
                     const Layout& layout, double work, int n_threads, BadRow bad, double* sums,
                     double* counts, const Body& body) {
    const int64_t width = sums_width<T>(rows.d), size = rows.k * width;
    const Parts parts(grid, size, 1, grid.n * rows.d / (kNumbersPerSum * size));
    const Buffer<double> of_parts(parts.count * size);
    bad = for_each_with_memory<T>(
        parts.count, layout, work, n_threads, bad, [&](int64_t part, T* memory) {
            BadRow in_part;
            WeightedRows<T> some = rows;
            double* const mine = &of_parts[part * size];
            std::memset(mine, 0, static_cast<size_t>(size) * sizeof(double));
            const int64_t end = least(grid.n, parts.first(part + 1) * grid.block_rows);
            for (int64_t at = parts.first(part) * grid.block_rows; at < end; at += most_rows) {
                const int64_t n_rows = least(most_rows, end - at);
                in_part.note(body(at, n_rows, memory, some));
                const WeightedRows<T> here = some;  // which nothing else refers to
                here.add({part, at, at + n_rows, 0, width, mine});
            }
            return in_part;
        });
    for (int64_t part = 1; part < parts.count; ++part)
        add_numbers(&of_parts[part * size], size, of_parts.get());
    rows.split(of_parts.get(), sums, counts);
    return bad;
}

}  // namespace deepclust::DEEPCLUST_ISA
