// What the drivers share: numbers as inputs, and each primitive as a call that owns its outputs.
//
// No Python and no torch: thread sanitizer and valgrind see the kernels and nothing else.

#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"

// In the place of csrc/dispatch.cpp, which asks the processor.
bool deepclust::multiplies_pairs_at_once() {
    return false;
}

namespace deepclust {

// The same numbers on every machine, in [-2, 2); the standard's distributions are not.
class Numbers {
  public:
    explicit Numbers(uint64_t seed) : state_(seed) {}
    uint64_t next() {  // splitmix64
        uint64_t z = state_ += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }
    double real() { return double(next() >> 11) / double(1ull << 53) * 4 - 2; }

  private:
    uint64_t state_;
};

template <typename T>
std::vector<T> numbers(int64_t size, uint64_t seed) {
    Numbers from(seed);
    std::vector<T> made(static_cast<size_t>(size));
    for (T& value : made) value = static_cast<T>(from.real());
    return made;
}

// Inputs and outputs of all primitives at one size.
template <typename T>
class Job {
  public:
    Job(const Kernels<T>& kernels, int64_t n, int64_t d, int64_t k, HeadKind kind, T nu)
        : kernels_(kernels), n_(n), d_(d), k_(k), kind_(kind), nu_(nu) {
        z_ = numbers<T>(n * d, 1);
        old_z_ = numbers<T>(n * d, 2);
        for (int i = 0; i < 3; ++i) params_[i] = numbers<T>(i < 2 ? k * d : k, uint64_t(i + 3));
        if (kind == HeadKind::kLinear) params_[1].resize(size_t(k));
        p_ = numbers<T>(n * k, 6);
        for (T& value : p_) value = (value + 2) / T(2 * k);
        dq_ = numbers<T>(n * k, 7);
        Numbers from(8);
        for (int64_t i = 0; i < n; ++i) labels_.push_back(int64_t(from.next() % uint64_t(k)));
        for (int64_t i = 0; i < n; ++i) rows_.push_back(int64_t(from.next() % uint64_t(n)));
        before_ = labels_;
        for (int64_t i = 0; i < n; i += 3) before_[size_t(i)] = (labels_[size_t(i)] + 1) % k;
        bias_ = numbers<T>(k, 9);
        q_.resize(size_t(n * k));
        dz_.resize(size_t(n * d));
        for (int i = 0; i < 3; ++i) dparams_[i].resize(size_t(k * d));
        found_.resize(size_t(n));
        sq_dist_.resize(size_t(n));
        f_.resize(size_t(k));
        upper_.resize(size_t(n));
        lower_.resize(size_t(n * kernels.kmeans_step_groups(d, k)));
        moved_.resize(size_t(k));
        sums_.resize(size_t(k * d));
        counts_.resize(size_t(k));
    }

    static const std::vector<std::string>& names() {
        static const std::vector<std::string> all = {
            "assign_forward",     "assign_backward",   "frequencies",          "targets",
            "target_loss",        "target_loss_value", "target_loss_snapshot", "kmeans_assign",
            "kmeans_assign_sums", "kmeans_batch",      "kmeans_round",         "kmeans_rounded",
            "kmeans_candidates",  "kmeans_update",     "kmeans_changes",       "kmeans_loss",
            "kmeans_step",        "kmeans_step_again"};
        return all;
    }

    void run(const std::string& name, int threads) {
        const Matrix<T> z{z_.data(), d_, 1}, old_z{old_z_.data(), d_, 1}, p{p_.data(), k_, 1};
        const Matrix<T> mu{params_[0].data(), d_, 1}, dq{dq_.data(), k_, 1};
        const Head<T> head{
            kind_, nu_, k_, d_, {params_[0].data(), params_[1].data(), params_[2].data()}};
        T* const dparams[3] = {dparams_[0].data(), dparams_[1].data(), dparams_[2].data()};
        const auto target_loss = [&](bool given, bool needs_grad) {
            TargetLoss<T> call{};
            call.z = z, call.n = n_, call.head = head, call.p = p, call.old_z = old_z;
            call.old_head = head, call.bias = bias_.data(), call.power = 2, call.given = given;
            call.kl = true, call.scale = 1.0 / double(n_), call.loss = &loss_;
            call.dz = needs_grad ? dz_.data() : nullptr;
            for (int i = 0; i < 3; ++i) call.dparams[i] = needs_grad ? dparams[i] : nullptr;
            call.n_threads = threads, call.check = true;
            kernels_.target_loss(call);
        };
        if (name == "assign_forward")
            kernels_.assign_forward({z, n_, head, q_.data(), threads, true});
        else if (name == "assign_backward")
            kernels_.assign_backward(
                {dq, p, z, n_, head, dz_.data(), {dparams[0], dparams[1], dparams[2]}, threads});
        else if (name == "frequencies")
            kernels_.frequencies({z, n_, head, labels_.data(), f_.data(), found_.data(),
                                  &n_changed_, threads, true});
        else if (name == "targets")
            kernels_.targets({p, n_, k_, nullptr, nullptr, 2.0, q_.data(), threads, true});
        else if (name == "target_loss")
            target_loss(true, true);
        else if (name == "target_loss_value")
            target_loss(true, false);
        else if (name == "target_loss_snapshot")
            target_loss(false, true);
        else if (name == "kmeans_assign")
            kernels_.kmeans_assign({z, mu, n_, d_, k_, found_.data(), sq_dist_.data(), nullptr,
                                    nullptr, nullptr, threads, true});
        else if (name == "kmeans_assign_sums")
            kernels_.kmeans_assign({z, mu, n_, d_, k_, found_.data(), sq_dist_.data(), nullptr,
                                    sums_.data(), counts_.data(), threads, true});
        else if (name == "kmeans_round") {
            rounded_.resize(size_t(kernels_.kmeans_rounded_bytes(n_, d_)) / sizeof(double) + 1);
            kernels_.kmeans_round({z, mu, n_, d_, k_, rounded_.data(), found_.data(), sums_.data(),
                                   counts_.data(), &n_changed_, &inertia_, threads});
        } else if (name == "kmeans_rounded")  // after kmeans_round
            kernels_.kmeans_rounded({rounded_.data(), z, mu, n_, d_, k_, found_.data(), nullptr,
                                     nullptr, nullptr, nullptr, &n_changed_, threads});
        else if (name == "kmeans_batch")
            kernels_.kmeans_batch({z, rows_.data(), mu, n_, d_, k_, nullptr, f_.data(), dparams[0],
                                   counts_.data(), &inertia_, threads});
        else if (name == "kmeans_candidates")  // of which these are very many
            kernels_.kmeans_candidates(
                {z, mu, n_, d_, k_, z_.data(), nullptr, q_.data(), counts_.data(), threads, true});
        else if (name == "kmeans_update")
            kernels_.kmeans_update({z, n_, d_, k_, labels_.data(), nullptr, sums_.data(),
                                    counts_.data(), threads, true});
        else if (name == "kmeans_changes")
            kernels_.kmeans_update({z, n_, d_, k_, labels_.data(), nullptr, sums_.data(),
                                    counts_.data(), threads, true, before_.data()});
        else if (name == "kmeans_loss")
            kernels_.kmeans_loss({z, mu, n_, d_, k_, labels_.data(), 1.0, &loss_, dz_.data(),
                                  dparams[0], threads, true});
        else if (name == "kmeans_step") {  // nothing is known: all is computed
            for (T& bound : upper_) bound = std::numeric_limits<T>::infinity();
            for (T& bound : lower_) bound = 0;
            found_ = labels_;
            step(z, mu, threads);
        } else if (name == "kmeans_step_again")  // where nothing moved
            step(z, mu, threads);
    }

    // All outputs, to be compared.
    std::vector<double> outputs() const {
        std::vector<double> all = {double(loss_), inertia_, double(n_changed_)};
        const auto add = [&](const auto& from) { all.insert(all.end(), from.begin(), from.end()); };
        add(q_), add(dz_), add(found_), add(sq_dist_), add(upper_), add(lower_), add(f_),
            add(sums_), add(counts_);
        for (const auto& values : dparams_) add(values);
        return all;
    }

  private:
    void step(Matrix<T> z, Matrix<T> mu, int threads) {
        kernels_.kmeans_step({z, mu, n_, d_, k_, moved_.data(), found_.data(), upper_.data(),
                              lower_.data(), nullptr, threads});
    }

    const Kernels<T>& kernels_;
    int64_t n_, d_, k_;
    HeadKind kind_;
    T nu_;
    std::vector<T> z_, old_z_, params_[3], p_, dq_, bias_;
    std::vector<int64_t> labels_, before_, rows_;
    std::vector<T> q_, dz_, dparams_[3], sq_dist_, upper_, lower_, moved_;
    std::vector<int64_t> found_;
    std::vector<double> f_, sums_, counts_, rounded_;
    int64_t n_changed_ = 0;
    T loss_ = 0;
    double inertia_ = 0;
};

}  // namespace deepclust
