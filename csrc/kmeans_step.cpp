// Hard assignment again, after the centroids have moved: only what may have changed is computed.
//
//   labels_i = argmin_j ||x_i - mu_j||^2, ties to the lowest index: what kmeans_assign.cpp gives
//
// Two bounds a row say what may have changed (Ding et al., 2015, "Yinyang k-means"; with one group
// of centroids Hamerly, 2010): upper_i >= ||x_i - mu_{labels_i}||, and for each group of centroids
// lower_ig <= ||x_i - mu_j|| for all its j but labels_i. By the triangle inequality a centroid that
// moves by m_j shifts them by m_j at most. A row whose upper bound lies below all lower ones keeps
// its label, and is not even read; of any other only the groups that reach below its upper bound
// are computed, as products around the origin c of heads.h, for some rows side by side:
//
//   s_ij = ||m_j||^2 / 2 - z_i . m_j,   z_i = x_i - c,  m_j = mu_j - c
//
// What a product, with its rounding, leaves as nearer than the label is decided by direct
// differences, as in kmeans_assign.cpp. All bounds are rounded away from what they bound.
//
// Memory: the centroids packed once; for each thread the rows of a block that are computed. Reads
// n (groups + 1) bounds, d numbers of a row that is computed and at most n d + k d in all; at most
// 2 n k d operations.

#include "kmeans_step.h"

#include "blocks.h"
#include "kernels.h"
#include "sq_dist.h"

namespace deepclust::DEEPCLUST_ISA {
namespace {

constexpr int64_t kMaxRows = 512;  // of a block
constexpr int64_t kAhead = 2;
constexpr int kSideBySide = 8;  // rows in one product: as many as there are registers to point

// How centroids are cut: into panels of one vector, and panels into groups with a bound a row, as
// many groups as keep the bounds to an eighth of the rows.
template <typename T>
struct Groups {
    int64_t n_panels, width;  // of a panel: all are about as wide
    int64_t panels_each, count;

    Groups(int64_t d, int64_t k)
        : n_panels((k + kLanes<T> - 1) / kLanes<T>), width((k + n_panels - 1) / n_panels) {
        const int64_t affordable = most(1, d / 8);
        panels_each = (n_panels + affordable - 1) / affordable;
        count = (n_panels + panels_each - 1) / panels_each;
    }
    int64_t of(int64_t j) const { return j / width / panels_each; }
};

// The relative error of a distance by sq_dist_between, and some more.
template <typename T>
T slack(int64_t d) {
    return T(d / 16 + 16) * std::numeric_limits<T>::epsilon();
}

template <typename T>
struct CentroidPanels {
    int64_t d, k, stride;
    Groups<T> groups;
    Buffer<T> origin, panels;  // (stride); (panels, d, kLanes)
    Buffer<T> offset;          // (panels, kLanes): ||m_j||^2 / 2; Inf where there is none
    Buffer<T> norm;            // (groups): the largest ||m_j||
    // (groups): the farthest that one of the group moved, which one, and the farthest of the others
    Buffer<T> moved, moved_next;
    Buffer<int64_t> mover;

    explicit CentroidPanels(const KMeansStep<T>& call)
        : d(call.d),
          k(call.k),
          stride(round_up<T>(call.d)),
          groups(call.d, call.k),
          origin(stride),
          panels(groups.n_panels * d * kLanes<T>),
          offset(groups.n_panels * kLanes<T>),
          norm(groups.count),
          moved(groups.count),
          moved_next(groups.count),
          mover(groups.count) {
        for (int64_t e = 0; e < stride; ++e) origin[e] = 0;
        median_origin(call.mu, k, d, origin.get());
        for (int64_t g = 0; g < groups.count; ++g) {
            norm[g] = moved[g] = moved_next[g] = 0;
            mover[g] = -1;
        }
        for (int64_t p = 0; p < groups.n_panels; ++p)
            for (int64_t at = 0; at < kLanes<T>; ++at) set(call, p, at);
    }

    T* panel(int64_t p) const { return panels.get() + p * d * kLanes<T>; }

  private:
    void set(const KMeansStep<T>& call, int64_t p, int64_t at) {
        const int64_t j = p * groups.width + at, g = p / groups.panels_each;
        const bool present = at < groups.width && j < k;
        double sq_norm = 0;
        for (int64_t e = 0; e < d; ++e) {
            const T value = present ? call.mu(j, e) - origin[e] : T(0);
            panel(p)[e * kLanes<T> + at] = value;
            sq_norm += double(value) * value;
        }
        offset[p * kLanes<T> + at] = present ? static_cast<T>(sq_norm / 2) : kInfinity<T>;
        if (!present) return;
        norm[g] = std::fmax(norm[g], static_cast<T>(std::sqrt(sq_norm)));
        if (call.moved[j] > moved[g]) {
            moved_next[g] = moved[g];
            moved[g] = call.moved[j];
            mover[g] = j;
        } else {
            moved_next[g] = std::fmax(moved_next[g], call.moved[j]);
        }
    }
};

// OUT scores: of rows z[0], ... with a panel.
template <int kWidth, typename T>
void score_rows(const CentroidPanels<T>& centroids, int64_t p, const T* const* z,
                Lanes<T>* scores) {
    const T* const panel = centroids.panel(p);
    const int64_t d = centroids.d;
    Lanes<T> score[kWidth];
    for (int i = 0; i < kWidth; ++i) score[i] = load(&centroids.offset[p * kLanes<T>]);
    for (int64_t from = 0; from < d; from += kRunLength) {
        const int64_t end = least(d, from + kRunLength);
        Lanes<T> sum[kWidth] = {};
#pragma GCC unroll 4
        for (int64_t e = from; e < end; ++e) {
            const Lanes<T> m = load(panel + e * kLanes<T>);
            for (int i = 0; i < kWidth; ++i) sum[i] += m * broadcast(z[i][e]);
        }
        for (int i = 0; i < kWidth; ++i) score[i] -= sum[i];
    }
    for (int i = 0; i < kWidth; ++i) scores[i] = score[i];
}

// A row that is computed.
template <typename T>
struct ActiveRow {
    int64_t i, label;
    T nearest;  // the squared distance to the label
    T norm;     // ||z||
};

template <typename T>
class Block {
  public:
    Block(const KMeansStep<T>& call, const CentroidPanels<T>& centroids, T* z, T* mu_copy,
          ActiveRow<T>* active)
        : call_(call), centroids_(centroids), z_(z), mu_copy_(mu_copy), active_(active) {
        const int64_t length = least(call.d, kRunLength) + call.d / kRunLength + 16;
        // Of s, in units of (||z|| + ||m||)^2: the longest chain of additions, and the roundings of
        // z, m, ||z|| and ||m||.
        gamma_ = 2 * T(length) * (std::numeric_limits<T>::epsilon() / 2);
        slack_ = slack<T>(call.d);
    }

    void assign(int64_t first, int64_t n_rows, T* x_copy) {
        int64_t n_open = 0;
        for (int64_t i = first; i < first + n_rows; ++i)
            if (!settled(i)) active_[n_open++].i = i;
        n_active_ = 0;
        for (int64_t r = 0; r < n_open; ++r) {
            // Rows that lie apart, which the processor does not foresee.
            if (r + kAhead < n_open) call_ahead(active_[r + kAhead].i);
            take_in(active_[r].i, x_copy);
        }
        for (int64_t g = 0; g < centroids_.groups.count && n_active_ > 0; ++g) assign_group(g);
        for (int64_t r = 0; r < n_active_; ++r) {
            const ActiveRow<T>& row = active_[r];
            call_.labels[row.i] = row.label;
            call_.upper[row.i] = upper_of(row.nearest);
        }
        if (call_.sq_dist == nullptr) return;
        for (int64_t i = first; i < first + n_rows; ++i)
            call_.sq_dist[i] = sq_dist(row_of(call_.x, i, call_.d, x_copy), call_.labels[i]);
    }

  private:
    // Moves the bounds of a row as far as the centroids moved. Whether they say that the label
    // stays.
    bool settled(int64_t i) {
        constexpr T kDown = 1 - 2 * std::numeric_limits<T>::epsilon();
        constexpr T kUp = 1 + 2 * std::numeric_limits<T>::epsilon();
        const int64_t label = call_.labels[i], own = centroids_.groups.of(label);
        T* const lower = lower_of(i);
        const T own_bound = lower[own];
        for (int64_t g = 0; g < centroids_.groups.count; ++g)
            lower[g] = lower[g] * kDown - centroids_.moved[g];
        if (centroids_.mover[own] == label)  // which the bound does not hold for
            lower[own] = own_bound * kDown - centroids_.moved_next[own];
        call_.upper[i] = (call_.upper[i] + call_.moved[label]) * kUp;
        return call_.upper[i] < nearest_other(i);
    }

    // At most the distance of a row to any centroid but its label.
    T nearest_other(int64_t i) const {
        const T* const lower = lower_of(i);
        T least = lower[0];
        for (int64_t g = 1; g < centroids_.groups.count; ++g)
            least = lower[g] < least ? lower[g] : least;
        return least;
    }

    void call_ahead(int64_t i) const {
        if (call_.x.col_stride != 1) return;
        constexpr int64_t kLine = 64 / sizeof(T);
        for (int64_t e = 0; e < call_.d; e += kLine) __builtin_prefetch(call_.x.row(i) + e);
    }

    // Measures how far a row is from its label. Where that does not settle it, the row is active.
    void take_in(int64_t i, T* x_copy) {
        const int64_t label = call_.labels[i];
        const T* const x = row_of(call_.x, i, call_.d, x_copy);
        const T nearest = sq_dist(x, label);
        call_.upper[i] = upper_of(nearest);
        if (call_.upper[i] < nearest_other(i)) return;
        T* const z = z_ + n_active_ * centroids_.stride;
        Lanes<T> squares = {};
        int64_t e = 0;
        for (; e + kLanes<T> <= call_.d; e += kLanes<T>) {
            const Lanes<T> z_e = load(x + e) - load(&centroids_.origin[e]);
            squares += z_e * z_e;
            store<T>(z + e, z_e);
        }
        if (e < call_.d) {
            const Lanes<T> z_e = load_some(x + e, call_.d - e) - load(&centroids_.origin[e]);
            squares += z_e * z_e;
            store<T>(z + e, z_e);
        }
        T sq_norm = 0;
        for (int v = 0; v < kLanes<T>; ++v) sq_norm += squares[v];
        active_[n_active_++] = {i, label, nearest, std::sqrt(sq_norm)};
    }

    void assign_group(int64_t g) {
        int64_t chunk[kSideBySide];
        int n_chunk = 0;
        for (int64_t r = 0; r < n_active_; ++r) {
            const ActiveRow<T>& row = active_[r];
            if (upper_of(row.nearest) < lower_of(row.i)[g]) continue;
            chunk[n_chunk++] = r;
            if (n_chunk == kSideBySide) assign_rows(g, chunk, n_chunk), n_chunk = 0;
        }
        if (n_chunk > 0) assign_rows(g, chunk, n_chunk);
    }

    void assign_rows(int64_t g, const int64_t* chunk, int n_chunk) {
        const T* z[kSideBySide];
        Lanes<T> scores[kSideBySide], best[kSideBySide];  // the least, but for the label's
        T left[kSideBySide];  // the least squared distance of those of the group that were labels
        for (int i = 0; i < n_chunk; ++i) {
            z[i] = z_ + chunk[i] * centroids_.stride;
            best[i] = broadcast(left[i] = kInfinity<T>);
        }
        const int64_t first = g * centroids_.groups.panels_each;
        const int64_t end =
            least(centroids_.groups.n_panels, first + centroids_.groups.panels_each);
        for (int64_t p = first; p < end; ++p) {
            with_constant<kSideBySide>(
                n_chunk, [&](auto width) { score_rows<width()>(centroids_, p, z, scores); });
            for (int i = 0; i < n_chunk; ++i) {
                ActiveRow<T>& row = active_[chunk[i]];
                Lanes<T> found = without(scores[i], p, row.label);
                // Not "some are at most": a NaN, of distances past what T holds, decides nothing.
                if (!all(found > broadcast(cut(row, g)))) {
                    choose(g, p, scores[i], row, left[i]);
                    found = without(scores[i], p, row.label);
                }
                best[i] = min(found, best[i]);
            }
        }
        for (int i = 0; i < n_chunk; ++i) {
            const ActiveRow<T>& row = active_[chunk[i]];
            T sq = row.norm * row.norm + 2 * (least_lane<T>(best[i]) - error(row, g));
            sq = left[i] < sq ? left[i] : sq;
            lower_of(row.i)[g] = sq > 0 ? std::sqrt(sq) * (1 - slack_) : 0;
        }
    }

    // A panel's scores, but for that of centroid j, if it is there.
    Lanes<T> without(Lanes<T> scores, int64_t p, int64_t j) const {
        const int64_t at = j - p * centroids_.groups.width;
        if (at >= 0 && at < kLanes<T>) scores[at] = kInfinity<T>;
        return scores;
    }

    // Gives the row the nearest of a panel's centroids where that is nearer than its label. IN/OUT
    // left: the least squared distance of a centroid of this group that was the label.
    void choose(int64_t g, int64_t p, Lanes<T> scores, ActiveRow<T>& row, T& left) {
        const int64_t first = p * centroids_.groups.width;
        const int64_t end = least(first + centroids_.groups.width, centroids_.k);
        const T* const x = row_of(call_.x, row.i, call_.d, mu_copy_ + centroids_.stride);
        for (int64_t j = first; j < end; ++j) {
            if (j == row.label || scores[j - first] > cut(row, g)) continue;
            const T candidate = sq_dist(x, j);
            if (!(candidate < row.nearest || (candidate == row.nearest && j < row.label))) continue;
            leave(row, g, left);
            row.label = j;
            row.nearest = candidate;
        }
    }

    // The label's distance to a bound of the group that it lies in.
    void leave(const ActiveRow<T>& row, int64_t g, T& left) {
        const int64_t own = centroids_.groups.of(row.label);
        if (own == g) {
            left = row.nearest < left ? row.nearest : left;
            return;
        }
        T& bound = lower_of(row.i)[own];
        const T distance = std::sqrt(row.nearest) * (1 - slack_);
        bound = distance < bound ? distance : bound;
    }

    // Scores above this are farther than the label.
    T cut(const ActiveRow<T>& row, int64_t g) const {
        return (row.nearest * (1 + slack_) - row.norm * row.norm) / 2 + error(row, g);
    }
    T error(const ActiveRow<T>& row, int64_t g) const {
        const T a = row.norm + centroids_.norm[g];
        return gamma_ * a * a;
    }
    T* lower_of(int64_t i) const { return call_.lower + i * centroids_.groups.count; }
    T upper_of(T nearest) const { return std::sqrt(nearest) * (1 + slack_); }
    T sq_dist(const T* x, int64_t j) const {
        return sq_dist_between(x, row_of(call_.mu, j, call_.d, mu_copy_), call_.d);
    }

    const KMeansStep<T>& call_;
    const CentroidPanels<T>& centroids_;
    T* const z_;        // (kMaxRows, stride): the active rows less the origin
    T* const mu_copy_;  // (2, stride): a centroid and a row, where they are strided
    ActiveRow<T>* const active_;
    int64_t n_active_ = 0;
    T gamma_, slack_;
};

}  // namespace

template <typename T>
int64_t kmeans_step_groups(int64_t d, int64_t k) {
    return Groups<T>(d, k).count;
}

template <typename T>
BadRow kmeans_step(const KMeansStep<T>& call) {
    const CentroidPanels<T> centroids(call);
    const int64_t row_bytes = centroids.stride * int64_t(sizeof(T));
    const Grid grid(call.n, most(kSideBySide, least(kMaxRows, 2 * kBlockBytes / row_bytes)));
    Layout layout;
    const int64_t z_at = layout.add(grid.block_rows * centroids.stride);
    const int64_t x_at = layout.add(call.d), mu_at = layout.add(2 * centroids.stride);
    const int64_t active_at =
        layout.add(grid.block_rows * int64_t(sizeof(ActiveRow<T>) / sizeof(T)));
    const double work = double(call.n) * double(call.k) * double(call.d) / 4;
    return for_each_with_memory<T>(
        grid.n_blocks, layout, work, call.n_threads, {}, [&](int64_t block, T* memory) {
            Block<T>(call, centroids, memory + z_at, memory + mu_at,
                     reinterpret_cast<ActiveRow<T>*>(memory + active_at))
                .assign(block * grid.block_rows, grid.rows_of(block), memory + x_at);
            return BadRow{};
        });
}

template BadRow kmeans_step(const KMeansStep<float>&);
template BadRow kmeans_step(const KMeansStep<double>&);
template int64_t kmeans_step_groups<float>(int64_t, int64_t);
template int64_t kmeans_step_groups<double>(int64_t, int64_t);

}  // namespace deepclust::DEEPCLUST_ISA
