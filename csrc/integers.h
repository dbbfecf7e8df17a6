// Rows and centroids as 16-bit integers: products of twice as many terms as in float32, and of half
// the memory. What they cannot tell apart is left to whoever computes in full.
//
//   z_i ~ u_i q_i,  m_j ~ t_j p_j,  z_i = x_i - c,  m_j = mu_j - c,  q_i and p_j integers as long
//   as longest(d), where none of them leaves 16 bits
//
//   s_ij = ||m_j||^2 / (2 u_i) - t_j (q_i . p_j),   ~ (||z_i - m_j||^2 - ||z_i||^2) / (2 u_i)
//
// The product of integers is exact: |q . p| <= ||q|| ||p|| < 2^31, and so is each part of it. What
// rounding to integers loses is known, and bounds the error of s: by Cauchy and Schwarz
//
//   |error| <= ||z_i / u_i - q_i|| ||m_j|| + ||q_i|| ||m_j - t_j p_j|| <= (l_i + l) ||m_j||
//
// With w the least score and b the nearest centroid, ||m_b|| <= 2 ||z|| + ||m_w||
// (kmeans_assign.cpp says why), so that a centroid whose score is larger than that of w by more
// than
//
//   margin_i = (l_i + l) (||m_w|| + min(2 ||z_i|| + ||m_w||, max_j ||m_j||))
//
// is not the nearest.
//
// Two terms a lane: e and e + half, so that a row need not be shuffled to put them side by side.
//
//   pairs    (half)                        of one row
//   panel    (half + 2, kIntegerRows)      pairs by the term, a row a lane; then 1 / u and l

#pragma once

#include <cmath>
#include <limits>

#include "blocks.h"
#include "sq_dist.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace deepclust::DEEPCLUST_ISA {

#if defined(__SSE2__)
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;  // where the product of pairs is no instruction
#endif

using Pairs = Lanes<int32_t>;  // two 16-bit integers in each lane

constexpr float kLargestInteger = 32700;  // less than 2^15
constexpr float kOnes = 12582912;  // where this is added, a number's last 16 bits are its integer
constexpr int64_t kIntegerRows = kPoints<float>;

// sum + a_0 b_0 + a_1 b_1, lane by lane. Lanes that nobody asks for may overflow: of unsigned
// numbers they may.
template <bool kAtOnce>
inline Pairs add_pairs(Pairs sum, Pairs a, Pairs b) {
    using Unsigned = Lanes<uint32_t>;
#if defined(__AVX512BW__)
    if constexpr (kAtOnce) {
        // Not the intrinsic, which asks for a compiler's flag, and with it for another set.
        asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
        return sum;
    }
    const auto products = (Unsigned)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    const auto products = (Unsigned)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    const auto products = (Unsigned)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    const auto products =
        (Unsigned)(((a << 16) >> 16) * ((b << 16) >> 16)) + (Unsigned)((a >> 16) * (b >> 16));
#endif
    return (Pairs)((Unsigned)sum + products);
}

// Less than 2^15.5, by more than rounding to integers adds, and the rounding of a norm.
inline float longest(int64_t d) {
    const float width = static_cast<float>(d);
    return 46330 - std::sqrt(width) - width / 2048;
}

inline int64_t half_of(int64_t d) {
    return (d + 1) / 2;
}

// Whole lanes of pairs.
inline int64_t pairs_stride(int64_t d) {
    return round_up<float>(half_of(d));
}

// Numbers of a row's copy, with zeros past d wherever pairs are read from.
inline int64_t copy_stride(int64_t d) {
    return 2 * pairs_stride(d) + 16;
}

// Lanes of x less the origin, in float32, whose squares are added to some in T.
template <typename T>
inline Lanes<float> difference(const T* x, const T* origin, Lanes<T>& squares) {
    if constexpr (sizeof(T) == sizeof(float)) {
        const Lanes<T> z = load(x) - load(origin);
        squares += z * z;
        return z;
    } else {
        typedef float Half __attribute__((vector_size(kRegisterBytes / 2)));
        struct {
            Half half[2];
        } both;
        for (int i = 0; i < 2; ++i, x += kLanes<T>, origin += kLanes<T>) {
            const Lanes<T> z = load(x) - load(origin);
            squares += z * z;
            both.half[i] = __builtin_convertvector(z, Half);
        }
        return bits_as<Lanes<float>>(both);
    }
}

inline Lanes<float> sqrt_of(Lanes<float> numbers) {
    float roots[kLanes<float>];
    store<float>(roots, numbers);
    for (float& root : roots) root = std::sqrt(root);
    return load(roots);
}

// 1 / u of rows of these squared lengths and largest numbers, where any does for a row of zeros.
inline Lanes<float> inverse_u(Lanes<float> sq_norm, Lanes<float> largest, int64_t d) {
    const Lanes<float> by_norm = longest(d) / sqrt_of(sq_norm),
                       by_largest = kLargestInteger / largest;
    return sq_norm == 0 ? broadcast(1.0F) : min(by_largest, by_norm);
}

template <typename T>
struct Extent {
    T sq_norm;
    float largest;

    float inverse_u(int64_t d) const {
        return DEEPCLUST_ISA::inverse_u(broadcast(static_cast<float>(sq_norm)), broadcast(largest),
                                        d)[0];
    }
};

// OUT z (d, and zeros before the next whole lanes): x less the origin. What lies `ahead` numbers on
// is called into the second cache.
template <typename T>
inline Extent<T> load_copy(const T* x, const T* origin, int64_t d, int64_t ahead, float* z) {
    constexpr int kL = kLanes<float>;
    Lanes<T> squares[2] = {};  // in turn: a chain of additions would wait
    Lanes<float> largest[2] = {};
    const auto put = [&](int64_t e, int side, const T* x_e, const T* origin_e) {
        const Lanes<float> z_e = difference(x_e, origin_e, squares[side]);
        largest[side] = max(largest[side], max(z_e, -z_e));
        store<float>(z + e, z_e);
    };
    int64_t e = 0;
    const auto put_next = [&](int side) {
        __builtin_prefetch(x + e + ahead, 0, 2);
        put(e, side, x + e, origin + e);
        e += kL;
    };
    while (e + 2 * kL <= d) put_next(0), put_next(1);
    if (e + kL <= d) put_next(0);
    if (e < d) {
        T last[2][kL] = {};
        for (int64_t i = 0; i < d - e; ++i) last[0][i] = x[e + i], last[1][i] = origin[e + i];
        put(e, 1, last[0], last[1]);
    }
    return {sum_of_lanes<T>(squares[0] + squares[1]),
            -least_lane<float>(-max(largest[0], largest[1]))};
}

// OUT pairs (pairs_stride): z / u, rounded. Returns the length of what that loses.
inline float round_to_pairs(const float* z, int64_t d, float inverse_u, int32_t* pairs) {
    const Lanes<float> ones = broadcast(kOnes);
    const Lanes<float> factor = broadcast(inverse_u);
    const int64_t half = half_of(d);
    Lanes<float> lost[2] = {};  // of each half: a chain of additions would wait
    for (int64_t e = 0; e < half; e += kLanes<float>) {
        Pairs both[2];
        for (int side = 0; side < 2; ++side) {
            const Lanes<float> exact = load(z + side * half + e) * factor, sum = exact + ones;
            Lanes<float> difference = (sum - ones) - exact;
            if (e + kLanes<float> > half) difference = first_lanes<float>(difference, half - e);
            lost[side] += difference * difference;
            both[side] = bits_as<Pairs>(sum);
        }
        store<int32_t>(pairs + e, (both[0] & 0xffff) | (both[1] << 16));
    }
    return std::sqrt(sum_of_lanes<float>(lost[0] + lost[1]));
}

inline int64_t panel_numbers(int64_t d) {
    return (half_of(d) + 2) * kIntegerRows;
}

// (kIntegerRows) each, of a panel.
inline float* inverse_u_of(int32_t* panel, int64_t d) {
    return reinterpret_cast<float*>(panel + half_of(d) * kIntegerRows);
}
inline const float* inverse_u_of(const int32_t* panel, int64_t d) {
    return reinterpret_cast<const float*>(panel + half_of(d) * kIntegerRows);
}

// IN pairs (kIntegerRows, pairs_stride) of rows, OUT panel.
inline void turn_pairs(const int32_t* pairs, int64_t d, int32_t* panel) {
    constexpr int kL = kLanes<float>;
    const int64_t half = half_of(d), stride = pairs_stride(d);
    for (int64_t v = 0; v < kIntegerRows; v += kL)
        for (int64_t e = 0; e < half; e += kL) {
            Pairs tile[kL];
            for (int i = 0; i < kL; ++i) tile[i] = load(pairs + (v + i) * stride + e);
            transpose<int32_t>(tile);
            for (int64_t i = 0; i < least(kL, half - e); ++i)
                store<int32_t>(panel + (e + i) * kIntegerRows + v, tile[i]);
        }
}

// OUT panel, of z (d, kIntegerRows): rows that are turned already, with their squared lengths.
inline void round_panel(const float* z, const float* sq_norm, int64_t d, int32_t* panel) {
    constexpr int kL = kLanes<float>;
    const int64_t half = half_of(d);
    const Lanes<float> ones = broadcast(kOnes);
    for (int v = 0; v < kIntegerRows; v += kL) {
        Lanes<float> largest = {}, lost = {};
        for (int64_t e = 0; e < d; ++e) {
            const Lanes<float> z_e = load(z + e * kIntegerRows + v);
            largest = max(largest, max(z_e, -z_e));
        }
        const Lanes<float> factor = inverse_u(load(sq_norm + v), largest, d);
        const auto rounded = [&](int64_t e) {
            const Lanes<float> exact = load(z + e * kIntegerRows + v) * factor, sum = exact + ones;
            const Lanes<float> difference = (sum - ones) - exact;
            lost += difference * difference;
            return bits_as<Pairs>(sum);
        };
        for (int64_t e = 0; e < half; ++e) {
            Pairs both = rounded(e) & 0xffff;
            if (e + half < d) both |= rounded(e + half) << 16;
            store<int32_t>(panel + e * kIntegerRows + v, both);
        }
        store<float>(inverse_u_of(panel, d) + v, factor);
        store<float>(inverse_u_of(panel, d) + kIntegerRows + v, sqrt_of(lost));
    }
}

// In double, whose rounding needs no place in a bound.
inline double sq_norm_of(const float* m, int64_t d) {
    constexpr int kRun = 16;
    double sum[kRun] = {};
    for (int64_t e = 0; e < d; e += kRun)
        for (int i = 0; i < kRun; ++i) sum[i] += double(m[e + i]) * m[e + i];  // zeros past d
    for (int i = 1; i < kRun; ++i) sum[0] += sum[i];
    return sum[0];
}

// Centroids in tiles of columns, as product.h has them. Whole lanes may be read past the last.
struct IntegerCentroids {
    int64_t d, k;
    Tiling tiling;
    Buffer<int32_t> pairs;          // (tile, half, column in tile)
    Buffer<float> offset, t, norm;  // (tiling.padded()): ||m_j||^2 / 2, Inf past k; t_j; ||m_j||
    float lost = 0, largest = 0;    // l and the largest norm

    // Of mu (k, d), less the origin.
    template <typename T>
    IntegerCentroids(Matrix<T> mu, int64_t d, int64_t k, const T* origin)
        : d(d),
          k(k),
          tiling(k),
          pairs(tiling.padded() * half_of(d) + kLanes<float>),
          offset(tiling.padded() + kLanes<float>),
          t(tiling.padded() + kLanes<float>),
          norm(tiling.padded() + kLanes<float>) {
        const Buffer<float> m(copy_stride(d));
        const Buffer<int32_t> row(pairs_stride(d));
        const Buffer<T> copy(d);
        const int64_t half = half_of(d), width = tiling.width;
        for (int64_t e = 0; e < copy_stride(d); ++e) m[e] = 0;
        for (int64_t e = 0; e < pairs_stride(d); ++e) row[e] = 0;
        for (int64_t j = 0; j < tiling.padded(); ++j) {
            offset[j] = kInfinity<float>;
            t[j] = norm[j] = 0;
            if (j < k) {
                const Extent<T> extent =
                    load_copy(row_of(mu, j, d, copy.get()), origin, d, 0, m.get());
                const double sq_norm = sq_norm_of(m.get(), d);
                norm[j] = static_cast<float>(std::sqrt(sq_norm));
                offset[j] = static_cast<float>(sq_norm / 2);
                const float inverse_t = extent.inverse_u(d);
                t[j] = 1 / inverse_t;
                // In units of t_j, which is at least ||m_j|| / longest(d).
                const float lost_j = round_to_pairs(m.get(), d, inverse_t, row.get());
                lost = std::fmax(lost, norm[j] > 0 ? 46341 * lost_j * t[j] / norm[j] : 0);
                largest = std::fmax(largest, norm[j]);
            }
            int32_t* const to = &pairs[j / width * half * width + j % width];
            for (int64_t e = 0; e < half; ++e) to[e * width] = row[e];
        }
    }
    const int32_t* tile(int64_t i) const { return &pairs[i * half_of(d) * tiling.width]; }

    // ||m_j|| of as many centroids as there are lanes.
    Lanes<float> norms(Pairs labels) const {
#if defined(__AVX512F__)
        if (k <= kLanes<float>)
            return _mm512_permutexvar_ps((__m512i)labels, load<float>(norm.get()));
#elif defined(__AVX2__)
        if (k <= kLanes<float>)
            return _mm256_permutevar8x32_ps(load<float>(norm.get()), (__m256i)labels);
#endif
        float found[kLanes<float>];
        for (int i = 0; i < kLanes<float>; ++i) found[i] = norm[labels[i]];
        return load(found);
    }

    // What a score may exceed the least one by, that of a centroid as long as norm, in rows of
    // which 1 / u is inverse_u. Both scores' roundings are in it: see clear_margin.
    Lanes<float> margin(Lanes<float> inverse_u, Lanes<float> row_lost, Lanes<float> norm) const {
        constexpr float kGamma = 16 * std::numeric_limits<float>::epsilon() / 2;
        const Lanes<float> z = longest(d) / inverse_u, a = z + norm;
        const Lanes<float> norms = norm + min(2 * z + norm, broadcast(largest));
        return 1.001F * (row_lost + lost) * norms + 5 * kGamma * a * a * inverse_u;
    }
};

constexpr int64_t kKeptScores = 12, kWideRows = 64;

// Few centroids of wide rows: little is done with what is read.
inline bool is_read_bound(int64_t d, int64_t k) {
    return k <= kKeptScores && d >= kWideRows;
}

// The least scores of a panel's rows, and where they were found; where reading takes the time, all
// scores.
struct IntegerMinima {
    float best[kIntegerRows], second[kIntegerRows];
    int32_t label[kIntegerRows];
    float scores[kKeptScores][kIntegerRows];

    void clear() {
        for (int i = 0; i < kIntegerRows; ++i) {
            best[i] = second[i] = kInfinity<float>;
            label[i] = 0;
        }
    }
};

// What is read after some panels, and how much of it for one of them: called into the second cache
// while few centroids are multiplied with wide rows, by each tile its share, so that memory does
// not rest.
struct Later {
    const void* first;
    int64_t bytes;
};

template <bool kAtOnce, bool kReadBound, int kWidth>
inline __attribute__((always_inline)) void fold_integers(const int32_t* panel, const char* later,
                                                         int64_t later_step,
                                                         const IntegerCentroids& centroids,
                                                         int64_t tile, IntegerMinima& minima) {
    constexpr int kL = kLanes<float>;
    const int64_t half = half_of(centroids.d);
    const int32_t* const p = centroids.tile(tile);
    Pairs sum[kWidth][kVectors] = {};
#pragma GCC unroll 4
    for (int64_t e = 0; e < half; ++e) {
        if constexpr (kReadBound)
            for (int v = 0; v < kVectors; ++v)
                __builtin_prefetch(later + e * later_step + v * 64, 0, 2);
        Pairs q[kVectors];
        for (int v = 0; v < kVectors; ++v) q[v] = load(panel + e * kIntegerRows + v * kL);
        for (int j = 0; j < kWidth; ++j) {
            const Pairs p_j = broadcast(p[e * kWidth + j]);
            for (int v = 0; v < kVectors; ++v) sum[j][v] = add_pairs<kAtOnce>(sum[j][v], q[v], p_j);
        }
    }
    const float* const inverse_u = inverse_u_of(panel, centroids.d);
    for (int v = 0; v < kVectors; ++v) {
        const int at = v * kL;
        const Lanes<float> over_u = load(inverse_u + at);
        Lanes<float> best = load(minima.best + at), second = load(minima.second + at);
        Pairs label = load(minima.label + at);
        for (int j = 0; j < kWidth; ++j) {
            const int64_t column = tile * kWidth + j;
            const Lanes<float> product = __builtin_convertvector(sum[j][v], Lanes<float>);
            const Lanes<float> score = broadcast(centroids.offset[column]) * over_u -
                                       product * broadcast(centroids.t[column]);
            if (kReadBound && column < kKeptScores) store<float>(minima.scores[column] + at, score);
            const auto wins = score < best;
            second = min(second, max(score, best));
            best = wins ? score : best;
            label = wins ? broadcast(static_cast<int32_t>(column)) : label;
        }
        keep_in_register(label);
        store<float>(minima.best + at, best);
        store<float>(minima.second + at, second);
        store<int32_t>(minima.label + at, label);
    }
}

// IN panels (n_panels, panel_numbers); OUT minima (n_panels).
template <bool kAtOnce>
void fold_panels(const int32_t* panels, int64_t n_panels, const IntegerCentroids& centroids,
                 Later later, IntegerMinima* minima) {
    const int64_t size = panel_numbers(centroids.d), n_tiles = centroids.tiling.n_tiles;
    const int64_t step = later.bytes / (half_of(centroids.d) * n_tiles);
    const auto fold = [&](auto read_bound, auto width) {
        for (int64_t tile = 0; tile < n_tiles; ++tile)
            for (int64_t p = 0; p < n_panels; ++p) {
                const char* const share = static_cast<const char*>(later.first) + p * later.bytes +
                                          tile * (later.bytes / n_tiles);
                fold_integers<kAtOnce, read_bound(), width()>(panels + p * size, share, step,
                                                              centroids, tile, minima[p]);
            }
    };
    for (int64_t p = 0; p < n_panels; ++p) minima[p].clear();
    with_constant<kMaxWidth>(static_cast<int>(centroids.tiling.width), [&](auto width) {
        if (is_read_bound(centroids.d, centroids.k))
            fold(std::true_type(), width);
        else
            fold(std::false_type(), width);
    });
}

// Calls body(j) for each centroid of which the score with row i of a panel is not above `most`; of
// a NaN for all.
template <bool kAtOnce, typename Body>
void for_each_candidate(const int32_t* panel, int64_t i, const IntegerCentroids& centroids,
                        const IntegerMinima& minima, float most, const Body& body) {
    if (is_read_bound(centroids.d, centroids.k)) {
        for (int64_t j = 0; j < centroids.k; ++j)
            if (!(minima.scores[j][i] > most)) body(j);
        return;
    }
    constexpr int kMost = 4;  // tiles side by side
    constexpr int kL = kLanes<float>;
    const int64_t half = half_of(centroids.d), width = centroids.tiling.width;
    const Lanes<float> over_u = broadcast(inverse_u_of(panel, centroids.d)[i]);
    const auto score_tiles = [&](auto n_tiles, int64_t tile, int64_t from) {
        const int32_t* p[n_tiles()];
        Pairs sum[n_tiles()] = {};  // columns along the lanes, as far as the tile goes
        for (int s = 0; s < n_tiles(); ++s) p[s] = centroids.tile(tile + s) + from;
        for (int64_t e = 0; e < half; ++e) {
            const Pairs q = broadcast(panel[e * kIntegerRows + i]);
            for (int s = 0; s < n_tiles(); ++s)
                sum[s] = add_pairs<kAtOnce>(sum[s], q, load(p[s] + e * width));
        }
        for (int s = 0; s < n_tiles(); ++s) {
            const int64_t column = (tile + s) * width + from;
            const Lanes<float> product = __builtin_convertvector(sum[s], Lanes<float>);
            const Lanes<float> score =
                load(&centroids.offset[column]) * over_u - product * load(&centroids.t[column]);
            const int64_t n_columns = least(least(kL, width - from), centroids.k - column);
            for (int64_t j = 0; j < n_columns; ++j)
                if (!(score[j] > most)) body(column + j);
        }
    };
    for (int64_t tile = 0; tile < centroids.tiling.n_tiles; tile += kMost)
        for (int64_t from = 0; from < width; from += kL)
            with_constant<kMost>(static_cast<int>(least(kMost, centroids.tiling.n_tiles - tile)),
                                 [&](auto n_tiles) { score_tiles(n_tiles, tile, from); });
}

}  // namespace deepclust::DEEPCLUST_ISA
