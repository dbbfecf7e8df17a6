// The heads, one panel of points at a time: products to keys, keys to weights, gradients back.
//
// Every head's scores come from one matrix product of the points' features with K columns, so that
// one register tile serves all:
//
//   StudentT   features z - c            columns -2 (mu_j - c)             offset ||mu_j - c||^2
//   Linear     features z                columns theta_j                   offset b_j
//   Gaussian   features z - c, its       columns mu_j / v_j, -1 / (2 v_j)  offset log pi_j - sum of
//              squares                   (mu_j less c)                     (mu^2/v + log 2 pi v) /
//              2
//
// c, the origin, is the median of some centroids: the digits that the points and the centroids
// share are taken off before any product, and one far centroid cannot take everybody's along.
//
// Of a key the weights e_ij = exp(s_ij - max_l s_il) follow, and q_ij = e_ij / sum_l e_il:
//
//   kRational  nu = 1    u = 1 + d2                   e = min u / u, no exponential or logarithm
//   kStudentT            d2                           e = exp(-(nu+1)/2 (log1p(d2/nu) - the least))
//   kLinear              s (Linear and Gaussian)      e = exp(s - max s)

#pragma once

#include <cmath>

#include "lanes.h"
#include "matrix.h"
#include "memory.h"
#include "panels.h"
#include "product.h"
#include "vector_math.h"

namespace deepclust::DEEPCLUST_ISA {

enum class Form { kRational, kStudentT, kLinear };

// The largest u or d2 taken at its value: beyond it 1 / u is subnormal. Coordinates are 1e18 then.
template <typename T>
constexpr T kLargest = T(0.25) / std::numeric_limits<T>::min();

// OUT origin (d): per coordinate, the median of up to 31 of the k rows of mu, evenly spaced.
template <typename T>
void median_origin(Matrix<T> mu, int64_t k, int64_t d, T* origin) {
    constexpr int64_t kMost = 31, kL = kLanes<T>;
    const int64_t n = least(k, kMost);
    for (int64_t e = 0; e < d; e += kL) {
        const int64_t count = least(kL, d - e);
        Lanes<T> sorted[kMost] = {};
        for (int64_t i = 0; i < n; ++i) {
            const int64_t j = i * k / n;
            if (mu.col_stride == 1)
                sorted[i] = load_some(mu.row(j) + e, count);
            else
                for (int64_t l = 0; l < count; ++l) sorted[i][l] = mu(j, e + l);
        }
        // Lane by lane, neighbours in turn; std::sort would be shared between files.
        for (int64_t pass = 0; pass < n; ++pass)
            for (int64_t i = pass % 2; i + 1 < n; i += 2) {
                const Lanes<T> a = sorted[i], b = sorted[i + 1];
                sorted[i] = min(a, b);
                sorted[i + 1] = max(a, b);
            }
        store_some<T>(origin + e, sorted[(n - 1) / 2], count);
    }
}

template <typename T>
struct PackedHead {
    HeadKind kind;
    Form form;
    T nu;
    int64_t k, d;
    int64_t features;           // d, or 2 d for the Gaussian's squares
    int64_t stride;             // of rows of features
    BadRow bad;                 // the first parameter with NaN or Inf
    Buffer<T> origin;           // (stride)
    Buffer<T> weights;          // (k, features): mu - c, theta, or (mu - c) / v and -1 / (2 v)
    Buffer<T> offset;           // (k)
    PackedColumns<T> forward;   // weights by column, times product_factor()
    PackedColumns<T> backward;  // weights by row

    // `by_panels`: points go through by panels, for which the columns are packed.
    PackedHead(const Head<T>& head, bool needs_grad, bool check, bool by_panels = true)
        : kind(head.kind),
          form(kind != HeadKind::kStudentT ? Form::kLinear
               : head.nu == 1              ? Form::kRational
                                           : Form::kStudentT),
          nu(head.nu),
          k(head.k),
          d(head.d),
          features(kind == HeadKind::kGaussian ? 2 * d : d),
          stride(round_up<T>(features)),
          origin(stride),
          weights(k * features),
          offset(k) {
        if (check) find_bad(head);
        for (int64_t e = 0; e < stride; ++e) origin[e] = 0;
        const Matrix<T> mu{head.params[0], d, 1};
        if (kind != HeadKind::kLinear) median_origin(mu, k, d, origin.get());
        for (int64_t j = 0; j < k; ++j) set_weights(head, j);
        const T factor = product_factor();
        if (by_panels)
            forward = PackedColumns<T>(features, k, [&](int64_t e, int64_t j) {
                return factor * weights[j * features + e];
            });
        if (needs_grad)
            backward = PackedColumns<T>(
                k, features, [&](int64_t j, int64_t e) { return weights[j * features + e]; });
    }

    int64_t panel_size() const {  // of features, and of gradients to them
        return most(stride, needs_grad() ? backward.tiling.padded() : 0) * kPoints<T>;
    }
    int64_t scores_size() const {  // of products, keys, weights
        return most(forward.tiling.padded(), round_up<T>(k)) * kPoints<T>;
    }
    bool needs_grad() const { return backward.length > 0; }
    T product_factor() const { return kind == HeadKind::kStudentT ? T(-2) : T(1); }

  private:
    void find_bad(const Head<T>& head) {
        const int64_t widths[3] = {d, kind == HeadKind::kGaussian ? d : 1, 1};
        for (int i = 0; i < 3; ++i)
            if (head.params[i] != nullptr && bad.input < 0) {
                const Matrix<T> param{head.params[i], widths[i], 1};
                bad = first_bad_row(i + 1, param, 0, k, widths[i]);
            }
    }

    void set_weights(const Head<T>& head, int64_t j) {
        T* w = &weights[j * features];
        const T* row = head.params[0] + j * d;
        double sum = 0;
        if (kind == HeadKind::kLinear) {
            for (int64_t e = 0; e < d; ++e) w[e] = row[e];
            offset[j] = head.params[1] == nullptr ? T(0) : head.params[1][j];
        } else if (kind == HeadKind::kStudentT) {
            DoubleLanes<T> squares = {};
            for (int64_t e = 0; e < d; e += kLanes<T>) {
                const int64_t count = least(kLanes<T>, d - e);
                const bool whole = count == kLanes<T>;
                const Lanes<T> difference =
                    (whole ? load(row + e) : load_some(row + e, count)) - load(&origin[e]);
                if (whole)
                    store<T>(w + e, difference);
                else
                    store_some(w + e, difference, count);
                squares += widen<T>(difference) * widen<T>(difference);
            }
            offset[j] = static_cast<T>(sum_of_doubles<T>(squares));
        } else {
            constexpr double kLog2Pi = 1.837877066409345483560659472811;
            for (int64_t e = 0; e < d; ++e) {
                const double mu = row[e] - origin[e], log_var = head.params[1][j * d + e];
                const double precision = std::exp(-log_var);
                w[e] = static_cast<T>(mu * precision);
                w[d + e] = static_cast<T>(-precision / 2);
                sum += mu * mu * precision + log_var + kLog2Pi;
            }
            offset[j] = static_cast<T>(head.params[2][j] - sum / 2);
        }
    }
};

// OUT panel (head.panel_size()), sq_norm (kPoints) and, unless null, rows (kPoints, head.stride) of
// the features of rows [first, first + kPoints) of z (n, d).
template <typename T>
void load_features(const PackedHead<T>& head, Matrix<T> z, int64_t n, int64_t first, T* rows,
                   T* panel, T* sq_norm) {
    const int64_t d = head.d;
    load_panel<T>(z, n, first, d, head.origin.get(), {panel, sq_norm, rows, head.stride});
    if (head.kind == HeadKind::kGaussian) {
        for (int64_t i = 0; i < d * kPoints<T>; i += kLanes<T>)
            store<T>(panel + d * kPoints<T> + i, load(panel + i) * load(panel + i));
        for (int64_t i = 0; i < kPoints<T> && rows != nullptr; ++i)
            for (int64_t e = 0; e < head.stride - d; ++e) {
                T* const row = rows + i * head.stride;
                row[d + e] = e < d ? row[e] * row[e] : T(0);
            }
    }
}

// Multiply-adds, and something for the weights, that n points take.
template <typename T>
double work_of(const PackedHead<T>& head, int64_t n) {
    return double(n) * double(head.k) * double(head.d + 8);
}

// What a panel's points have in common over their clusters, one point a lane.
template <typename T>
using PerPoint = Lanes<T>[kVectors];

template <Form kForm, typename T>
inline Lanes<T> key_of(Lanes<T> product, Lanes<T> offset, Lanes<T> sq_norm) {
    Lanes<T> key = product + offset;
    if constexpr (kForm == Form::kLinear) return key;
    key = max(key + sq_norm, Lanes<T>{});
    if constexpr (kForm == Form::kRational) key += T(1);
    return min(key, broadcast(kLargest<T>));
}

// IN/OUT s (k, kPoints): products to keys. OUT best: the key of the largest score, and, if asked,
// labels: the lowest index that has it.
template <Form kForm, bool kLabels, typename T>
void to_keys(const PackedHead<T>& head, const T* sq_norm, T* s, PerPoint<T>& best,
             PerPoint<IntLike<T>>& labels) {
    for (int v = 0; v < kVectors; ++v) {
        best[v] = broadcast(kForm == Form::kLinear ? -kInfinity<T> : kInfinity<T>);
        if constexpr (kLabels) labels[v] = IntLanes<T>{};
    }
    for (int64_t j = 0; j < head.k; ++j)
        for (int v = 0; v < kVectors; ++v) {
            T* const at = s + j * kPoints<T> + v * kLanes<T>;
            const Lanes<T> key = key_of<kForm, T>(load(at), broadcast(head.offset[j]),
                                                  load(sq_norm + v * kLanes<T>));
            if constexpr (kLabels) {
                const auto wins = kForm == Form::kLinear ? best[v] < key : key < best[v];
                labels[v] = wins ? broadcast(static_cast<IntLike<T>>(j)) : labels[v];
            }
            best[v] = kForm == Form::kLinear ? max(best[v], key) : min(key, best[v]);
            store<T>(at, key);
        }
}

// log e_ij of a key, where the form has logarithms at all.
template <Form kForm, typename T>
inline Lanes<T> log_weight(const PackedHead<T>& head, Lanes<T> key, Lanes<T> best) {
    if constexpr (kForm == Form::kLinear) return key - best;
    // `best` is what `start_of_logs` makes of it: log1p of the least d2 / nu.
    return (log1p<T>(key * (1 / head.nu)) - best) * (T(-0.5) * (head.nu + 1));
}

template <Form kForm, typename T>
inline Lanes<T> start_of_logs(const PackedHead<T>& head, Lanes<T> best) {
    if constexpr (kForm == Form::kStudentT) return log1p<T>(best * (1 / head.nu));
    if constexpr (kForm == Form::kRational) return inverse<T>(best);
    return best;
}

// 1 / e_ij of a key u, for kRational, with the inverse of the least u: never below 1, rounded or
// not, so that one cluster costs exactly nothing.
template <typename T>
inline Lanes<T> u_over_least(Lanes<T> u, Lanes<T> inverse_least) {
    return max(u * inverse_least, broadcast(T(1)));
}

// IN/OUT s (k, kPoints): keys to weights. OUT sum: of each point's weights.
template <Form kForm, typename T>
void to_weights(const PackedHead<T>& head, const PerPoint<T>& best, T* s, PerPoint<T>& sum) {
    Lanes<T> start[kVectors];
    for (int v = 0; v < kVectors; ++v) {
        start[v] = start_of_logs<kForm>(head, best[v]);
        sum[v] = Lanes<T>{};
    }
    for (int64_t first = 0; first < head.k; first += kRunLength) {
        Lanes<T> run[kVectors] = {};
        for (int64_t j = first; j < least(first + kRunLength, head.k); ++j)
            for (int v = 0; v < kVectors; ++v) {
                T* const at = s + j * kPoints<T> + v * kLanes<T>;
                Lanes<T> e;
                if constexpr (kForm == Form::kRational)
                    e = inverse<T>(u_over_least<T>(load(at), start[v]));
                else
                    e = exp<T>(log_weight<kForm>(head, load(at), start[v]));
                store<T>(at, e);
                run[v] += e;
            }
        for (int v = 0; v < kVectors; ++v) sum[v] += run[v];
    }
}

// IN/OUT s (k, kPoints): products to weights, for who wants no more of the keys than the labels,
// and these only if asked. OUT sum: of each point's weights.
template <Form kForm, bool kLabels, typename T>
void weigh(const PackedHead<T>& head, const T* sq_norm, T* s, PerPoint<T>& sum,
           PerPoint<IntLike<T>>& labels) {
    PerPoint<T> best;
    if constexpr (kForm != Form::kRational) {
        to_keys<kForm, kLabels>(head, sq_norm, s, best, labels);
        to_weights<kForm>(head, best, s, sum);
        return;
    }
    // 1 / u needs no scaling by the largest to stay in range: one pass does it.
    for (int v = 0; v < kVectors; ++v) {
        best[v] = broadcast(kInfinity<T>);
        sum[v] = Lanes<T>{};
        labels[v] = IntLanes<T>{};
    }
    for (int64_t first = 0; first < head.k; first += kRunLength) {
        Lanes<T> run[kVectors] = {};
        for (int64_t j = first; j < least(first + kRunLength, head.k); ++j)
            for (int v = 0; v < kVectors; ++v) {
                T* const at = s + j * kPoints<T> + v * kLanes<T>;
                const Lanes<T> u = key_of<kForm, T>(load(at), broadcast(head.offset[j]),
                                                    load(sq_norm + v * kLanes<T>));
                if constexpr (kLabels) {
                    const auto wins = u < best[v];
                    best[v] = wins ? u : best[v];
                    labels[v] = wins ? broadcast(static_cast<IntLike<T>>(j)) : labels[v];
                }
                const Lanes<T> e = inverse<T>(u);
                store<T>(at, e);
                run[v] += e;
            }
        for (int v = 0; v < kVectors; ++v) sum[v] += run[v];
    }
}

// Calls body(std::integral_constant<Form, form>).
template <typename Body>
inline void with_form(Form form, const Body& body) {
    if (form == Form::kRational)
        body(std::integral_constant<Form, Form::kRational>());
    else if (form == Form::kStudentT)
        body(std::integral_constant<Form, Form::kStudentT>());
    else
        body(std::integral_constant<Form, Form::kLinear>());
}

// w_ij, the gradient to the product of point i and cluster j, of the gradient ds to the score:
// StudentT (nu+1) ds / (nu + d2), with `inverse` 1 / (nu + d2); else ds. With it, for every head:
//
//   StudentT  dz = w mu - rowsum(w) z              dmu = w^T z - colsum(w) mu     (z, mu less c)
//   Linear    dz = w theta                         dtheta = w^T z                 db = colsum(w)
//   Gaussian  dz = w (mu/v) - z (w (1/v))          the same sums, by the chain rule
template <Form kForm, typename T>
inline Lanes<T> to_product(const PackedHead<T>& head, Lanes<T> ds, Lanes<T> inverse) {
    if constexpr (kForm == Form::kLinear) return ds;
    return ds * inverse * (head.nu + 1);
}

// IN w (k, kPoints), z (panel of features), products = w times the weights, which is overwritten by
// the gradient to the points (d, kPoints).
template <typename T>
void finish_points(const PackedHead<T>& head, const T* w, const T* z, T* products) {
    Lanes<T> total[kVectors] = {};
    if (head.kind == HeadKind::kStudentT)
        for (int64_t j = 0; j < head.k; j += kRunLength) {
            Lanes<T> run[kVectors] = {};
            for (int64_t l = j; l < least(j + kRunLength, head.k); ++l)
                for (int v = 0; v < kVectors; ++v)
                    run[v] += load(w + l * kPoints<T> + v * kLanes<T>);
            for (int v = 0; v < kVectors; ++v) total[v] += run[v];
        }
    for (int64_t e = 0; e < head.d && head.kind != HeadKind::kLinear; ++e)
        for (int v = 0; v < kVectors; ++v) {
            const int64_t at = e * kPoints<T> + v * kLanes<T>;
            const Lanes<T> factor = head.kind == HeadKind::kStudentT
                                        ? -total[v]
                                        : T(2) * load(products + head.d * kPoints<T> + at);
            store<T>(products + at, load(products + at) + factor * load(z + at));
        }
}

// IN sums (k, head.stride): w^T features; totals (k): colsum(w). OUT the gradients to the
// parameters.
template <typename T>
void finish_params(const PackedHead<T>& packed, const Head<T>& head, const double* sums,
                   const double* totals, T* const dparams[3]) {
    const int64_t d = head.d;
    for (int64_t j = 0; j < head.k; ++j) {
        const double* first = sums + j * packed.stride;
        const double* second = first + d;  // Gaussian only
        if (head.kind == HeadKind::kStudentT) {
            const T* mu = &packed.weights[j * d];
            for (int64_t e = 0; e < d; ++e)
                dparams[0][j * d + e] = static_cast<T>(first[e] - totals[j] * mu[e]);
        } else if (head.kind == HeadKind::kLinear) {
            for (int64_t e = 0; e < d; ++e) dparams[0][j * d + e] = static_cast<T>(first[e]);
            if (dparams[1] != nullptr) dparams[1][j] = static_cast<T>(totals[j]);
        } else {
            for (int64_t e = 0; e < d; ++e) {
                const double mu = head.params[0][j * d + e] - packed.origin[e];
                const double precision = std::exp(-double(head.params[1][j * d + e]));
                const double spread = second[e] - 2 * mu * first[e] + totals[j] * mu * mu;
                dparams[0][j * d + e] = static_cast<T>(precision * (first[e] - totals[j] * mu));
                dparams[1][j * d + e] = static_cast<T>((precision * spread - totals[j]) / 2);
            }
            dparams[2][j] = static_cast<T>(totals[j]);
        }
    }
}

}  // namespace deepclust::DEEPCLUST_ISA
