// With m_i = sum_j p_ij, e_ij = exp(s_ij - max s_i), S_i = sum_j e_ij and q = e / S:
//
//   KL_i  = sum_j p_ij log(p_ij / e_ij) + m_i log S_i        CE_i = the same without p log p
//   ds_ij = m_i q_ij - p_ij                                  then pull_back.h
//
// For nu = 1 the loss value takes the one logarithm there is: p / e = p u / min u, and the gradient
// takes none. From a snapshot, p is made again a panel at a time.
//
// Memory: the head twice over, the snapshot's once; for each thread a block of points and their
// scores, twice with a snapshot; the sums of pull_back.h. Nothing of n k numbers. Reads n d numbers
// (2 n d, or n d + n k) and writes n d; 6 n k d operations (8), 2 without gradients (4).

#include "target_loss.h"

#include <optional>

#include "kernels.h"
#include "pull_back.h"

namespace deepclust::DEEPCLUST_ISA {
namespace {

// A panel of the target: p_ij = value_ij * scale_i, with mass_i its sum over j.
template <typename T>
struct TargetPanel {
    const T* value;  // (k, kPoints)
    PerPoint<T> scale, mass;
};

// A snapshot's head, and how the target's weights are made of its scores.
template <typename T>
struct Snapshot {
    PackedHead<T> head;
    Form form;
    double power;
    const T* bias;
    Buffer<T> gain;  // kRational: exp(bias), around the middle of its range
    ScoredLayout<T> place;

    Snapshot(const TargetLoss<T>& call, const Grid& grid, Layout& layout)
        : head(call.old_head, false, false),
          form(head.form),
          power(call.power),
          bias(call.bias),
          gain(head.k),
          place(layout, head, grid) {
        T low = kInfinity<T>, high = -kInfinity<T>;
        for (int64_t j = 0; j < head.k; ++j) {
            low = bias[j] < low ? bias[j] : low;
            high = bias[j] > high ? bias[j] : high;
        }
        // Powers of u need no logarithm, where they and the gains are far from over- and underflow.
        const bool plain = (power == 1 || power == 2) && high - low < 60;
        if (form == Form::kRational && !plain) form = Form::kStudentT;
        for (int64_t j = 0; j < head.k; ++j)
            gain[j] = form == Form::kRational ? std::exp(bias[j] - (low + high) / 2) : T(0);
    }
};

// IN/OUT t (k, kPoints): a snapshot's products to its p, up to panel.scale.
template <Form kForm, typename T>
void fill_target(const Snapshot<T>& snapshot, const T* sq_norm, T* t, TargetPanel<T>& panel) {
    const PackedHead<T>& head = snapshot.head;
    const bool one_hot = std::isinf(snapshot.power);
    const T power = one_hot ? T(1) : static_cast<T>(snapshot.power);
    PerPoint<T> best, top;
    PerPoint<IntLike<T>> label = {};
    to_keys<kForm, false>(head, sq_norm, t, best, label);
    for (int v = 0; v < kVectors; ++v) {
        best[v] = start_of_logs<kForm>(head, best[v]);
        top[v] = broadcast(-kInfinity<T>);
    }
    if constexpr (kForm != Form::kRational) {
        for (int64_t j = 0; j < head.k; ++j)
            for (int v = 0; v < kVectors; ++v) {
                T* const at = t + j * kPoints<T> + v * kLanes<T>;
                const Lanes<T> logit = log_weight<kForm>(head, load(at), best[v]) * power +
                                       broadcast(snapshot.bias[j]);
                label[v] = top[v] < logit ? broadcast(static_cast<IntLike<T>>(j)) : label[v];
                top[v] = max(top[v], logit);
                store<T>(at, logit);
            }
    }
    PerPoint<T> sum = {};
    for (int64_t first = 0; first < head.k; first += kRunLength) {
        Lanes<T> run[kVectors] = {};
        for (int64_t j = first; j < least(first + kRunLength, head.k); ++j)
            for (int v = 0; v < kVectors; ++v) {
                T* const at = t + j * kPoints<T> + v * kLanes<T>;
                Lanes<T> p;
                if constexpr (kForm == Form::kRational) {
                    p = inverse<T>(u_over_least<T>(load(at), best[v]));
                    p *= power == 2 ? p * snapshot.gain[j] : broadcast(snapshot.gain[j]);
                } else if (one_hot) {
                    p = label[v] == static_cast<IntLike<T>>(j) ? broadcast(T(1)) : Lanes<T>{};
                } else {
                    p = exp<T>(load(at) - top[v]);
                }
                store<T>(at, p);
                run[v] += p;
            }
        for (int v = 0; v < kVectors; ++v) sum[v] += run[v];
    }
    panel.value = t;
    for (int v = 0; v < kVectors; ++v) {
        panel.scale[v] = T(1) / sum[v];
        panel.mass[v] = broadcast(T(1));
    }
}

// A panel of a given target. Returns whether its values are finite and not negative.
template <typename T>
bool read_target(int64_t k, const T* p, TargetPanel<T>& panel) {
    Lanes<T> lowest[kVectors] = {};
    PerPoint<T> mass = {};
    for (int64_t first = 0; first < k; first += kRunLength) {
        Lanes<T> run[kVectors] = {};
        for (int64_t j = first; j < least(first + kRunLength, k); ++j)
            for (int v = 0; v < kVectors; ++v) {
                const Lanes<T> value = load(p + j * kPoints<T> + v * kLanes<T>);
                lowest[v] = min(value, lowest[v]);
                run[v] += value;
            }
        for (int v = 0; v < kVectors; ++v) mass[v] += run[v];
    }
    panel.value = p;
    Lanes<T> zero = {};
    for (int v = 0; v < kVectors; ++v) {
        panel.scale[v] = broadcast(T(1));
        panel.mass[v] = mass[v];
        zero += mass[v] * T(0) + lowest[v];  // `lowest` is never above 0, nor NaN
    }
    return all_zero<T>(zero);
}

// IN/OUT s (k, kPoints): products to weights e. OUT loss: each point's; sum: of its weights;
// inverses (k, kPoints), unless null: 1 / (nu + d2), for kStudentT.
template <Form kForm, bool kKl, typename T>
void add_losses(const PackedHead<T>& head, const TargetPanel<T>& target, const PerPoint<T>& best,
                T* s, T* inverses, PerPoint<T>& sum, PerPoint<T>& loss) {
    const Lanes<T> tiny = broadcast(std::numeric_limits<T>::min());  // 0 log 0 = 0
    Lanes<T> start[kVectors];
    for (int v = 0; v < kVectors; ++v) {
        start[v] = start_of_logs<kForm>(head, best[v]);
        sum[v] = loss[v] = Lanes<T>{};
    }
    for (int64_t first = 0; first < head.k; first += kRunLength) {
        Lanes<T> run[kVectors] = {}, cross[kVectors] = {};
        for (int64_t j = first; j < least(first + kRunLength, head.k); ++j)
            for (int v = 0; v < kVectors; ++v) {
                const int64_t at = j * kPoints<T> + v * kLanes<T>;
                const Lanes<T> key = load(s + at);
                const Lanes<T> p = load(target.value + at) * target.scale[v];
                Lanes<T> e, log_ratio;  // log(p / e), or log(1 / e)
                if constexpr (kForm == Form::kRational) {
                    const Lanes<T> ratio = u_over_least<T>(key, start[v]);
                    e = inverse<T>(ratio);
                    log_ratio = log<T>(max(kKl ? p * ratio : ratio, tiny));
                } else {
                    const Lanes<T> l = log_weight<kForm>(head, key, start[v]);
                    e = exp<T>(l);
                    log_ratio = kKl ? log<T>(max(p, tiny)) - l : -l;
                    if (kForm == Form::kStudentT && inverses != nullptr)
                        store<T>(inverses + at, T(1) / (key + head.nu));
                }
                store<T>(s + at, e);
                run[v] += e;
                cross[v] += p * log_ratio;
            }
        for (int v = 0; v < kVectors; ++v) sum[v] += run[v], loss[v] += cross[v];
    }
    for (int v = 0; v < kVectors; ++v) loss[v] += target.mass[v] * log<T>(sum[v]);
}

// IN/OUT s (k, kPoints): weights to w, the gradients to the products.
template <Form kForm, typename T>
void fill_w(const PackedHead<T>& head, const TargetPanel<T>& target, const PerPoint<T>& best,
            const PerPoint<T>& sum, T scale, const T* inverses, T* s) {
    Lanes<T> to_q[kVectors], to_inverse[kVectors];
    for (int v = 0; v < kVectors; ++v) {
        to_q[v] = target.mass[v] / sum[v];
        to_inverse[v] = inverse<T>(best[v]);  // kRational: 1 / u = e / min u
    }
    for (int64_t j = 0; j < head.k; ++j)
        for (int v = 0; v < kVectors; ++v) {
            const int64_t at = j * kPoints<T> + v * kLanes<T>;
            const Lanes<T> e = load(s + at);
            const Lanes<T> p = load(target.value + at) * target.scale[v];
            Lanes<T> factor = {};
            if constexpr (kForm == Form::kRational) factor = e * to_inverse[v];
            if constexpr (kForm == Form::kStudentT) factor = load(inverses + at);
            store<T>(s + at, to_product<kForm>(head, (e * to_q[v] - p) * scale, factor));
        }
}

template <Form kForm, typename T>
void losses_of_panel(const PackedHead<T>& head, const TargetLoss<T>& call,
                     const TargetPanel<T>& target, const T* sq_norm, T* s, T* inverses,
                     PerPoint<T>& loss) {
    PerPoint<T> best, sum;
    PerPoint<IntLike<T>> label;
    to_keys<kForm, false>(head, sq_norm, s, best, label);
    if (call.kl)
        add_losses<kForm, true>(head, target, best, s, inverses, sum, loss);
    else
        add_losses<kForm, false>(head, target, best, s, inverses, sum, loss);
    if (call.dparams[0] != nullptr)
        fill_w<kForm>(head, target, best, sum, static_cast<T>(call.scale), inverses, s);
}

}  // namespace

template <typename T>
BadRow target_loss(const TargetLoss<T>& call) {
    const bool given = call.given, needs_grad = call.dparams[0] != nullptr;
    const PackedHead<T> head(call.head, needs_grad, call.check);
    const Grid grid = grid_for(head, call.n);
    Layout layout;
    const PanelLayout<T> p(layout, given ? head.k : 0);
    std::optional<Snapshot<T>> snapshot;
    if (!given) snapshot.emplace(call, grid, layout);
    const bool keeps = needs_grad && head.form == Form::kStudentT;
    const int64_t inverses = layout.add(keeps ? head.scores_size() : 0);
    const Buffer<double> losses(grid.n_blocks);  // added up in order at the end

    const auto fill = [&](int64_t block, const Scored<T>& scored, T* memory) {
        const int64_t first = block * grid.block_rows, n_rows = grid.rows_of(block);
        BadRow bad = score_block(head, call.z, call.n, first, n_rows, scored, call.check);
        Scored<T> old{};
        if (!given) {
            old = snapshot->place.at(memory);
            score_block(snapshot->head, call.old_z, call.n, first, n_rows, old, false);
        }
        DoubleLanes<T> losses_of_block = {};
        for (int64_t at = 0; at < n_rows; at += kPoints<T>) {
            const int64_t width = least(kPoints<T>, n_rows - at), panel = at / kPoints<T>;
            TargetPanel<T> target;
            if (given) {
                const bool good =
                    read_target(head.k, p.load(call.p, call.n, first + at, memory), target);
                if (call.check && !good)
                    bad.note(first_bad_row(kTarget, call.p, first + at, width, head.k, true));
            } else {
                T* const t = old.s + panel * snapshot->head.scores_size();
                with_form(snapshot->form, [&](auto form) {
                    fill_target<form()>(*snapshot, old.sq_norms + at, t, target);
                });
            }
            PerPoint<T> loss;
            T* const s = scored.s + panel * head.scores_size();
            with_form(head.form, [&](auto form) {
                losses_of_panel<form()>(head, call, target, scored.sq_norms + at, s,
                                        keeps ? memory + inverses : nullptr, loss);
            });
            clear_absent<T>(width, loss);
            for (int v = 0; v < kVectors; ++v) losses_of_block += widen<T>(loss[v]);
        }
        losses[block] = sum_of_doubles<T>(losses_of_block);
        return bad;
    };

    const double work = work_of(head, call.n);
    BadRow bad;
    if (needs_grad) {
        bad = pull_back(head, call.head, grid, layout, 4 * work, call.n_threads, call.dz,
                        call.dparams, fill);
    } else {
        const ScoredLayout<T> place(layout, head, grid);
        bad = for_each_with_memory<T>(
            grid.n_blocks, layout, 2 * work, call.n_threads, head.bad,
            [&](int64_t block, T* memory) { return fill(block, place.at(memory), memory); });
    }
    double loss = 0;
    for (int64_t block = 0; block < grid.n_blocks; ++block) loss += losses[block];
    *call.loss = static_cast<T>(loss * call.scale);
    return bad;
}

template BadRow target_loss(const TargetLoss<float>&);
template BadRow target_loss(const TargetLoss<double>&);

}  // namespace deepclust::DEEPCLUST_ISA
