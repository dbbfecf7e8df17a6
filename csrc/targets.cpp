// p_ij = r_ij^power / sum_l r_il^power, r_ij = q_ij (u_j / f_j)^(1/2) over the row's largest.
//
// Divided by the row's largest, no power underflows where it matters. A row of zeros stays one.
//
// A narrow row goes through by the panel, points along the lanes; a wide one has its own clusters
// along the lanes, and nothing is turned.
//
// Memory: for f, a row of sums for each of at most kParts parts of the rows, added up in order; for
// each thread a panel. Reads n k numbers, twice without f, and writes as many.

#include "targets.h"

#include "blocks.h"
#include "kernels.h"

namespace deepclust::DEEPCLUST_ISA {
namespace {

// IN/OUT q (k, kPoints): to p, up to the factor `inverse`. Returns whether its values are finite
// and not negative.
template <typename T>
bool fill_target(int64_t k, const T* factor, bool square, T* q, PerPoint<T>& inverse) {
    const Lanes<T> tiny = broadcast(std::numeric_limits<T>::min());
    Lanes<T> lowest[kVectors] = {}, largest[kVectors], total[kVectors] = {};
    for (int v = 0; v < kVectors; ++v) largest[v] = tiny;
    for (int64_t j = 0; j < k; ++j)
        for (int v = 0; v < kVectors; ++v) {
            T* const at = q + j * kPoints<T> + v * kLanes<T>;
            const Lanes<T> value = load(at);
            const Lanes<T> ratio = value * factor[j];
            lowest[v] = min(value, lowest[v]);
            largest[v] = max(largest[v], ratio);
            total[v] += value;
            store<T>(at, ratio);
        }
    Lanes<T> sum[kVectors] = {};
    for (int v = 0; v < kVectors; ++v) largest[v] = T(1) / largest[v];
    for (int64_t first = 0; first < k; first += kRunLength) {
        Lanes<T> run[kVectors] = {};
        for (int64_t j = first; j < least(first + kRunLength, k); ++j)
            for (int v = 0; v < kVectors; ++v) {
                T* const at = q + j * kPoints<T> + v * kLanes<T>;
                Lanes<T> weight = load(at) * largest[v];
                if (square) weight *= weight;
                store<T>(at, weight);
                run[v] += weight;
            }
        for (int v = 0; v < kVectors; ++v) sum[v] += run[v];
    }
    for (int v = 0; v < kVectors; ++v) inverse[v] = T(1) / max(sum[v], tiny);
    Lanes<T> zero = {};
    for (int v = 0; v < kVectors; ++v) zero += total[v] * T(0) + lowest[v];
    return all_zero<T>(zero);
}

// Calls body(e, whole) for the lanes of [first, end): whole() says that all are there, constantly.
template <typename T, typename Body>
inline void for_each_lanes(int64_t first, int64_t end, const Body& body) {
    int64_t e = first;
    for (; e + kLanes<T> <= end; e += kLanes<T>) body(e, std::true_type());
    if (e < end) body(e, std::false_type());
}

// OUT p (k), of q (k), which lies side by side; factor is padded to whole lanes. Returns whether
// q's values are finite and not negative.
template <bool kSquare, typename T>
bool fill_row(int64_t k, const T* factor, const T* q, T* p) {
    constexpr T kTiny = std::numeric_limits<T>::min();
    Lanes<T> lowest = {}, top = broadcast(kTiny), total = {};
    const auto load_at = [&](const T* from, int64_t e, auto whole) {
        return whole() ? load(from + e) : load_some(from + e, k - e);
    };
    const auto store_at = [&](int64_t e, Lanes<T> lanes, auto whole) {
        if (whole())
            store<T>(p + e, lanes);
        else
            store_some(p + e, lanes, k - e);
    };
    for_each_lanes<T>(0, k, [&](int64_t e, auto whole) {
        const Lanes<T> value = load_at(q, e, whole);
        lowest = min(value, lowest);
        top = max(top, value * load(factor + e));
        total += value;
    });
    T largest = kTiny;
    for (int i = 0; i < kLanes<T>; ++i) largest = largest < top[i] ? top[i] : largest;
    const T inverse_largest = T(1) / largest;
    double sum = 0;
    for (int64_t first = 0; first < k; first += kRunLength * kLanes<T>) {
        Lanes<T> run = {};
        for_each_lanes<T>(
            first, least(k, first + kRunLength * kLanes<T>), [&](int64_t e, auto whole) {
                Lanes<T> weight = load_at(q, e, whole) * load(factor + e) * inverse_largest;
                if constexpr (kSquare) weight *= weight;
                store_at(e, weight, whole);
                run += weight;
            });
        sum += sum_of_doubles<T>(widen<T>(run));
    }
    const T inverse = static_cast<T>(1 / (sum < kTiny ? double(kTiny) : sum));
    for_each_lanes<T>(
        0, k, [&](int64_t e, auto whole) { store_at(e, load_at(p, e, whole) * inverse, whole); });
    return all_zero<T>(total * T(0) + lowest);
}

// IN/OUT sums (kWidth) of n_rows rows of so many numbers one after the other: kLanes rows are
// kWidth vectors, and each lane of these has always the same column.
template <int kWidth, typename T>
void add_narrow_rows(const T* from, int64_t n_rows, double* sums) {
    double lanes[kWidth * kLanes<T>] = {};
    while (n_rows >= kLanes<T>) {
        Lanes<T> run[kWidth] = {};
        for (int64_t l = 0; l < kRunLength && n_rows >= kLanes<T>; ++l, n_rows -= kLanes<T>)
            for (int e = 0; e < kWidth; ++e, from += kLanes<T>) run[e] += load(from);
        for (int e = 0; e < kWidth; ++e) add_widened<T>(lanes + e * kLanes<T>, run[e]);
    }
    for (int i = 0; i < kWidth * kLanes<T>; ++i) sums[i % kWidth] += lanes[i];
    for (int64_t i = 0; i < n_rows * kWidth; ++i) sums[i % kWidth] += from[i];
}

// OUT f (k): the column sums of q.
template <typename T>
void sum_columns(const Targets<T>& call, const Grid& grid, double* f) {
    const Parts parts(grid, call.k, kParts);
    const Buffer<double> sums(parts.count * call.k);
    const double work = double(call.n) * double(call.k);
    for_each_chunk(
        parts.count, useful_threads(call.n_threads, parts.count, work), [&](int64_t part, int) {
            double* const mine = &sums[part * call.k];
            for (int64_t j = 0; j < call.k; ++j) mine[j] = 0;
            const int64_t first = parts.first(part) * grid.block_rows;
            const int64_t end = least(call.n, parts.first(part + 1) * grid.block_rows);
            if (is_narrow(call.q, call.k))
                return with_constant<kNarrow>(static_cast<int>(call.k), [&](auto constant) {
                    add_narrow_rows<constant()>(call.q.row(first), end - first, mine);
                });
            for (int64_t i = first; i < end; ++i) {
                const T* const row = call.q.row(i);
                if (call.q.col_stride == 1)
                    for (int64_t j = 0; j < call.k; ++j) mine[j] += row[j];
                else
                    for (int64_t j = 0; j < call.k; ++j) mine[j] += row[j * call.q.col_stride];
            }
        });
    for (int64_t j = 0; j < call.k; ++j) f[j] = 0;
    for (int64_t part = 0; part < parts.count; ++part) add_numbers(&sums[part * call.k], call.k, f);
}

}  // namespace

template <typename T>
BadRow targets(const Targets<T>& call) {
    const int64_t k = call.k;
    Layout layout;
    const PanelLayout<T> panel(layout, k);
    const Grid grid(call.n, kPoints<T>, round_up<T>(k) * kPoints<T> * int64_t(sizeof(T)));
    const Buffer<double> f(k);
    const Buffer<T> factor(round_up<T>(k));
    for (int64_t j = 0; j < round_up<T>(k); ++j) factor[j] = 0;
    if (call.f == nullptr) sum_columns(call, grid, f.get());
    for (int64_t j = 0; j < k; ++j) {
        const double f_j = call.f == nullptr ? f[j] : call.f[j];
        const double tiny = std::numeric_limits<T>::min();
        factor[j] = static_cast<T>(
            std::sqrt((call.u == nullptr ? 1.0 : call.u[j]) / (f_j < tiny ? tiny : f_j)));
    }
    const bool by_rows = k > kNarrow && call.q.col_stride == 1;
    const auto fill = call.power == 2 ? fill_row<true, T> : fill_row<false, T>;
    return for_each_with_memory<T>(
        grid.n_blocks, layout, 4 * double(call.n) * double(k), call.n_threads, {},
        [&](int64_t block, T* memory) {
            BadRow bad;
            const int64_t begin = block * grid.block_rows, end = begin + grid.rows_of(block);
            for (int64_t i = begin; by_rows && i < end; ++i)
                if (!fill(k, factor.get(), call.q.row(i), call.p + i * k) && call.check)
                    bad.note(first_bad_row(0, call.q, i, 1, k, true));
            for (int64_t at = begin; !by_rows && at < end; at += kPoints<T>) {
                const int64_t n_rows = least(kPoints<T>, end - at);
                T* const p = panel.load(call.q, call.n, at, memory);
                PerPoint<T> inverse;
                if (!fill_target(k, factor.get(), call.power == 2, p, inverse) && call.check)
                    bad.note(first_bad_row(0, call.q, at, n_rows, k, true));
                store_panel(p, inverse, n_rows, k, call.p + at * k);
            }
            return bad;
        });
}

template BadRow targets(const Targets<float>&);
template BadRow targets(const Targets<double>&);

}  // namespace deepclust::DEEPCLUST_ISA
