// Scores of some rows side by side with a panel of centroids, one centroid a lane: where only some
// rows are wanted, or where scores of all centroids round too much to tell them apart.
//
//   s_ij = ||m_j||^2 / 2 - z_i . m_j = (||z_i - m_j||^2 - ||z_i||^2) / 2,   z_i = x_i - c,
//   m_j = mu_j - c, around the origin c of heads.h
//
// A row goes through the panels with its nearest centroid so far, by direct differences. Scores
// leave out what is surely farther; direct differences decide the rest.

#pragma once

#include "blocks.h"
#include "sq_dist.h"

namespace deepclust::DEEPCLUST_ISA {

constexpr int kSideBySide = 8;  // rows in one product: as many as there are registers to point

// A row on its way, and its nearest centroid so far.
template <typename T>
struct RowOnTheWay {
    int64_t i, label;
    T nearest;  // the squared distance to it
    T norm;     // ||z||
};

template <typename T>
struct RowPanels {
    int64_t d, k, stride;
    int64_t n_panels, width;  // of a panel: all are about as wide
    Buffer<T> origin;         // (stride)
    Buffer<T> panels;         // (n_panels, d, kLanes)
    Buffer<T> offset;         // (n_panels, kLanes): ||m_j||^2 / 2; Inf where there is none
    Buffer<T> norm;           // (n_panels): the largest ||m_j||
    T gamma;  // of the error of s, in units of (||z|| + ||m||)^2: twice the longest chain of
              // additions, and the roundings of z, m, ||z|| and ||m||
    T slack;  // more than the relative error of a distance by sq_dist_between

    RowPanels(Matrix<T> mu, int64_t d, int64_t k)
        : d(d),
          k(k),
          stride(round_up<T>(d)),
          n_panels((k + kLanes<T> - 1) / kLanes<T>),
          width((k + n_panels - 1) / n_panels),
          origin(stride),
          panels(n_panels * d * kLanes<T>),
          offset(n_panels * kLanes<T>),
          norm(n_panels),
          gamma(T(least(d, kRunLength) + d / kRunLength + 16) * std::numeric_limits<T>::epsilon()),
          slack(T(d / 16 + 16) * std::numeric_limits<T>::epsilon()) {
        for (int64_t e = 0; e < stride; ++e) origin[e] = 0;
        median_origin(mu, k, d, origin.get());
        for (int64_t p = 0; p < n_panels; ++p) {
            norm[p] = 0;
            for (int64_t at = 0; at < kLanes<T>; ++at) pack(mu, p, at);
        }
    }

    T error(const RowOnTheWay<T>& row, int64_t p) const {
        const T a = row.norm + norm[p];
        return gamma * a * a;
    }
    // Scores above this are farther than the row's centroid so far.
    T cut(const RowOnTheWay<T>& row, int64_t p) const {
        return (row.nearest * (1 + slack) - row.norm * row.norm) / 2 + error(row, p);
    }

    // OUT z (stride): x (d) less the origin. Returns its length.
    T load_row(const T* x, T* z) const {
        Lanes<T> squares = {};
        for (int64_t e = 0; e < d; e += kLanes<T>) {
            const Lanes<T> x_e = e + kLanes<T> <= d ? load(x + e) : load_some(x + e, d - e);
            const Lanes<T> z_e = x_e - load(&origin[e]);  // zeros past d in both
            squares += z_e * z_e;
            store<T>(z + e, z_e);
        }
        T sum = 0;
        for (int i = 0; i < kLanes<T>; ++i) sum += squares[i];
        return std::sqrt(sum);
    }

    // OUT scores: of rows z[0], ... with panel p.
    template <int kRows>
    void score(int64_t p, const T* const* z, Lanes<T>* scores) const {
        const T* const panel = panels.get() + p * d * kLanes<T>;
        Lanes<T> score[kRows];
        for (int i = 0; i < kRows; ++i) score[i] = load(&offset[p * kLanes<T>]);
        for (int64_t from = 0; from < d; from += kRunLength) {
            const int64_t end = least(d, from + kRunLength);
            Lanes<T> sum[kRows] = {};
#pragma GCC unroll 4
            for (int64_t e = from; e < end; ++e) {
                const Lanes<T> m = load(panel + e * kLanes<T>);
                for (int i = 0; i < kRows; ++i) sum[i] += m * broadcast(z[i][e]);
            }
            for (int i = 0; i < kRows; ++i) score[i] -= sum[i];
        }
        for (int i = 0; i < kRows; ++i) scores[i] = score[i];
    }

    // A panel's scores, but for that of centroid j, if it is there.
    Lanes<T> without(Lanes<T> scores, int64_t p, int64_t j) const {
        const int64_t at = j - p * width;
        if (at >= 0 && at < kLanes<T>) scores[at] = kInfinity<T>;
        return scores;
    }

    // Gives the row the nearest of a panel's centroids where that is nearer than its own, or as
    // near and of lower index. sq_dist(j) is the squared distance to centroid j; leave() is called
    // before the row leaves its centroid. Returns the scores of all but the row's centroid.
    template <typename Distance, typename Leave>
    Lanes<T> choose(int64_t p, Lanes<T> scores, RowOnTheWay<T>& row, const Distance& sq_dist,
                    const Leave& leave) const {
        Lanes<T> left = without(scores, p, row.label);
        // Not "while some are at most": a NaN, of distances past what T holds, decides nothing.
        if (all(left > broadcast(cut(row, p)))) return left;
        // Of those that there are: with Inf in a row the scores of the others are NaN, too.
        const int64_t n_here = least(width, k - p * width);
        for (;;) {
            const T most = cut(row, p);
            int64_t at = -1;
            for (int64_t lane = 0; lane < n_here; ++lane)
                if (!(left[lane] > most) && left[lane] != kInfinity<T> &&
                    (at < 0 || left[lane] < left[at]))
                    at = lane;
            if (at < 0) return without(scores, p, row.label);
            left[at] = kInfinity<T>;
            const int64_t j = p * width + at;
            const T candidate = sq_dist(j);
            if (candidate < row.nearest || (candidate == row.nearest && j < row.label)) {
                leave();
                row.label = j;
                row.nearest = candidate;
            }
        }
    }

  private:
    void pack(Matrix<T> mu, int64_t p, int64_t at) {
        const int64_t j = p * width + at;
        const bool present = at < width && j < k;
        double sq_norm = 0;
        for (int64_t e = 0; e < d; ++e) {
            const T value = present ? mu(j, e) - origin[e] : T(0);
            panels[(p * d + e) * kLanes<T> + at] = value;
            sq_norm += double(value) * value;
        }
        offset[p * kLanes<T> + at] = present ? static_cast<T>(sq_norm / 2) : kInfinity<T>;
        if (present) norm[p] = std::fmax(norm[p], static_cast<T>(std::sqrt(sq_norm)));
    }
};

// OUT scores: of n rows z[0], ... with panel p.
template <typename T>
inline void score_rows(const RowPanels<T>& panels, int64_t p, const T* const* z, int n,
                       Lanes<T>* scores) {
    with_constant<kSideBySide>(n,
                               [&](auto n_rows) { panels.template score<n_rows()>(p, z, scores); });
}

}  // namespace deepclust::DEEPCLUST_ISA
