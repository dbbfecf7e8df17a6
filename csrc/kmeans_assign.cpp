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
// Of few centroids the products are taken row by row (row_dots.h), as it would take as long to turn
// the rows into panels.
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
#include "row_dots.h"
#include "row_scores.h"

namespace deepclust::DEEPCLUST_ISA {
namespace {

// Where integers are worth that rows have to be rounded first.
constexpr int64_t kFewestForIntegers = kRegisterBytes == 64 ? 4 : 32;  // centroids
constexpr int64_t kProductsForIntegers = 512;                          // of a row
constexpr int64_t kRowsForIntegers = 512;  // as centroids have to be rounded, too

template <typename T>
PickedRows<T> picked_rows(const KMeansAssign<T>& call) {
    return {call.x, call.rows, call.n, call.d};
}

// ||m_j||^2 / 2
template <typename T>
T half_sq_norm(Matrix<T> mu, int64_t j, int64_t d, const T* origin) {
    double sum = 0;
    for (int64_t e = 0; e < d; ++e) {
        const T value = mu(j, e) - origin[e];
        sum += double(value) * value;
    }
    return static_cast<T>(sum / 2);
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
        for (int64_t j = 0; j < m.tiling.padded(); ++j)
            offset[j] = j >= call.k ? kInfinity<T>
                        : direct    ? 0
                                    : half_sq_norm(call.mu, j, call.d, origin.get());
    }
};

// The running minima of the scores of a panel's points, and where they were found.
template <typename T>
struct Minima {
    T best[kPoints<T>], second[kPoints<T>];
    IntLike<T> label[kPoints<T>];

    void clear() {
        for (int i = 0; i < kPoints<T>; ++i) {
            best[i] = second[i] = kInfinity<T>;
            label[i] = 0;
        }
    }

    // Folds in the scores of the lanes from `at` on with centroids [first, first + kWidth).
    template <bool kSecond, int kWidth, typename Score>
    inline __attribute__((always_inline)) void fold(int at, int64_t first, const Score& score) {
        Lanes<T> least = load(best + at), next = load(second + at);
        IntLanes<T> found = load(label + at);
        for (int j = 0; j < kWidth; ++j) {
            const Lanes<T> s = score(j);
            const auto wins = s < least;
            if constexpr (kSecond) next = min(next, max(s, least));
            least = wins ? s : least;
            found = wins ? broadcast(static_cast<IntLike<T>>(first + j)) : found;
        }
        store<T>(best + at, least);
        store<T>(second + at, next);
        store<IntLike<T>>(label + at, found);
    }
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
    for (int v = 0; v < kVectors; ++v)
        minima.template fold<!kDirect, kWidth>(v * kLanes<T>, tile * kWidth,
                                               [&](int j) { return s[j][v]; });
}

// How far apart the two best scores of a row must be for rounding to have left the winner alone.
//
// |error of s_ij| <= gamma (||z_i|| ||m_j|| + ||m_j||^2 / 2), gamma the length of the longest chain
// of additions times the unit roundoff. With w the winner found and b the true one,
// ||m_b|| <= ||z|| + ||z - m_b|| <= ||z|| + ||z - m_w|| <= 2 a for a = ||z|| + ||m_w||, so the
// errors of the two scores come to less than (1 + 4) gamma a^2.
template <typename T>
T clear_margin(T z_sq_norm, T half_m_sq_norm, int64_t chain) {
    constexpr T kRoundoff = std::numeric_limits<T>::epsilon() / 2;
    const T gamma = T(chain) * kRoundoff;
    const T a = std::sqrt(z_sq_norm) + std::sqrt(2 * half_m_sq_norm);
    return 5 * gamma * a * a;
}

// Where the scores of a row leave its label in doubt, direct differences decide. row() is row i; it
// is read for that, and for its distance, unless that is not wanted. mu_copy: room for a centroid.
template <typename T, typename Row>
void decide(const KMeansAssign<T>& call, int64_t i, int64_t label, bool is_clear, const Row& row,
            T* mu_copy) {
    if (!is_clear || call.sq_dist != nullptr) {
        const T* const x_i = row();
        const auto sq_dist = [&](int64_t j) {
            return sq_dist_between(x_i, row_of(call.mu, j, call.d, mu_copy), call.d);
        };
        T nearest = is_clear ? sq_dist(label) : kInfinity<T>;
        for (int64_t j = 0; j < call.k && !is_clear; ++j) {
            const T candidate = sq_dist(j);
            if (candidate < nearest) nearest = candidate, label = j;
        }
        if (call.sq_dist != nullptr) call.sq_dist[i] = nearest;
    }
    call.labels[i] = label;
}

// Blocks of few centroids and wide rows (row_dots.h), which are read where they lie.
template <typename T>
struct DotBlocks {
    static constexpr int64_t kCopiedRows = 0;
    static constexpr int64_t kAheadBytes = 16 << 10;  // of rows on their way at a time

    const KMeansAssign<T>& call;
    Buffer<T> origin, offset;
    RowDots<T> dots;
    Grid grid;
    Layout layout;
    int64_t folds_at, x_at, mu_at;  // x and mu for what is strided

    explicit DotBlocks(const KMeansAssign<T>& call)
        : call(call),
          origin(centred_on(call)),
          offset(call.k),
          dots(call.mu, call.d, call.k, origin.get()),
          grid(call.n, kPoints<T>, kPoints<T> * dots.stride * int64_t(sizeof(T))),
          folds_at(layout.add(dots.folds_size())),
          x_at(layout.add(kPoints<T> * call.d)),
          mu_at(layout.add(call.d)) {
        for (int64_t j = 0; j < call.k; ++j)
            offset[j] = half_sq_norm(call.mu, j, call.d, origin.get());
    }

    // Assigns rows [first, first + n_rows), with memory as `layout` says.
    BadRow operator()(Matrix<T>, int64_t first, int64_t n_rows, T* memory) const {
        BadRow bad;
        for (int64_t at = 0; at < n_rows; at += kPoints<T>) {
            const int64_t here = least(kPoints<T>, n_rows - at);
            const T* x[kPoints<T>];
            T sq_norm[kPoints<T>];
            Minima<T> minima;
            minima.clear();
            for (int i = 0; i < kPoints<T>; ++i)
                x[i] = row_of(call.x, row(first + at + i), call.d, memory + x_at + i * call.d);
            for (int v = 0; v < kVectors; ++v)
                fold(first + at, v * kLanes<T>, x, memory + folds_at, sq_norm, minima);
            if (call.check && !all_finite(sq_norm, here))
                bad.note(first_bad_row(0, call.x, first + at, here, call.d));
            for (int64_t i = 0; i < here; ++i)
                decide(
                    call, first + at + i, minima.label[i],
                    minima.second[i] - minima.best[i] >
                        clear_margin(sq_norm[i], offset[minima.label[i]], dots.chain()),
                    [&] { return x[i]; }, memory + mu_at);
        }
        return bad;
    }

  private:
    static Buffer<T> centred_on(const KMeansAssign<T>& call) {
        Buffer<T> origin(round_up<T>(call.d));
        for (int64_t e = 0; e < round_up<T>(call.d); ++e) origin[e] = 0;
        median_origin(call.mu, call.k, call.d, origin.get());
        return origin;
    }
    // Which of call.x is row i; past the last, the last one.
    int64_t row(int64_t i) const {
        i = least(i, call.n - 1);
        return call.rows == nullptr ? i : call.rows[i];
    }
    // The scores of rows [from, from + kLanes) of a panel that begins with row `first`.
    void fold(int64_t first, int from, const T* const* x, T* folds, T* sq_norm,
              Minima<T>& minima) const {
        constexpr int kL = kLanes<T>;
        const int64_t ahead = most(kL, kAheadBytes / (call.d * int64_t(sizeof(T))));
        const T* later[kL];
        for (int i = 0; i < kL; ++i) later[i] = call.x.row(row(first + from + i + ahead));
        dots.multiply(x + from, later, folds);
        store<T>(sq_norm + from, sum_folds<T>(folds + call.k * kL * kL));
        for (int64_t j = 0; j < call.k; ++j)
            minima.template fold<true, 1>(from, j, [&](int) {
                return broadcast(offset[j]) - sum_folds<T>(folds + j * kL * kL);
            });
    }
};

// Blocks of rows by panels of rows.
template <bool kDirect, typename T>
struct PanelBlocks {
    static constexpr int64_t kRowsPerProbe = 32, kCopiedRows = kPoints<T>;

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
            if constexpr (kDirect) {
                call.labels[first + i] = found.label[lane];
                if (call.sq_dist != nullptr) call.sq_dist[first + i] = found.best[lane];
            } else {
                decide(
                    call, first + i, found.label[lane], is_clear(found, lane, sq_norm[i]),
                    [&] { return row_of(x, first + i, call.d, memory + x_at); }, memory + mu_at);
            }
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
        minima.clear();
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
        const int64_t chain = least(call.d, kRunLength) + call.d / kRunLength + 8;
        const T margin = clear_margin(sq_norm, packed.offset[found.label[lane]], chain);
        return found.second[lane] - found.best[lane] > margin;
    }
};

// Blocks of rows by integers (integer_rows.h).
template <typename T>
struct IntegerBlocks {
    static constexpr int64_t kRowsPerProbe = 32, kCopiedRows = kIntegerRows;

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
          rounder(layout, call.d, origin, call.rows != nullptr),
          panels_at(layout, grid.block_rows / kIntegerRows * panel_numbers(call.d)),
          copies_at(layout.add(2 * call.d)) {}

    // Assigns rows [first, first + n_rows) of x, at most a block, with memory as `layout` says.
    BadRow operator()(Matrix<T> x, int64_t first, int64_t n_rows, T* memory) const {
        int32_t* const panels = panels_at.template in<int32_t>(memory);
        double sum = 0;
        for (int64_t i = 0; i < n_rows; i += kIntegerRows)
            sum += rounder.round(x, call.n, first + i, memory,
                                 panels + i / kIntegerRows * panel_numbers(call.d));
        assignment(x, call.labels, call.sq_dist)
            .run(panels, {panels, 0}, first, n_rows, memory + copies_at);
        if (call.check && !std::isfinite(sum)) return first_bad_row(0, x, first, n_rows, call.d);
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
            assignment(x, labels, nullptr)
                .run(panel, {panel, 0}, 0, kIntegerRows, memory.get() + copies_at);
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
    static constexpr int64_t kRows = 8 * kSideBySide, kCopiedRows = kPoints<T>;

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

    // Picked rows are copied side by side, as few at a time as a kind of blocks asks for, while
    // those that come next are on their way; where it asks for none, they are read where they lie.
    const PickedRows<T> picked = picked_rows(call);
    const bool copied = call.rows != nullptr && Blocks::kCopiedRows > 0;
    const int64_t most_rows = copied ? Blocks::kCopiedRows : grid.block_rows;
    Layout layout = blocks.layout;
    const int64_t rows_at = layout.add(copied ? picked.room(most_rows) : 0);
    const WeightedRows<T> rows{call.x,      call.n,      call.d,      call.k,
                               call.labels, call.weight, call.before, copied ? nullptr : call.rows};
    return label_and_add(rows, grid, most_rows, layout, work + picked.work(), call.n_threads, bad,
                         call.sums, call.counts,
                         [&](int64_t first, int64_t n_rows, T* memory, WeightedRows<T>& some) {
                             if (copied) some.x = picked.block(first, n_rows, memory + rows_at);
                             return blocks(some.x, first, n_rows, memory);
                         });
}

template <typename T>
BadRow assign(const KMeansAssign<T>& call) {
    if (call.d <= kDirectWidth) return assign(call, PanelBlocks<true, T>(call));
    if (is_read_bound(call.d, call.k)) return assign(call, DotBlocks<T>(call));
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
    if (call.sums == nullptr || sums_are_fused<T>(call.d, call.k)) return assign(call);
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
                             call.counts, call.n_threads, false, call.before});
}

template BadRow kmeans_assign(const KMeansAssign<float>&);
template BadRow kmeans_assign(const KMeansAssign<double>&);

}  // namespace deepclust::DEEPCLUST_ISA
