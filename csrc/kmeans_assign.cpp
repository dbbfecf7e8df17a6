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
// Memory: the centroids packed once; for each thread a block of points. The tile of scores stays in
// registers, and only the running minimum leaves it. Reads n d + k d numbers; 2 n k d operations,
// or 3 n k d.

#include "kmeans_assign.h"

#include "blocks.h"
#include "kernels.h"
#include "label_sums.h"
#include "sq_dist.h"

namespace deepclust::DEEPCLUST_ISA {
namespace {

constexpr int64_t kDirectWidth = 16;  // up to here finding sq_dist afterwards costs as much

constexpr int64_t kFusedBytes = 64 << 10;  // of sums; larger ones take a pass of their own

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

// Folds the scores of one tile of centroids into the minima of a panel's points.
template <bool kDirect, int kWidth, typename T>
void fold_tile(const T* z, const PackedCentroids<T>& packed, int64_t tile, Minima<T>& minima) {
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

template <bool kDirect, typename T>
BadRow assign(const KMeansAssign<T>& call) {
    const int64_t d = call.d;
    const PackedCentroids<T> packed(call, kDirect);
    const int64_t panel_size = packed.stride * kPoints<T>;
    const Grid grid(call.n, kPoints<T>, panel_size * int64_t(sizeof(T)));
    const int64_t n_panels = grid.block_rows / kPoints<T>;
    Layout layout;
    const int64_t panels_at = layout.add(n_panels * panel_size);
    const int64_t norms_at = layout.add(grid.block_rows);
    const int64_t x_at = layout.add(d), mu_at = layout.add(d);  // for rows that are strided

    const auto assign_block = [&](int64_t block, T* memory) {
        const int64_t first = block * grid.block_rows, n_rows = grid.rows_of(block);
        T* const sq_norm = memory + norms_at;
        Minima<T> minima[kMaxPanels];
        BadRow bad;
        int64_t n_used = 0;
        for (int64_t at = 0; at < n_rows; at += kPoints<T>, ++n_used) {
            T* const panel = memory + panels_at + n_used * panel_size;
            load_panel<T>(call.x, call.n, first + at, d,
                          kDirect ? nullptr : static_cast<const T*>(packed.origin.get()),
                          {panel, sq_norm + at});
            for (int i = 0; i < kPoints<T>; ++i) {
                minima[n_used].best[i] = minima[n_used].second[i] = kInfinity<T>;
                minima[n_used].label[i] = 0;
            }
        }
        if (call.check && !all_finite(sq_norm, n_rows))
            bad = first_bad_row(0, call.x, first, n_rows, d);
        with_constant<kMaxWidth>(static_cast<int>(packed.m.tiling.width), [&](auto width) {
            for (int64_t tile = 0; tile < packed.m.tiling.n_tiles; ++tile)
                for (int64_t p = 0; p < n_used; ++p)
                    fold_tile<kDirect, width()>(memory + panels_at + p * panel_size, packed, tile,
                                                minima[p]);
        });
        for (int64_t i = 0; i < n_rows; ++i) {
            const Minima<T>& found = minima[i / kPoints<T>];
            const int64_t lane = i % kPoints<T>;
            int64_t label = found.label[lane];
            T nearest = found.best[lane];
            if constexpr (!kDirect) {
                const T* const x = row_of(call.x, first + i, d, memory + x_at);
                const auto mu = [&](int64_t j) { return row_of(call.mu, j, d, memory + mu_at); };
                nearest = sq_dist_between(x, mu(label), d);
                const T margin = clear_margin(sq_norm[i], packed.offset[label], d);
                if (!(found.second[lane] - found.best[lane] > margin)) {  // true of NaN, too
                    nearest = kInfinity<T>;
                    for (int64_t j = 0; j < call.k; ++j) {
                        const T candidate = sq_dist_between(x, mu(j), d);
                        if (candidate < nearest) nearest = candidate, label = j;
                    }
                }
            }
            call.labels[first + i] = label;
            call.sq_dist[first + i] = nearest;
        }
        return bad;
    };
    const BadRow bad = call.check ? first_bad_row(1, call.mu, 0, call.k, d) : BadRow{};
    const double work = double(call.n) * double(call.k) * double(d);
    if (call.sums == nullptr)
        return for_each_with_memory<T>(grid.n_blocks, layout, work, call.n_threads, bad,
                                       assign_block);

    // While a block is in cache: its rows go to the sums of its part.
    const WeightedRows<T> rows{call.x, call.n, d, call.k, call.labels, call.weight};
    const int64_t width = sums_width<T>(d), size = call.k * width;
    const Parts parts(grid, size, 1);
    const Buffer<double> sums(parts.count * size);
    std::memset(sums.get(), 0, static_cast<size_t>(parts.count * size) * sizeof(double));
    const BadRow found = for_each_with_memory<T>(
        parts.count, layout, work, call.n_threads, bad, [&](int64_t part, T* memory) {
            BadRow in_part;
            for (int64_t block = parts.first(part); block < parts.first(part + 1); ++block) {
                in_part.note(assign_block(block, memory));
                const int64_t first = block * grid.block_rows;
                rows.add({part, first, first + grid.rows_of(block), 0, width, &sums[part * size]});
            }
            return in_part;
        });
    for (int64_t part = 1; part < parts.count; ++part)
        add_numbers(&sums[part * size], size, sums.get());
    rows.split(sums.get(), call.sums, call.counts);
    return found;
}

}  // namespace

template <typename T>
BadRow kmeans_assign(const KMeansAssign<T>& call) {
    const int64_t sums_bytes = call.k * sums_width<T>(call.d) * int64_t(sizeof(double));
    const bool apart = call.sums != nullptr && sums_bytes > kFusedBytes;
    KMeansAssign<T> job = call;
    if (apart) job.sums = nullptr;
    const BadRow bad = call.d <= kDirectWidth ? assign<true>(job) : assign<false>(job);
    if (apart && bad.input < 0)
        return kmeans_update<T>({call.x, call.n, call.d, call.k, call.labels, call.weight,
                                 call.sums, call.counts, call.n_threads, false});
    return bad;
}

template BadRow kmeans_assign(const KMeansAssign<float>&);
template BadRow kmeans_assign(const KMeansAssign<double>&);

}  // namespace deepclust::DEEPCLUST_ISA
