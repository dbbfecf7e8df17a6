// Candidates for a further centroid, all in one pass.
//
//   sq_dist_ci = min(nearest_i, sum_e (x_ie - m_ce)^2)       potentials_c = sum_i w_i sq_dist_ci
//
// By direct differences, whatever d: candidates are few, so that what is read costs as much.
//
// Memory: the candidates packed once; for each thread a panel. Potentials are added up in double,
// in the order of the rows. Reads n d numbers and writes k n; 3 n k d operations.

#include "kmeans_candidates.h"

#include "blocks.h"
#include "kernels.h"

namespace deepclust::DEEPCLUST_ISA {
namespace {

// The distances of a panel's points, which begin with row `first`, to one tile of candidates.
// IN/OUT sums (k, kLanes): what the potentials are made of.
template <int kWidth, typename T>
void add_tile(const KMeansCandidates<T>& call, const T* panel, const PackedColumns<T>& m,
              int64_t tile, int64_t first, double* sums) {
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

}  // namespace

template <typename T>
BadRow kmeans_candidates(const KMeansCandidates<T>& call) {
    const int64_t d = call.d;
    const PackedColumns<T> m(d, call.k,
                             [&](int64_t e, int64_t c) { return call.candidates(c, e); });
    const int64_t panel_size = round_up<T>(d) * kPoints<T>, sums_size = call.k * kLanes<T>;
    const Grid grid(call.n, kPoints<T>, panel_size * int64_t(sizeof(T)));
    const Parts parts(grid, sums_size, 1);
    const Buffer<double> sums(parts.count * sums_size);
    std::memset(sums.get(), 0, static_cast<size_t>(parts.count * sums_size) * sizeof(double));
    Layout layout;
    const int64_t panel_at = layout.add(panel_size), norms_at = layout.add(kPoints<T>);
    const double work = double(call.n) * double(call.k) * double(d);
    const BadRow bad = for_each_with_memory<T>(
        parts.count, layout, work, call.n_threads,
        call.check ? first_bad_row(1, call.candidates, 0, call.k, d) : BadRow{},
        [&](int64_t part, T* memory) {
            BadRow in_part;
            const int64_t end = least(call.n, parts.first(part + 1) * grid.block_rows);
            for (int64_t at = parts.first(part) * grid.block_rows; at < end; at += kPoints<T>) {
                T* const panel = memory + panel_at;
                T* const sq_norm = call.check ? memory + norms_at : nullptr;
                load_panel<T>(call.x, call.n, at, d, nullptr, {panel, sq_norm});
                const int64_t n_rows = least(kPoints<T>, call.n - at);
                if (call.check && !all_finite(sq_norm, n_rows))
                    in_part.note(first_bad_row(0, call.x, at, n_rows, d));
                with_constant<kMaxWidth>(static_cast<int>(m.tiling.width), [&](auto width) {
                    for (int64_t tile = 0; tile < m.tiling.n_tiles; ++tile)
                        add_tile<width()>(call, panel, m, tile, at, &sums[part * sums_size]);
                });
            }
            return in_part;
        });
    for (int64_t part = 1; part < parts.count; ++part)
        add_numbers(&sums[part * sums_size], sums_size, sums.get());
    for (int64_t c = 0; c < call.k; ++c)
        call.potentials[c] = sum_of_doubles<T>(&sums[c * kLanes<T>]);
    return bad;
}

template BadRow kmeans_candidates(const KMeansCandidates<float>&);
template BadRow kmeans_candidates(const KMeansCandidates<double>&);

}  // namespace deepclust::DEEPCLUST_ISA
