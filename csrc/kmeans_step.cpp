// Hard assignment again, after the centroids have moved: only what may have changed is computed.
//
//   labels_i = argmin_j ||x_i - mu_j||^2, ties to the lowest index: what kmeans_assign.cpp gives
//
// Two bounds a row say what may have changed (Ding et al., 2015, "Yinyang k-means"; with one group
// of centroids Hamerly, 2010): upper_i >= ||x_i - mu_{labels_i}||, and for each group of centroids
// lower_ig <= ||x_i - mu_j|| for all its j but labels_i. By the triangle inequality a centroid that
// moves by m_j shifts them by m_j at most. A row whose upper bound lies below all lower ones keeps
// its label, and is not even read; of any other only the groups that reach below its upper bound
// are computed, as row_scores.h does. All bounds are rounded away from what they bound.
//
// Memory: the centroids packed once; for each thread the rows of a block that are computed. Reads
// n (groups + 1) bounds, d numbers of a row that is computed and at most n d + k d in all; at most
// 2 n k d operations.

#include "kmeans_step.h"

#include "kernels.h"
#include "row_scores.h"

namespace deepclust::DEEPCLUST_ISA {
namespace {

constexpr int64_t kMaxRows = 512;  // of a block
constexpr int64_t kAhead = 2;

// Panels cut into groups with a bound a row: as many as keep the bounds to an eighth of the rows.
struct Groups {
    int64_t panels_each, count;

    Groups(int64_t d, int64_t n_panels) {
        const int64_t affordable = most(1, d / 8);
        panels_each = (n_panels + affordable - 1) / affordable;
        count = (n_panels + panels_each - 1) / panels_each;
    }
};

template <typename T>
struct MovedCentroids {
    RowPanels<T> panels;
    Groups groups;
    // (groups): the farthest that one of the group moved, which one, and the farthest of the others
    Buffer<T> farthest, next;
    Buffer<int64_t> mover;

    explicit MovedCentroids(const KMeansStep<T>& call)
        : panels(call.mu, call.d, call.k),
          groups(call.d, panels.n_panels),
          farthest(groups.count),
          next(groups.count),
          mover(groups.count) {
        for (int64_t g = 0; g < groups.count; ++g) {
            farthest[g] = next[g] = 0;
            mover[g] = -1;
        }
        for (int64_t j = 0; j < call.k; ++j) {
            const int64_t g = group_of(j);
            if (call.moved[j] > farthest[g]) {
                next[g] = farthest[g];
                farthest[g] = call.moved[j];
                mover[g] = j;
            } else {
                next[g] = std::fmax(next[g], call.moved[j]);
            }
        }
    }
    int64_t group_of(int64_t j) const { return j / panels.width / groups.panels_each; }
};

template <typename T>
class Block {
  public:
    // z (rows of a block, stride); copies (2, stride), for what is strided; active (rows).
    Block(const KMeansStep<T>& call, const MovedCentroids<T>& centroids, T* z, T* copies,
          RowOnTheWay<T>* active)
        : call_(call),
          panels_(centroids.panels),
          centroids_(centroids),
          z_(z),
          x_copy_(copies),
          mu_copy_(copies + panels_.stride),
          active_(active) {}

    void assign(int64_t first, int64_t n_rows) {
        int64_t n_open = 0;
        for (int64_t i = first; i < first + n_rows; ++i)
            if (!settled(i)) active_[n_open++].i = i;
        n_active_ = 0;
        for (int64_t r = 0; r < n_open; ++r) {
            if (r + kAhead < n_open) call_ahead(call_.x, active_[r + kAhead].i, call_.d);
            take_in(active_[r].i);
        }
        for (int64_t g = 0; g < centroids_.groups.count && n_active_ > 0; ++g) assign_group(g);
        for (int64_t r = 0; r < n_active_; ++r) {
            const RowOnTheWay<T>& row = active_[r];
            call_.labels[row.i] = row.label;
            call_.upper[row.i] = upper_of(row.nearest);
        }
        if (call_.sq_dist == nullptr) return;
        for (int64_t i = first; i < first + n_rows; ++i)
            call_.sq_dist[i] = sq_dist(x(i), call_.labels[i]);
    }

  private:
    // Moves the bounds of a row as far as the centroids moved. Whether they say that the label
    // stays.
    bool settled(int64_t i) {
        constexpr T kDown = 1 - 2 * std::numeric_limits<T>::epsilon();
        constexpr T kUp = 1 + 2 * std::numeric_limits<T>::epsilon();
        const int64_t label = call_.labels[i], own = centroids_.group_of(label);
        T* const lower = lower_of(i);
        const T own_bound = lower[own];
        for (int64_t g = 0; g < centroids_.groups.count; ++g)
            lower[g] = lower[g] * kDown - centroids_.farthest[g];
        if (centroids_.mover[own] == label)  // which the bound does not hold for
            lower[own] = own_bound * kDown - centroids_.next[own];
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

    // Measures how far a row is from its label. Where that does not settle it, the row is active.
    void take_in(int64_t i) {
        const int64_t label = call_.labels[i];
        const T* const row = x(i);
        const T nearest = sq_dist(row, label);
        call_.upper[i] = upper_of(nearest);
        if (call_.upper[i] < nearest_other(i)) return;
        const T norm = panels_.load_row(row, z_ + n_active_ * panels_.stride);
        active_[n_active_++] = {i, label, nearest, norm};
    }

    void assign_group(int64_t g) {
        int64_t chunk[kSideBySide];
        int n_chunk = 0;
        for (int64_t r = 0; r < n_active_; ++r) {
            if (upper_of(active_[r].nearest) < lower_of(active_[r].i)[g]) continue;
            chunk[n_chunk++] = r;
            if (n_chunk == kSideBySide) assign_rows(g, chunk, n_chunk), n_chunk = 0;
        }
        if (n_chunk > 0) assign_rows(g, chunk, n_chunk);
    }

    void assign_rows(int64_t g, const int64_t* chunk, int n_chunk) {
        const T* z[kSideBySide];
        Lanes<T> scores[kSideBySide];
        // The least of (distance^2 - ||z||^2) / 2, at most, but for the label's; and the least
        // squared distance of the group's centroids that were labels.
        Lanes<T> best[kSideBySide];
        T left[kSideBySide];
        for (int i = 0; i < n_chunk; ++i) {
            z[i] = z_ + chunk[i] * panels_.stride;
            best[i] = broadcast(left[i] = kInfinity<T>);
        }
        const int64_t first = g * centroids_.groups.panels_each;
        const int64_t end = least(panels_.n_panels, first + centroids_.groups.panels_each);
        for (int64_t p = first; p < end; ++p) {
            score_rows(panels_, p, z, n_chunk, scores);
            for (int i = 0; i < n_chunk; ++i) {
                RowOnTheWay<T>& row = active_[chunk[i]];
                const Lanes<T> others = panels_.choose(
                    p, scores[i], row, [&](int64_t j) { return sq_dist(x(row.i), j); },
                    [&] { leave(row, g, left[i]); });
                best[i] = min(others - broadcast(panels_.error(row, p)), best[i]);
            }
        }
        for (int i = 0; i < n_chunk; ++i) {
            const RowOnTheWay<T>& row = active_[chunk[i]];
            T sq = row.norm * row.norm + 2 * least_lane<T>(best[i]);
            sq = left[i] < sq ? left[i] : sq;
            lower_of(row.i)[g] = sq > 0 ? std::sqrt(sq) * (1 - panels_.slack) : 0;
        }
    }

    // The distance of the label, before it changes, to a bound of the group that it lies in. IN/OUT
    // left: the least squared one of group g, whose bound comes later.
    void leave(const RowOnTheWay<T>& row, int64_t g, T& left) {
        const int64_t own = centroids_.group_of(row.label);
        if (own == g) {
            left = row.nearest < left ? row.nearest : left;
            return;
        }
        T& bound = lower_of(row.i)[own];
        const T distance = std::sqrt(row.nearest) * (1 - panels_.slack);
        bound = distance < bound ? distance : bound;
    }

    T* lower_of(int64_t i) const { return call_.lower + i * centroids_.groups.count; }
    T upper_of(T nearest) const { return std::sqrt(nearest) * (1 + panels_.slack); }
    const T* x(int64_t i) const { return row_of(call_.x, i, call_.d, x_copy_); }
    T sq_dist(const T* row, int64_t j) const {
        return sq_dist_between(row, row_of(call_.mu, j, call_.d, mu_copy_), call_.d);
    }

    const KMeansStep<T>& call_;
    const RowPanels<T>& panels_;
    const MovedCentroids<T>& centroids_;
    T* const z_;
    T* const x_copy_;
    T* const mu_copy_;
    RowOnTheWay<T>* const active_;
    int64_t n_active_ = 0;
};

}  // namespace

template <typename T>
int64_t kmeans_step_groups(int64_t d, int64_t k) {
    return Groups(d, (k + kLanes<T> - 1) / kLanes<T>).count;
}

template <typename T>
BadRow kmeans_step(const KMeansStep<T>& call) {
    const MovedCentroids<T> centroids(call);
    const int64_t stride = centroids.panels.stride;
    const int64_t fitting = 2 * kBlockBytes / (stride * int64_t(sizeof(T)));
    const Grid grid(call.n, most(kSideBySide, least(kMaxRows, fitting)));
    Layout layout;
    const int64_t z_at = layout.add(grid.block_rows * stride), copies_at = layout.add(2 * stride);
    const int64_t active_at =
        layout.add(grid.block_rows * int64_t(sizeof(RowOnTheWay<T>) / sizeof(T)));
    const double work = double(call.n) * double(call.k) * double(call.d) / 4;
    return for_each_with_memory<T>(
        grid.n_blocks, layout, work, call.n_threads, {}, [&](int64_t block, T* memory) {
            Block<T>(call, centroids, memory + z_at, memory + copies_at,
                     reinterpret_cast<RowOnTheWay<T>*>(memory + active_at))
                .assign(block * grid.block_rows, grid.rows_of(block));
            return BadRow{};
        });
}

template BadRow kmeans_step(const KMeansStep<float>&);
template BadRow kmeans_step(const KMeansStep<double>&);
template int64_t kmeans_step_groups<float>(int64_t, int64_t);
template int64_t kmeans_step_groups<double>(int64_t, int64_t);

}  // namespace deepclust::DEEPCLUST_ISA
