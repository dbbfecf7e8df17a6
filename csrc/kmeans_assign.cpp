// Hard assignment: the nearest centroid of each point, by squared Euclidean distance.
//
//   labels_i = argmin_j s_ij        sq_dist_i = sum_e (x_ie - mu_je)^2,  j = labels_i
//
//   d <= 32:  s_ij = sum_e (x_ie - mu_je)^2
//   d >  32:  s_ij = ||m_j||^2 / 2 - z_i . m_j,   z_i = x_i - c,  m_j = mu_j - c,  c = mean_j mu_j
//
// The second is (||z_i - m_j||^2 - ||z_i||^2) / 2: a row's own norm moves no minimum. Centring,
// done while packing (no centred copy of x exists), makes it invariant to translation. It still
// rounds more than direct differences do, so a row whose two best scores are closer than that
// rounding is decided by direct differences, and so is every sq_dist. Ties go to the lowest index;
// a NaN never wins.
//
// Memory: the centroids packed once, k x d; for each thread a block of points, 64 x d. Both are
// packed in the order in which a tile of kPoints x kCentroids scores reads them. The tile stays in
// registers for the whole sum over d, and only the running minimum leaves it. Reads n d + k d
// numbers; 3 n k d operations, or 2 n k d.
//
// Threads: chunks of at most 512 rows, of which each writes its own part of the outputs. A row's
// arithmetic depends neither on its chunk nor on its place there.

#include "kmeans_assign.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "lanes.h"
#include "parallel.h"

namespace deepclust {
namespace {

constexpr int64_t kDirectWidth = 32;     // up to here a third operation costs less than its error
constexpr int64_t kBlockRows = 64;       // points served by one reading of the centroids
constexpr int64_t kMaxChunkBlocks = 8;   // light rows are handed out 512 at a time
constexpr int64_t kChunkWork = 1 << 18;  // multiply-adds that make handing out a chunk cheap
constexpr int64_t kRunLength = 128;      // terms in one running sum; a longer sum adds up such sums
constexpr int kCentroids = 4;            // with kVectors: 8 accumulators, which fit 16 registers
constexpr int kVectors = 2;
template <typename T>
constexpr int kPoints = kVectors * kLanes<T>;
template <typename T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

template <typename T>
struct PackedCentroids {
    int64_t n_tiles;
    std::vector<T> centre;  // (d): c, or zero for direct differences
    std::vector<T> m;       // (n_tiles, d, kCentroids)
    std::vector<T> offset;  // (n_tiles, kCentroids): ||m_j||^2 / 2, or zero for direct differences
};

template <typename T>
PackedCentroids<T> pack_centroids(Matrix<T> mu, int64_t d, int64_t k, bool direct, int n_threads) {
    const int64_t n_tiles = (k + kCentroids - 1) / kCentroids;
    // Padding has m = 0 and offset = Inf: it scores Inf, which never wins.
    PackedCentroids<T> packed{n_tiles, std::vector<T>(d), std::vector<T>(n_tiles * d * kCentroids),
                              std::vector<T>(n_tiles * kCentroids, kInfinity<T>)};
    if (!direct) {
        std::vector<double> sum(d);
        for (int64_t j = 0; j < k; ++j)
            for (int64_t e = 0; e < d; ++e) sum[e] += mu(j, e);
        for (int64_t e = 0; e < d; ++e) packed.centre[e] = static_cast<T>(sum[e] / k);
    }
    n_threads = useful_threads(n_threads, n_tiles, double(k) * double(d));
    for_each_chunk(n_tiles, n_threads, [&](int64_t tile, int) {
        for (int64_t j = tile * kCentroids; j < std::min(k, (tile + 1) * kCentroids); ++j) {
            T* m = &packed.m[tile * d * kCentroids + j % kCentroids];
            double sq_norm = 0;
            for (int64_t e = 0; e < d; ++e) {
                const T value = mu(j, e) - packed.centre[e];
                m[e * kCentroids] = value;
                sq_norm += double(value) * value;
            }
            packed.offset[j] = direct ? T(0) : static_cast<T>(sq_norm / 2);
        }
    });
    return packed;
}

// z (d, kPoints) from rows [first, first + width) of x; a ragged last panel repeats its last row.
template <typename T>
void pack_panel(Matrix<T> x, int64_t first, int64_t width, int64_t d, const T* centre, T* z) {
    const T* row[kPoints<T>];
    for (int i = 0; i < kPoints<T>; ++i) row[i] = x.row(first + std::min<int64_t>(i, width - 1));
    for (int64_t e = 0; e < d; ++e)
        for (int i = 0; i < kPoints<T>; ++i)
            z[e * kPoints<T> + i] = row[i][e * x.col_stride] - centre[e];
}

// OUT sq_norm (kPoints): ||z_i||^2. Returns whether all are finite, as they are not with NaN or
// Inf.
template <typename T>
bool sq_norms(const T* z, int64_t d, T* sq_norm) {
    Lanes<T> sum[kVectors] = {};
    for (int64_t e = 0; e < d; ++e)
        for (int v = 0; v < kVectors; ++v) {
            const Lanes<T> z_v = load(z + e * kPoints<T> + v * kLanes<T>);
            sum[v] += z_v * z_v;
        }
    bool finite = true;
    for (int v = 0; v < kVectors; ++v) store(sq_norm + v * kLanes<T>, sum[v]);
    for (int i = 0; i < kPoints<T>; ++i) finite &= sq_norm[i] < kInfinity<T>;
    return finite;
}

template <typename T>
int64_t first_bad_row(Matrix<T> x, int64_t first, int64_t width, int64_t d) {
    for (int64_t i = first; i < first + width; ++i)
        for (int64_t e = 0; e < d; ++e)
            if (!std::isfinite(x(i, e))) return i;
    return -1;
}

// IN z (d, kPoints), m (d, kCentroids); IN/OUT sum: (z - m)^2 or z m, summed over d.
template <bool kDirect, typename T>
inline void add_products(const T* z, const T* m, int64_t d, Lanes<T> (&sum)[kCentroids][kVectors]) {
    for (int64_t e = 0; e < d; ++e)
        for (int j = 0; j < kCentroids; ++j)
            for (int v = 0; v < kVectors; ++v) {
                const Lanes<T> z_v = load(z + e * kPoints<T> + v * kLanes<T>);
                const Lanes<T> m_j = broadcast(m[e * kCentroids + j]);
                if constexpr (kDirect)
                    sum[j][v] += (z_v - m_j) * (z_v - m_j);
                else
                    sum[j][v] += z_v * m_j;
            }
}

// The running minima of the scores of a block's points, and where they were found.
template <typename T>
struct Minima {
    T best[kBlockRows], second[kBlockRows];
    IntLike<T> label[kBlockRows];
};

// Folds the scores of one tile into the minima of its points, minima[first, first + kPoints).
// IN z (d, kPoints), m (d, kCentroids), offset (kCentroids).
template <bool kDirect, typename T>
void fold_tile(const T* z, const T* m, const T* offset, int64_t d, int64_t first_centroid,
               int64_t first, Minima<T>& minima) {
    Lanes<T> s[kCentroids][kVectors];
    for (int j = 0; j < kCentroids; ++j)
        for (int v = 0; v < kVectors; ++v) s[j][v] = broadcast(offset[j]);
    if constexpr (kDirect) {
        add_products<true>(z, m, d, s);
    } else {
        for (int64_t e = 0; e < d; e += kRunLength) {
            Lanes<T> sum[kCentroids][kVectors] = {};
            add_products<false>(z + e * kPoints<T>, m + e * kCentroids, std::min(kRunLength, d - e),
                                sum);
            for (int j = 0; j < kCentroids; ++j)
                for (int v = 0; v < kVectors; ++v) s[j][v] -= sum[j][v];
        }
    }

    for (int v = 0; v < kVectors; ++v) {
        const int64_t at = first + v * kLanes<T>;
        Lanes<T> best = load(minima.best + at), second = load(minima.second + at);
        Lanes<IntLike<T>> label = load(minima.label + at);
        for (int j = 0; j < kCentroids; ++j) {
            const auto wins = s[j][v] < best;
            const Lanes<T> loser = wins ? best : s[j][v];
            second = loser < second ? loser : second;
            best = wins ? s[j][v] : best;
            label = wins ? broadcast(static_cast<IntLike<T>>(first_centroid + j)) : label;
        }
        store(minima.best + at, best);
        if constexpr (!kDirect) store(minima.second + at, second);
        store(minima.label + at, label);
    }
}

// sum_e (x_e - mu_e)^2, in kRun interleaved running sums.
template <typename T>
inline T direct_sq_dist(const T* x, int64_t x_stride, const T* mu, int64_t mu_stride, int64_t d) {
    constexpr int kRun = 16;
    T sum[kRun] = {};
    int64_t e = 0;
    for (; e + kRun <= d; e += kRun)
        for (int i = 0; i < kRun; ++i) {
            const T diff = x[(e + i) * x_stride] - mu[(e + i) * mu_stride];
            sum[i] += diff * diff;
        }
    for (int i = 0; e < d; ++e, ++i) {
        const T diff = x[e * x_stride] - mu[e * mu_stride];
        sum[i] += diff * diff;
    }
    for (int half = kRun / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
    return sum[0];
}

template <typename T>
T sq_dist_between(Matrix<T> x, int64_t i, Matrix<T> mu, int64_t j, int64_t d) {
    return x.col_stride == 1 && mu.col_stride == 1  // constant strides make the first one vectorise
               ? direct_sq_dist(x.row(i), 1, mu.row(j), 1, d)
               : direct_sq_dist(x.row(i), x.col_stride, mu.row(j), mu.col_stride, d);
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
    const T gamma = T(std::min(d, kRunLength) + d / kRunLength + 8) * kRoundoff;
    const T a = std::sqrt(z_sq_norm) + std::sqrt(2 * half_m_sq_norm);
    return 5 * gamma * a * a;
}

// One thread's buffers.
template <typename T>
struct Block {
    std::vector<T> z;  // (kBlockRows / kPoints, d, kPoints)
    T sq_norm[kBlockRows];
    Minima<T> minima;
    int64_t first_bad = -1;
};

// Labels and distances of rows [first, first + rows), rows <= kBlockRows.
template <bool kDirect, typename T>
void assign_block(Matrix<T> x, Matrix<T> mu, const PackedCentroids<T>& packed, int64_t first,
                  int64_t rows, int64_t d, int64_t k, int64_t* labels, T* sq_dist, bool check,
                  Block<T>& block) {
    for (int64_t i = 0; i < rows; i += kPoints<T>) {
        const int64_t width = std::min<int64_t>(kPoints<T>, rows - i);
        T* z = &block.z[i * d];
        pack_panel(x, first + i, width, d, packed.centre.data(), z);
        if (kDirect && !check) continue;
        const bool finite = sq_norms(z, d, block.sq_norm + i);
        if (check && !finite && block.first_bad < 0)
            block.first_bad = first_bad_row(x, first + i, width, d);
    }

    Minima<T>& minima = block.minima;
    std::fill_n(minima.best, kBlockRows, kInfinity<T>);
    std::fill_n(minima.second, kBlockRows, kInfinity<T>);
    std::fill_n(minima.label, kBlockRows, 0);
    for (int64_t tile = 0; tile < packed.n_tiles; ++tile)
        for (int64_t i = 0; i < rows; i += kPoints<T>)
            fold_tile<kDirect>(&block.z[i * d], &packed.m[tile * d * kCentroids],
                               &packed.offset[tile * kCentroids], d, tile * kCentroids, i, minima);

    for (int64_t i = 0; i < rows; ++i) {
        int64_t label = minima.label[i];
        T nearest = minima.best[i];
        if constexpr (!kDirect) {
            nearest = sq_dist_between(x, first + i, mu, label, d);
            const T margin = clear_margin(block.sq_norm[i], packed.offset[label], d);
            if (!(minima.second[i] - minima.best[i] > margin)) {  // true of overflow and NaN, too
                nearest = kInfinity<T>;
                for (int64_t j = 0; j < k; ++j) {
                    const T candidate = sq_dist_between(x, first + i, mu, j, d);
                    if (candidate < nearest) nearest = candidate, label = j;
                }
            }
        }
        labels[first + i] = label;
        sq_dist[first + i] = nearest;
    }
}

template <bool kDirect, typename T>
int64_t assign(Matrix<T> x, Matrix<T> mu, int64_t n, int64_t d, int64_t k, int64_t* labels,
               T* sq_dist, int n_threads, bool check) {
    const PackedCentroids<T> packed = pack_centroids(mu, d, k, kDirect, n_threads);
    const double work_per_block = double(kBlockRows) * double(k) * double(d);
    const int64_t chunk_rows =
        kBlockRows *
        static_cast<int64_t>(std::clamp(kChunkWork / work_per_block, 1.0, double(kMaxChunkBlocks)));
    const int64_t n_chunks = (n + chunk_rows - 1) / chunk_rows;
    n_threads = useful_threads(n_threads, n_chunks, double(n) * double(k) * double(d));
    std::vector<Block<T>> blocks(n_threads);
    for (Block<T>& block : blocks) block.z.resize(kBlockRows * d);

    for_each_chunk(n_chunks, n_threads, [&](int64_t chunk, int thread) {
        const int64_t end = std::min(n, (chunk + 1) * chunk_rows);
        for (int64_t first = chunk * chunk_rows; first < end; first += kBlockRows)
            assign_block<kDirect>(x, mu, packed, first, std::min(kBlockRows, end - first), d, k,
                                  labels, sq_dist, check, blocks[thread]);
    });

    int64_t first_bad = -1;
    for (const Block<T>& block : blocks)
        if (block.first_bad >= 0 && (first_bad < 0 || block.first_bad < first_bad))
            first_bad = block.first_bad;
    return first_bad;
}

}  // namespace

template <typename T>
int64_t kmeans_assign(Matrix<T> x, Matrix<T> mu, int64_t n, int64_t d, int64_t k, int64_t* labels,
                      T* sq_dist, int n_threads, bool check) {
    return d <= kDirectWidth ? assign<true>(x, mu, n, d, k, labels, sq_dist, n_threads, check)
                             : assign<false>(x, mu, n, d, k, labels, sq_dist, n_threads, check);
}

template int64_t kmeans_assign(Matrix<float>, Matrix<float>, int64_t, int64_t, int64_t, int64_t*,
                               float*, int, bool);
template int64_t kmeans_assign(Matrix<double>, Matrix<double>, int64_t, int64_t, int64_t, int64_t*,
                               double*, int, bool);

}  // namespace deepclust
