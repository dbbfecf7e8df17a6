// Hard assignment: the nearest centroid of each point, by squared Euclidean distance.
//
//   labels_i = argmin_j s_ij        sq_dist_i = sum_e (x_ie - mu_je)^2,  j = labels_i
//
//   d <= 16:  s_ij = sum_e (x_ie - mu_je)^2
//   else:     s_ij = ||m_j||^2 / 2 - z_i . m_j,   z_i = x_i - c,  m_j = mu_j - c
//
// The second is (||z_i - m_j||^2 - ||z_i||^2) / 2: a row's own norm moves no minimum. It takes one
// operation a term instead of two, around the origin c of heads.h. It still rounds more than direct
// differences do, so a row whose two best scores are closer than that rounding is decided by direct
// differences, and so is every sq_dist. Ties go to the lowest index; a NaN never wins.
//
// Scores of 16-bit integers (integers.h) take half the time, and leave of each row the few
// centroids that they cannot tell apart, most often one: so it goes where there is an instruction
// for them.
//
// Where scores would leave many rows open, since all lie far from the origin, they go to
// row_scores.h, which leaves of each row the few centroids that rounding cannot tell apart; some
// rows from all over x say so first.
//
// Memory: the centroids packed once; for each thread a block of points, and copies of a panel's
// rows where they are picked by number (all of them where the sums take a pass of their own). The
// tile of scores stays in registers, and only the running minimum leaves it. Reads n d + k d
// numbers; 2 n k d operations, or 3 n k d.

#include "kmeans_assign.h"

#include "integer_rows.h"
#include "kernels.h"
#include "label_sums.h"
#include "picked_rows.h"
#include "row_scores.h"

namespace deepclust::DEEPCLUST_ISA {
namespace {

// Where integers are worth that rows have to be rounded first.
constexpr int64_t kFewestForIntegers = kRegisterBytes == 64 ? 4 : 32;  // centroids
constexpr int64_t kProductsForIntegers = 512;                          // of a row
constexpr int64_t kRowsForIntegers = 512;  // as centroids have to be rounded, too

constexpr int64_t kFusedBytes = 64 << 10;  // of sums; larger ones take a pass of their own
constexpr int64_t kNumbersPerSum = 64;     // that a part reads at least: its sums then cost little

template <typename T>
PickedRows<T> picked_rows(const KMeansAssign<T>& call) {
    return {call.x, call.rows, call.n, call.d};
}

template <typename T>
struct PackedCentroids {
    int64_t stride;
    Buffer<T> origin;    // (stride): c, or zeros for direct differences
    PackedColumns<T> m;  // (d, k)
    Buffer<T> offset;  // (m.tiling.padded()): ||m_j||^2 / 2, or zero; Inf, which never wins, past k

    PackedCentroids(const KMeansAssign<T>& call, bool direct)
        : stride(round_up<T>(call.d)), origin(stride) {
        for (int64_t e = 0; e < stride; ++e) origin[e] = 0;
        if (!direct) median_origin(call.mu, call.k, call.d, origin.get());
        m = PackedColumns<T>(call.d, call.k,
                             [&](int64_t e, int64_t j) { return call.mu(j, e) - origin[e]; });
        offset = Buffer<T>(m.tiling.padded());
        for (int64_t j = 0; j < m.tiling.padded(); ++j) {
            double sq_norm = 0;
            for (int64_t e = 0; e < call.d && j < call.k && !direct; ++e) {
                const T value = call.mu(j, e) - origin[e];
                sq_norm += double(value) * value;
            }
            offset[j] = j < call.k ? static_cast<T>(sq_norm / 2) : kInfinity<T>;
        }
    }
};

// The running minima of the scores of a panel's points, and where they were found.
template <typename T>
struct Minima {
    T best[kPoints<T>], second[kPoints<T>];
    IntLike<T> label[kPoints<T>];
};

// Folds the scores of one tile of centroids into the minima of a panel's points. Always inlined: a
// call for each tile of a panel takes 3 % more instructions.
template <bool kDirect, int kWidth, typename T>
inline __attribute__((always_inline)) void fold_tile(const T* z, const PackedCentroids<T>& packed,
                                                     int64_t tile, Minima<T>& minima) {
    const int64_t d = packed.m.length;
    const T* const m = packed.m.tile(tile);
    Lanes<T> s[kWidth][kVectors];
    for (int j = 0; j < kWidth; ++j)
        for (int v = 0; v < kVectors; ++v) s[j][v] = broadcast(packed.offset[tile * kWidth + j]);
    if constexpr (kDirect) {
        add_sq_differences<kWidth>(z, m, d, s);
    } else {
        for (int64_t e = 0; e < d; e += kRunLength) {
            Lanes<T> sum[kWidth][kVectors] = {};
            add_products(z + e * kPoints<T>, kPoints<T>, m + e * kWidth, kWidth, 1,
                         least(kRunLength, d - e), sum);
            for (int j = 0; j < kWidth; ++j)
                for (int v = 0; v < kVectors; ++v) s[j][v] -= sum[j][v];
        }
    }
    for (int v = 0; v < kVectors; ++v) {
        const int at = v * kLanes<T>;
        Lanes<T> best = load(minima.best + at), second = load(minima.second + at);
        IntLanes<T> label = load(minima.label + at);
        for (int j = 0; j < kWidth; ++j) {
            const auto wins = s[j][v] < best;
            if constexpr (!kDirect) second = min(second, max(s[j][v], best));
            best = wins ? s[j][v] : best;
            label = wins ? broadcast(static_cast<IntLike<T>>(tile * kWidth + j)) : label;
        }
        store<T>(minima.best + at, best);
        store<T>(minima.second + at, second);
        store<IntLike<T>>(minima.label + at, label);
    }
}

// How far apart the two best scores of a row must be for rounding to have left the winner alone.
//
// |error of s_ij| <= gamma (||z_i|| ||m_j|| + ||m_j||^2 / 2), gamma the length of the longest chain
// of additions times the unit roundoff. With w the winner found and b the true one,
// ||m_b|| <= ||z|| + ||z - m_b|| <= ||z|| + ||z - m_w|| <= 2 a for a = ||z|| + ||m_w||, so the
// errors of the two scores come to less than (1 + 4) gamma a^2.
template <typename T>
T clear_margin(T z_sq_norm, T half_m_sq_norm, int64_t d) {
    constexpr T kRoundoff = std::numeric_limits<T>::epsilon() / 2;
    const T gamma = T(least(d, kRunLength) + d / kRunLength + 8) * kRoundoff;
    const T a = std::sqrt(z_sq_norm) + std::sqrt(2 * half_m_sq_norm);
    return 5 * gamma * a * a;
}

// Blocks of rows by panels of rows.
template <bool kDirect, typename T>
struct PanelBlocks {
    static constexpr int64_t kRowsPerProbe = 32, kFewRows = kPoints<T>;

    const KMeansAssign<T>& call;
    PackedCentroids<T> packed;
    int64_t panel_size;
    Grid grid;
    Layout layout;
    int64_t panels_at, norms_at, x_at, mu_at;  // x and mu for what is strided

    explicit PanelBlocks(const KMeansAssign<T>& call)
        : call(call),
          packed(call, kDirect),
          panel_size(packed.stride * kPoints<T>),
          grid(call.n, kPoints<T>, panel_size * int64_t(sizeof(T))),
          panels_at(layout.add(grid.block_rows / kPoints<T> * panel_size)),
          norms_at(layout.add(grid.block_rows)),
          x_at(layout.add(call.d)),
          mu_at(layout.add(call.d)) {}

    // Assigns rows [first, first + n_rows) of x, at most a block, with memory as `layout` says.
    BadRow operator()(Matrix<T> x, int64_t first, int64_t n_rows, T* memory) const {
        T* const sq_norm = memory + norms_at;
        Minima<T> minima[kMaxPanels];
        BadRow bad;
        for (int64_t at = 0, p = 0; at < n_rows; at += kPoints<T>, ++p)
            load(x, call.n, first + at, memory, p, minima[p]);
        if (call.check && !all_finite(sq_norm, n_rows))
            bad = first_bad_row(0, x, first, n_rows, call.d);
        fold((n_rows + kPoints<T> - 1) / kPoints<T>, memory, minima);
        for (int64_t i = 0; i < n_rows; ++i) {
            const Minima<T>& found = minima[i / kPoints<T>];
            const int64_t lane = i % kPoints<T>;
            int64_t label = found.label[lane];
            T nearest = found.best[lane];
            if constexpr (!kDirect) {
                const T* const row = row_of(x, first + i, call.d, memory + x_at);
                const auto sq_dist = [&](int64_t j) {
                    return sq_dist_between(row, row_of(call.mu, j, call.d, memory + mu_at), call.d);
                };
                nearest = sq_dist(label);
                if (!is_clear(found, lane, sq_norm[i])) {
                    nearest = kInfinity<T>;
                    for (int64_t j = 0; j < call.k; ++j) {
                        const T candidate = sq_dist(j);
                        if (candidate < nearest) nearest = candidate, label = j;
                    }
                }
            }
            call.labels[first + i] = label;
            if (call.sq_dist != nullptr) call.sq_dist[first + i] = nearest;
        }
        return bad;
    }

    // Whether scores leave more rows undecided than they are worth, by one panel of rows from all
    // over x: such as lie so far from the origin that what tells centroids apart is rounded away.
    bool scores_round_too_much() const {
        if (kDirect || call.n < kRowsPerProbe * kPoints<T>) return false;
        const Buffer<T> memory(layout.size), some(kPoints<T> * call.d);
        Minima<T> minima;
        picked_rows(call).copy(0, call.n / kPoints<T>, kPoints<T>, some.get());
        load({some.get(), call.d, 1}, kPoints<T>, 0, memory.get(), 0, minima);
        fold(1, memory.get(), &minima);
        int n_unclear = 0;
        for (int i = 0; i < kPoints<T>; ++i)
            n_unclear += !is_clear(minima, i, memory[norms_at + i]);
        return n_unclear * 4 > kPoints<T>;
    }

    void load(Matrix<T> x, int64_t n, int64_t first, T* memory, int64_t p,
              Minima<T>& minima) const {
        load_panel<T>(x, n, first, call.d,
                      kDirect ? nullptr : static_cast<const T*>(packed.origin.get()),
                      {memory + panels_at + p * panel_size, memory + norms_at + p * kPoints<T>});
        for (int i = 0; i < kPoints<T>; ++i) {
            minima.best[i] = minima.second[i] = kInfinity<T>;
            minima.label[i] = 0;
        }
    }
    void fold(int64_t n_panels, const T* memory, Minima<T>* minima) const {
        with_constant<kMaxWidth>(static_cast<int>(packed.m.tiling.width), [&](auto width) {
            for (int64_t tile = 0; tile < packed.m.tiling.n_tiles; ++tile)
                for (int64_t p = 0; p < n_panels; ++p)
                    fold_tile<kDirect, width()>(memory + panels_at + p * panel_size, packed, tile,
                                                minima[p]);
        });
    }
    // False of NaN, too.
    bool is_clear(const Minima<T>& found, int64_t lane, T sq_norm) const {
        const T margin = clear_margin(sq_norm, packed.offset[found.label[lane]], call.d);
        return found.second[lane] - found.best[lane] > margin;
    }
};

// Blocks of rows by integers (integer_rows.h).
template <typename T>
struct IntegerBlocks {
    static constexpr int64_t kRowsPerProbe = 32, kFewRows = kIntegerRows;

    const KMeansAssign<T>& call;
    IntegerCentroids centroids;
    Grid grid;
    Layout layout;
    RowRounder<T> rounder;
    Words<T> panels_at;
    int64_t copies_at;

    IntegerBlocks(const KMeansAssign<T>& call, const T* origin)
        : call(call),
          centroids(call.mu, call.d, call.k, origin),
          grid(call.n, kIntegerRows, panel_numbers(call.d) * int64_t(sizeof(int32_t))),
          rounder(layout, call.d, origin),
          panels_at(layout, grid.block_rows / kIntegerRows * panel_numbers(call.d)),
          copies_at(layout.add(2 * call.d)) {}

    // Assigns rows [first, first + n_rows) of x, at most a block, with memory as `layout` says.
    BadRow operator()(Matrix<T> x, int64_t first, int64_t n_rows, T* memory) const {
        int32_t* const panels = panels_at.template in<int32_t>(memory);
        bool finite = true;
        for (int64_t i = 0; i < n_rows; i += kIntegerRows)
            finite &= rounder.round(x, call.n, first + i, memory,
                                    panels + i / kIntegerRows * panel_numbers(call.d));
        assignment(x, call.labels, call.sq_dist).run(panels, first, n_rows, memory + copies_at);
        if (call.check && !finite) return first_bad_row(0, x, first, n_rows, call.d);
        return {};
    }

    // Whether integers leave more rows open than they are worth, by one panel of rows from all over
    // x.
    bool leave_too_much() const {
        if (call.n < kRowsPerProbe * kIntegerRows) return false;
        const Buffer<T> memory(layout.size), some(kIntegerRows * call.d);
        picked_rows(call).copy(0, call.n / kIntegerRows, kIntegerRows, some.get());
        const Matrix<T> x{some.get(), call.d, 1};
        int64_t labels[kIntegerRows];
        int32_t* const panel = panels_at.template in<int32_t>(memory.get());
        rounder.round(x, kIntegerRows, 0, memory.get(), panel);
        const int64_t n_open =
            assignment(x, labels, nullptr).run(panel, 0, kIntegerRows, memory.get() + copies_at);
        return n_open * 4 > kIntegerRows;
    }

  private:
    IntegerAssignment<T> assignment(Matrix<T> x, int64_t* labels, T* sq_dist) const {
        return {x, call.mu, call.d, labels, sq_dist, centroids};
    }
};

// Blocks of rows by panels of centroids (row_scores.h), where scores round too much.
template <typename T>
struct RowBlocks {
    static constexpr int64_t kRows = 8 * kSideBySide, kFewRows = kPoints<T>;

    const KMeansAssign<T>& call;
    RowPanels<T> panels;
    Grid grid;
    Layout layout;
    int64_t z_at, x_at, mu_at;

    explicit RowBlocks(const KMeansAssign<T>& call)
        : call(call),
          panels(call.mu, call.d, call.k),
          grid(call.n, kRows),
          z_at(layout.add(kRows * panels.stride)),
          x_at(layout.add(kRows * panels.stride)),
          mu_at(layout.add(call.d)) {}

    BadRow operator()(Matrix<T> matrix, int64_t first, int64_t n_rows, T* memory) const {
        RowOnTheWay<T> rows[kRows];
        const T* x[kRows];
        const T* z[kRows];
        T norms[kRows];
        const auto sq_dist = [&](int64_t r, int64_t j) {
            return sq_dist_between(x[r], row_of(call.mu, j, call.d, memory + mu_at), call.d);
        };
        for (int64_t r = 0; r < n_rows; ++r) {
            T* const to = memory + z_at + r * panels.stride;
            x[r] = row_of(matrix, first + r, call.d, memory + x_at + r * panels.stride);
            z[r] = to;
            norms[r] = panels.load_row(x[r], to);
            const T nearest = sq_dist(r, 0);
            rows[r] = {first + r, 0, nearest < kInfinity<T> ? nearest : kInfinity<T>, norms[r]};
        }
        for (int64_t p = 0; p < panels.n_panels; ++p)
            for (int64_t r = 0; r < n_rows; r += kSideBySide) {
                const int n = static_cast<int>(least(kSideBySide, n_rows - r));
                Lanes<T> scores[kSideBySide];
                score_rows(panels, p, z + r, n, scores);
                for (int i = 0; i < n; ++i)
                    panels.choose(
                        p, scores[i], rows[r + i], [&](int64_t j) { return sq_dist(r + i, j); },
                        [] {});
            }
        for (int64_t r = 0; r < n_rows; ++r) {
            call.labels[first + r] = rows[r].label;
            if (call.sq_dist != nullptr) call.sq_dist[first + r] = rows[r].nearest;
        }
        if (call.check && !all_finite(norms, n_rows))
            return first_bad_row(0, matrix, first, n_rows, call.d);
        return {};
    }
};

// Runs all blocks, and adds up the sums.
template <typename T, typename Blocks>
BadRow assign(const KMeansAssign<T>& call, const Blocks& blocks) {
    const Grid& grid = blocks.grid;
    const BadRow bad = call.check ? first_bad_row(1, call.mu, 0, call.k, call.d) : BadRow{};
    const double work = double(call.n) * double(call.k) * double(call.d);
    if (call.sums == nullptr)
        return for_each_with_memory<T>(
            grid.n_blocks, blocks.layout, work, call.n_threads, bad, [&](int64_t block, T* memory) {
                return blocks(call.x, block * grid.block_rows, grid.rows_of(block), memory);
            });

    // While rows are in cache: they go to the sums of their part. Few at a time are copied, while
    // those that come next are on their way.
    const PickedRows<T> picked = picked_rows(call);
    const int64_t most_rows = call.rows == nullptr ? grid.block_rows : Blocks::kFewRows;
    Layout layout = blocks.layout;
    const int64_t rows_at = layout.add(picked.room(most_rows));
    const WeightedRows<T> rows{call.x, call.n, call.d, call.k, call.labels, call.weight};
    const int64_t width = sums_width<T>(call.d), size = call.k * width;
    const Parts parts(grid, size, 1, call.n * call.d / (kNumbersPerSum * size));
    const Buffer<double> sums(parts.count * size);
    std::memset(sums.get(), 0, static_cast<size_t>(parts.count * size) * sizeof(double));
    const BadRow found = for_each_with_memory<T>(
        parts.count, layout, work + picked.work(), call.n_threads, bad,
        [&](int64_t part, T* memory) {
            BadRow in_part;
            WeightedRows<T> some = rows;
            const int64_t end = least(call.n, parts.first(part + 1) * grid.block_rows);
            for (int64_t at = parts.first(part) * grid.block_rows; at < end; at += most_rows) {
                const int64_t n_rows = least(most_rows, end - at);
                some.x = picked.block(at, n_rows, memory + rows_at);
                in_part.note(blocks(some.x, at, n_rows, memory));
                some.add({part, at, at + n_rows, 0, width, &sums[part * size]});
            }
            return in_part;
        });
    for (int64_t part = 1; part < parts.count; ++part)
        add_numbers(&sums[part * size], size, sums.get());
    rows.split(sums.get(), call.sums, call.counts);
    return found;
}

template <typename T>
BadRow assign(const KMeansAssign<T>& call) {
    if (call.d <= kDirectWidth) return assign(call, PanelBlocks<true, T>(call));
    const PanelBlocks<false, T> by_panels(call);
    if (by_panels.scores_round_too_much()) return assign(call, RowBlocks<T>(call));
    if (kHasPairs && call.n >= kRowsForIntegers && call.k >= kFewestForIntegers &&
        call.k * (call.d - kDirectWidth) >= kProductsForIntegers) {
        const IntegerBlocks<T> by_integers(call, by_panels.packed.origin.get());
        if (!by_integers.leave_too_much()) return assign(call, by_integers);
    }
    return assign(call, by_panels);
}

}  // namespace

template <typename T>
BadRow kmeans_assign(const KMeansAssign<T>& call) {
    const int64_t sums_bytes = call.k * sums_width<T>(call.d) * int64_t(sizeof(double));
    const bool apart = call.sums != nullptr && sums_bytes > kFusedBytes;
    if (!apart) return assign(call);
    KMeansAssign<T> job = call;
    job.sums = nullptr;
    Buffer<T> copies;
    if (call.rows != nullptr) {  // two passes read them
        copies = Buffer<T>(call.n * call.d);
        picked_rows(call).copy_all(call.n_threads, copies.get());
        job.x = {copies.get(), call.d, 1};
        job.rows = nullptr;
    }
    const BadRow bad = assign(job);
    if (bad.input >= 0) return bad;
    return kmeans_update<T>({job.x, call.n, call.d, call.k, call.labels, call.weight, call.sums,
                             call.counts, call.n_threads, false});
}

template BadRow kmeans_assign(const KMeansAssign<float>&);
template BadRow kmeans_assign(const KMeansAssign<double>&);

}  // namespace deepclust::DEEPCLUST_ISA
