// Candidates for a further centroid, all in one pass.
//
//   sq_dist_ci = min(nearest_i, sum_e (x_ie - m_ce)^2)       potentials_c = sum_i w_i sq_dist_ci
//
// By direct differences, whatever d: candidates are few, so that what is read costs as much. Narrow
// rows are turned, so that points lie along the lanes; to turn wide ones would take longer than all
// else, so there a number of a row meets a candidate in each lane.
//
// Memory: the candidates packed once; for each thread a panel. Potentials are added up in double,
// in an order of the rows that threads do not change. Reads n d numbers and writes k n; 3 n k d
// operations.

#include "kmeans_candidates.h"

#include "blocks.h"
#include "kernels.h"
#include "sq_dist.h"

namespace deepclust::DEEPCLUST_ISA {
namespace {

constexpr int64_t kTurned = 32;  // up to this width rows are turned

// Points along the lanes.
template <typename T>
struct PointBlocks {
    const KMeansCandidates<T>& call;
    PackedColumns<T> m;
    int64_t panel_size, sums_size;  // sums (k, kLanes): what the potentials are made of
    Grid grid;
    Layout layout;
    int64_t panel_at, norms_at;

    explicit PointBlocks(const KMeansCandidates<T>& call)
        : call(call),
          m(call.d, call.k, [&](int64_t e, int64_t c) { return call.candidates(c, e); }),
          panel_size(round_up<T>(call.d) * kPoints<T>),
          sums_size(call.k * kLanes<T>),
          grid(call.n, kPoints<T>, panel_size * int64_t(sizeof(T))),
          panel_at(layout.add(panel_size)),
          norms_at(layout.add(kPoints<T>)) {}

    BadRow operator()(int64_t first, int64_t end, T* memory, double* sums) const {
        BadRow bad;
        T* const panel = memory + panel_at;
        T* const sq_norm = call.check ? memory + norms_at : nullptr;
        for (int64_t at = first; at < end; at += kPoints<T>) {
            load_panel<T>(call.x, call.n, at, call.d, nullptr, {panel, sq_norm});
            const int64_t n_rows = least(kPoints<T>, call.n - at);
            if (call.check && !all_finite(sq_norm, n_rows))
                bad.note(first_bad_row(0, call.x, at, n_rows, call.d));
            with_constant<kMaxWidth>(static_cast<int>(m.tiling.width), [&](auto width) {
                for (int64_t tile = 0; tile < m.tiling.n_tiles; ++tile)
                    add_tile<width()>(panel, tile, at, sums);
            });
        }
        return bad;
    }
    double potential(const double* sums, int64_t c) const {
        return sum_of_doubles<T>(sums + c * kLanes<T>);
    }

  private:
    // The distances of a panel's points, which begin with row `first`, to one tile of candidates.
    template <int kWidth>
    void add_tile(const T* panel, int64_t tile, int64_t first, double* sums) const {
        constexpr int64_t kL = kLanes<T>;
        Lanes<T> s[kWidth][kVectors] = {};
        add_sq_differences<kWidth>(panel, m.tile(tile), m.length, s);
        for (int v = 0; v < kVectors; ++v) {
            const int64_t at = first + v * kL, count = least(kL, call.n - at);
            if (count <= 0) break;
            const bool whole = count == kL;
            const auto numbers = [&](const T* of, T otherwise) {
                if (of == nullptr) return first_lanes<T>(broadcast(otherwise), count);
                return whole ? load(of + at) : load_some(of + at, count);
            };
            const Lanes<T> nearest = numbers(call.nearest, kInfinity<T>);
            const DoubleLanes<T> weight = widen<T>(numbers(call.weight, T(1)));  // 0 past the end
            for (int j = 0; j < least(kWidth, call.k - tile * kWidth); ++j) {
                const int64_t c = tile * kWidth + j;
                const Lanes<T> sq_dist = min(s[j][v], nearest);
                T* const to = call.sq_dist + c * call.n + at;
                whole ? store<T>(to, sq_dist) : store_some<T>(to, sq_dist, count);
                DoubleLanes<T> sum;
                std::memcpy(&sum, sums + c * kL, sizeof sum);
                sum += widen<T>(sq_dist) * weight;
                std::memcpy(sums + c * kL, &sum, sizeof sum);
            }
        }
    }
};

// Candidates along the lanes: about as many as there are, as a rule.
template <typename T>
struct RowBlocks {
    static constexpr int kFew = kLanes<T> < 8 ? kLanes<T> : 8;
    static constexpr int kRows = 8;  // side by side: as many sums as additions are on their way
    static constexpr int64_t kBlockRows = 128, kLine = 64 / sizeof(T);
    typedef T Few __attribute__((vector_size(kFew * sizeof(T))));
    typedef double FewDoubles __attribute__((vector_size(kFew * sizeof(double))));

    const KMeansCandidates<T>& call;
    int64_t n_groups, sums_size;  // sums (n_groups, kFew)
    Buffer<T> m;                  // (n_groups, d, kFew), zeros past k
    Grid grid;
    Layout layout;
    int64_t copy_at, stride;

    explicit RowBlocks(const KMeansCandidates<T>& call)
        : call(call),
          n_groups((call.k + kFew - 1) / kFew),
          sums_size(n_groups * kFew),
          m(sums_size * call.d),
          grid(call.n, kBlockRows),
          stride(round_up<T>(call.d)) {
        copy_at = layout.add(kRows * stride);
        for (int64_t c = 0; c < sums_size; ++c)
            for (int64_t e = 0; e < call.d; ++e)
                m[(c / kFew * call.d + e) * kFew + c % kFew] =
                    c < call.k ? call.candidates(c, e) : T(0);
    }

    BadRow operator()(int64_t first, int64_t end, T* memory, double* sums) const {
        BadRow bad;
        for (int64_t at = first; at < end; at += kRows) {
            const int64_t n_rows = least(kRows, end - at);
            const T* x[kRows];
            for (int64_t i = 0; i < n_rows; ++i)
                x[i] = row_of(call.x, at + i, call.d, memory + copy_at + i * stride);
            with_constant<kRows>(static_cast<int>(n_rows), [&](auto constant) {
                for (int64_t group = 0; group < n_groups; ++group)
                    if (!add_group<constant()>(x, group, at, sums + group * kFew))
                        bad.note(first_bad_row(0, call.x, at, n_rows, call.d));
            });
        }
        return bad;
    }
    double potential(const double* sums, int64_t c) const { return sums[c]; }

  private:
    // The distances of rows [first, first + n) to a group of candidates. Returns whether those to
    // its first one are finite.
    template <int n>
    bool add_group(const T* const* x, int64_t group, int64_t first, double* sums) const {
        const T* const candidates = m.get() + group * call.d * kFew;
        Few s[n] = {};
        for (int64_t e = 0; e < call.d; ++e) {
            if (e % kLine == 0)  // of the next rows
                for (int i = 0; i < n; ++i)
                    __builtin_prefetch(x[i] + e + kRows * call.x.row_stride);
            Few m_e;
            std::memcpy(&m_e, candidates + e * kFew, sizeof m_e);
            for (int i = 0; i < n; ++i) {
                const Few difference = x[i][e] - m_e;
                s[i] += difference * difference;
            }
        }
        FewDoubles total;
        std::memcpy(&total, sums, sizeof total);
        T rows[n][kFew];
        Few nothing = {};  // or NaN, of what is not finite
        for (int i = 0; i < n; ++i) {
            nothing += s[i] - s[i];
            const Few found =
                call.nearest == nullptr ? s[i] : min(s[i], call.nearest[first + i] - Few{});
            std::memcpy(rows[i], &found, sizeof found);
            const double w = call.weight == nullptr ? 1.0 : call.weight[first + i];
            total += __builtin_convertvector(found, FewDoubles) * w;
        }
        std::memcpy(sums, &total, sizeof total);
        T* to = call.sq_dist + group * kFew * call.n + first;
        for (int64_t c = 0; c < least(kFew, call.k - group * kFew); ++c, to += call.n)
            for (int i = 0; i < n; ++i) to[i] = rows[i][c];
        return nothing[0] == 0 || !call.check;
    }
};

template <typename T, typename Blocks>
BadRow run(const KMeansCandidates<T>& call, const Blocks& blocks) {
    const Parts parts(blocks.grid, blocks.sums_size, 1);
    const Buffer<double> sums(parts.count * blocks.sums_size);
    std::memset(sums.get(), 0,
                static_cast<size_t>(parts.count * blocks.sums_size) * sizeof(double));
    const double work = double(call.n) * double(call.k) * double(call.d);
    const BadRow bad = for_each_with_memory<T>(
        parts.count, blocks.layout, work, call.n_threads,
        call.check ? first_bad_row(1, call.candidates, 0, call.k, call.d) : BadRow{},
        [&](int64_t part, T* memory) {
            const int64_t first = parts.first(part) * blocks.grid.block_rows;
            const int64_t end = least(call.n, parts.first(part + 1) * blocks.grid.block_rows);
            return blocks(first, end, memory, &sums[part * blocks.sums_size]);
        });
    for (int64_t part = 1; part < parts.count; ++part)
        add_numbers(&sums[part * blocks.sums_size], blocks.sums_size, sums.get());
    for (int64_t c = 0; c < call.k; ++c) call.potentials[c] = blocks.potential(sums.get(), c);
    return bad;
}

}  // namespace

template <typename T>
BadRow kmeans_candidates(const KMeansCandidates<T>& call) {
    if (call.d <= kTurned) return run(call, PointBlocks<T>(call));
    return run(call, RowBlocks<T>(call));
}

template BadRow kmeans_candidates(const KMeansCandidates<float>&);
template BadRow kmeans_candidates(const KMeansCandidates<double>&);

}  // namespace deepclust::DEEPCLUST_ISA
