// Rows rounded to 16-bit integers, panel by panel, and their nearest centroids: integers.h has the
// mathematics. Integers leave of each row the few centroids that they cannot tell apart, most often
// one; direct differences decide between these.

#pragma once

#include "integers.h"
#include "kernels.h"
#include "sq_dist.h"

namespace deepclust::DEEPCLUST_ISA {

constexpr int64_t kTurnedFirst = 32;  // up to this width a row is turned before it is rounded

// A place in a thread's memory, which is counted in Ts, for words of four bytes.
template <typename T>
struct Words {
    int64_t at;

    Words(Layout& layout, int64_t count)
        : at(layout.add((count * 4 + int64_t(sizeof(T)) - 1) / int64_t(sizeof(T)))) {}
    template <typename Word>
    Word* in(T* memory) const {
        return reinterpret_cast<Word*>(memory + at);
    }
};

template <typename T>
struct RowRounder {
    int64_t d;
    const T* origin;  // (d to whole lanes)
    Words<T> pairs_at, copy_at, z_at;
    int64_t turned_at, x_at, ahead;

    // copied: whether rows come as copies, behind which nothing follows.
    RowRounder(Layout& layout, int64_t d, const T* origin, bool copied)
        : d(d),
          origin(origin),
          pairs_at(layout, kIntegerRows * pairs_stride(d)),
          copy_at(layout, copy_stride(d)),
          z_at(layout, d * kIntegerRows),
          turned_at(layout.add(round_up<T>(d) * kPoints<T>)),
          x_at(layout.add(d)),
          ahead(copied ? 0 : (16 << 10) / int64_t(sizeof(T))) {}

    // OUT panel: rows [first, first + kIntegerRows) of x, which has n. Returns the sum of
    // ||x_i - origin||^2 over them, which NaN and Inf do not leave finite.
    double round(Matrix<T> x, int64_t n, int64_t first, T* memory, int32_t* panel) const {
        return d <= kTurnedFirst ? turn_and_round(x, n, first, memory, panel)
                                 : round_and_turn(x, n, first, memory, panel);
    }

  private:
    // Narrow rows: nothing is taken from one lane to another but to turn them.
    double turn_and_round(Matrix<T> x, int64_t n, int64_t first, T* memory, int32_t* panel) const {
        T* const turned = memory + turned_at;
        float* const z = z_at.template in<float>(memory);
        T sq_norms[kPoints<T>];
        float sq_norm[kIntegerRows];
        double sum = 0;
        for (int64_t v = 0; v < kIntegerRows; v += kPoints<T>) {
            load_panel<T>(x, n, least(first + v, n), d, origin, {turned, sq_norms});
            for (int64_t e = 0; e < d; ++e)
                for (int64_t i = 0; i < kPoints<T>; ++i)
                    z[e * kIntegerRows + v + i] = static_cast<float>(turned[e * kPoints<T> + i]);
            for (int64_t i = 0; i < kPoints<T>; ++i) {
                sq_norm[v + i] = static_cast<float>(sq_norms[i]);
                if (first + v + i < n) sum += sq_norms[i];
            }
        }
        round_panel(z, sq_norm, d, panel);
        return sum;
    }
    // Wide ones: half as much is left to turn.
    double round_and_turn(Matrix<T> x, int64_t n, int64_t first, T* memory, int32_t* panel) const {
        const int64_t n_rows = least(kIntegerRows, n - first);
        int32_t* const pairs = pairs_at.template in<int32_t>(memory);
        float* const copy = copy_at.template in<float>(memory);
        float* const inverse_u = inverse_u_of(panel, d);
        for (int64_t e = 0; e < copy_stride(d); ++e) copy[e] = 0;
        double sum = 0;
        for (int64_t i = 0; i < n_rows; ++i) {
            const T* const row = row_of(x, first + i, d, memory + x_at);
            const Extent<T> extent = load_copy(row, origin, d, ahead, copy);
            sum += extent.sq_norm;
            inverse_u[i] = extent.inverse_u(d);
            inverse_u[kIntegerRows + i] =
                round_to_pairs(copy, d, inverse_u[i], pairs + i * pairs_stride(d));
        }
        turn_pairs(pairs, d, panel);
        return sum;
    }
};

// The scores of a panel's rows that leave a centroid in question: OUT most (kIntegerRows). Whether
// there is one in question, beside the best, in any of the rows, that of padding among them.
inline bool find_cuts(const int32_t* panel, const IntegerCentroids& centroids,
                      const IntegerMinima& minima, float* most) {
    const float* const inverse_u = inverse_u_of(panel, centroids.d);
    bool any = false;
    for (int i = 0; i < kIntegerRows; i += kLanes<float>) {
        const Lanes<float> norm = centroids.norms(load(minima.label + i));
        const Lanes<float> cut =
            load(minima.best + i) +
            centroids.margin(load(inverse_u + i), load(inverse_u + kIntegerRows + i), norm);
        store<float>(most + i, cut);
        any |= !all(cut < load(minima.second + i));
    }
    return any;
}

// The nearest centroids, of which `centroids` are the integers, of rows of x (n, d).
// OUT labels (n), sq_dist (n), unless null.
template <typename T>
struct IntegerAssignment {
    Matrix<T> x, mu;
    int64_t d;
    int64_t* labels;
    T* sq_dist;
    const IntegerCentroids& centroids;

    // Assigns rows [first, first + n_rows), whose panels these are: kMaxPanels at most. copies:
    // room for two rows. Returns how many of them integers left open.
    int64_t run(const int32_t* panels, Later later, int64_t first, int64_t n_rows,
                T* copies) const {
        return multiplies_pairs_at_once() ? run_with<true>(panels, later, first, n_rows, copies)
                                          : run_with<false>(panels, later, first, n_rows, copies);
    }

  private:
    template <bool kAtOnce>
    int64_t run_with(const int32_t* panels, Later later, int64_t first, int64_t n_rows,
                     T* copies) const {
        IntegerMinima minima[kMaxPanels];
        const int64_t n_panels = (n_rows + kIntegerRows - 1) / kIntegerRows;
        fold_panels<kAtOnce>(panels, n_panels, centroids, later, minima);
        float most[kMaxPanels][kIntegerRows];
        bool any_open[kMaxPanels];
        for (int64_t p = 0; p < n_panels; ++p) {
            const int64_t from = p * kIntegerRows, here = least(kIntegerRows, n_rows - from);
            any_open[p] = find_cuts(panels + p * panel_numbers(d), centroids, minima[p], most[p]);
            for (int64_t i = 0; i < here; ++i) labels[first + from + i] = minima[p].label[i];
            // Which has not been read for long, maybe, and is soon.
            for (int64_t i = 0; any_open[p] && i < here; ++i)
                if (!(most[p][i] < minima[p].second[i])) call_ahead(x, first + from + i, d);
        }
        int64_t n_open = 0;
        for (int64_t p = 0; p < n_panels; ++p) {
            if (!any_open[p] && sq_dist == nullptr) continue;
            const int64_t from = p * kIntegerRows, here = least(kIntegerRows, n_rows - from);
            for (int64_t i = 0; i < here; ++i) {
                const bool clear = most[p][i] < minima[p].second[i];
                if (clear && sq_dist == nullptr) continue;
                n_open += !clear;
                const int64_t row = first + from + i;
                const T* const x_i = row_of(x, row, d, copies);
                const auto sq_dist_to = [&](int64_t j) {
                    return deciding_sq_dist(x_i, row_of(mu, j, d, copies + d), d);
                };
                int64_t label = labels[row];
                T nearest = kInfinity<T>;
                if (clear)
                    nearest = sq_dist_to(label);
                else
                    for_each_candidate<kAtOnce>(
                        panels + p * panel_numbers(d), i, centroids, minima[p], most[p][i],
                        [&](int64_t j) {
                            const T candidate = sq_dist_to(j);
                            if (candidate < nearest || (candidate == nearest && j < label))
                                nearest = candidate, label = j;
                        });
                labels[row] = label;
                if (sq_dist != nullptr) sq_dist[row] = nearest;
            }
        }
        return n_open;
    }
};

}  // namespace deepclust::DEEPCLUST_ISA
