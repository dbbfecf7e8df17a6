// deepclust._C: addresses, strides and a type's name in; no torch, no NumPy. The Python side checks
// shapes and types, keeps the arrays alive during a call, and passes torch's thread count.
//
// A matrix comes as (address, row stride, column stride), strides counting elements; a vector, or
// a matrix whose numbers lie side by side, as its address, 0 where there is none. A head comes as
// (kind, nu, k, d, addresses of its parameters). What comes back is None, or (input, row) of the
// first row that was refused: matrix.h numbers the inputs.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels.h"
#include "memory.h"

namespace py = pybind11;
using namespace deepclust;

namespace {

using Address = uintptr_t;
using MatrixArgument = std::tuple<Address, int64_t, int64_t>;
using HeadArgument = std::tuple<std::string, double, int64_t, int64_t, std::vector<Address>>;

template <typename T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

// Where a result of `count` numbers goes.
template <typename T>
T* result(Address address, int64_t count) {
    T* const data = pointer<T>(address);
    if (data != nullptr) ask_for_huge_pages(data, static_cast<size_t>(count) * sizeof(T));
    return data;
}

template <typename T>
Matrix<T> matrix(const MatrixArgument& argument) {
    return {pointer<const T>(std::get<0>(argument)), std::get<1>(argument), std::get<2>(argument)};
}

void check_at_least(const char* name, int64_t value, int64_t least) {
    if (value < least)
        throw std::invalid_argument(std::string(name) + ": got " + std::to_string(value) +
                                    ", takes " + std::to_string(least) + " or more");
}

void check_sizes(int64_t n, int64_t d, int64_t k, int n_threads) {
    check_at_least("n", n, 0);
    check_at_least("d", d, 1);
    check_at_least("k", k, 1);
    check_at_least("n_threads", n_threads, 1);
    if (k > std::numeric_limits<int32_t>::max())  // a label has to fit a float's lane
        throw std::invalid_argument("k: got " + std::to_string(k) + ", takes less than 2^31");
}

template <typename T>
Head<T> head(const HeadArgument& argument) {
    const auto& [kind, nu, k, d, params] = argument;
    Head<T> made{HeadKind::kStudentT, static_cast<T>(nu), k, d, {}};
    if (kind == "linear")
        made.kind = HeadKind::kLinear;
    else if (kind == "gaussian")
        made.kind = HeadKind::kGaussian;
    else if (kind != "student_t")
        throw std::invalid_argument("head: got '" + kind +
                                    "', takes 'student_t', 'linear' or 'gaussian'");
    for (size_t i = 0; i < params.size() && i < 3; ++i)
        made.params[i] = pointer<const T>(params[i]);
    return made;
}

template <typename T>
void set_gradients(const std::vector<Address>& from, T* (&to)[3]) {
    for (size_t i = 0; i < 3; ++i) to[i] = i < from.size() ? pointer<T>(from[i]) : nullptr;
}

// Calls run(kernels) for the type of that name, without the interpreter's lock.
template <typename Run>
py::object call(const std::string& dtype, const Run& run) {
    const InstructionSet& isa = instruction_set();
    BadRow bad;
    if (dtype != "float32" && dtype != "float64")
        throw std::invalid_argument("dtype: got '" + dtype + "', takes 'float32' or 'float64'");
    {
        py::gil_scoped_release release;
        bad = dtype == "float32" ? run(isa.float32) : run(isa.float64);
    }
    if (bad.input < 0) return py::none();
    return py::make_tuple(bad.input, bad.row);
}

template <typename T>
T type_of(const Kernels<T>&);

py::object assign_forward(const MatrixArgument& z, int64_t n, const HeadArgument& h,
                          const std::string& dtype, Address q, int n_threads, bool check) {
    check_sizes(n, std::get<3>(h), std::get<2>(h), n_threads);
    return call(dtype, [&](const auto& kernels) {
        using T = decltype(type_of(kernels));
        return kernels.assign_forward(
            {matrix<T>(z), n, head<T>(h), result<T>(q, n * std::get<2>(h)), n_threads, check});
    });
}

py::object assign_backward(const MatrixArgument& dq, const MatrixArgument& q,
                           const MatrixArgument& z, int64_t n, const HeadArgument& h,
                           const std::string& dtype, Address dz,
                           const std::vector<Address>& dparams, int n_threads) {
    check_sizes(n, std::get<3>(h), std::get<2>(h), n_threads);
    return call(dtype, [&](const auto& kernels) {
        using T = decltype(type_of(kernels));
        AssignBackward<T> job{matrix<T>(dq),
                              matrix<T>(q),
                              matrix<T>(z),
                              n,
                              head<T>(h),
                              result<T>(dz, n * std::get<3>(h)),
                              {},
                              n_threads};
        set_gradients(dparams, job.dparams);
        return kernels.assign_backward(job);
    });
}

py::object frequencies(const MatrixArgument& z, int64_t n, const HeadArgument& h,
                       const std::string& dtype, Address previous, Address f, Address labels,
                       Address n_changed, int n_threads, bool check) {
    check_sizes(n, std::get<3>(h), std::get<2>(h), n_threads);
    return call(dtype, [&](const auto& kernels) {
        using T = decltype(type_of(kernels));
        return kernels.frequencies({matrix<T>(z), n, head<T>(h), pointer<const int64_t>(previous),
                                    pointer<double>(f), result<int64_t>(labels, n),
                                    pointer<int64_t>(n_changed), n_threads, check});
    });
}

py::object targets(const MatrixArgument& q, int64_t n, int64_t k, const std::string& dtype,
                   Address f, Address u, double power, Address p, int n_threads, bool check) {
    check_sizes(n, 1, k, n_threads);
    if (power != 1 && power != 2)
        throw std::invalid_argument("power: got " + std::to_string(power) + ", takes 1 or 2");
    return call(dtype, [&](const auto& kernels) {
        using T = decltype(type_of(kernels));
        return kernels.targets({matrix<T>(q), n, k, pointer<const double>(f),
                                pointer<const double>(u), power, result<T>(p, n * k), n_threads,
                                check});
    });
}

// target: (matrix,) of p, or (matrix of z, head, address of the bias, power) of a snapshot.
py::object target_loss(const MatrixArgument& z, int64_t n, const HeadArgument& h,
                       const py::tuple& target, bool kl, double scale, const std::string& dtype,
                       Address loss, Address dz, const std::vector<Address>& dparams, int n_threads,
                       bool check) {
    check_sizes(n, std::get<3>(h), std::get<2>(h), n_threads);
    const bool given = target.size() == 1;
    const auto target_matrix = target[0].cast<MatrixArgument>();
    const HeadArgument old_head = given ? h : target[1].cast<HeadArgument>();
    const Address bias = given ? 0 : target[2].cast<Address>();
    const double power = given ? 1 : target[3].cast<double>();
    return call(dtype, [&](const auto& kernels) {
        using T = decltype(type_of(kernels));
        const Matrix<T> of_target = matrix<T>(target_matrix);
        TargetLoss<T> job{matrix<T>(z),
                          n,
                          head<T>(h),
                          given ? of_target : Matrix<T>{},
                          given ? Matrix<T>{} : of_target,
                          head<T>(old_head),
                          pointer<const T>(bias),
                          power,
                          given,
                          kl,
                          scale,
                          pointer<T>(loss),
                          result<T>(dz, n * std::get<3>(h)),
                          {},
                          n_threads,
                          check};
        set_gradients(dparams, job.dparams);
        return kernels.target_loss(job);
    });
}

py::object kmeans_assign(const MatrixArgument& x, const MatrixArgument& mu, int64_t n, int64_t d,
                         int64_t k, const std::string& dtype, Address labels, Address sq_dist,
                         Address weight, Address before, Address sums, Address counts,
                         int n_threads, bool check) {
    check_sizes(n, d, k, n_threads);
    return call(dtype, [&](const auto& kernels) {
        using T = decltype(type_of(kernels));
        return kernels.kmeans_assign(
            {matrix<T>(x), matrix<T>(mu), n, d, k, result<int64_t>(labels, n),
             result<T>(sq_dist, n), pointer<const T>(weight), pointer<double>(sums),
             pointer<double>(counts), n_threads, check, nullptr, pointer<const int64_t>(before)});
    });
}

double kmeans_batch(const MatrixArgument& x, Address rows, const MatrixArgument& mu, int64_t n,
                    int64_t d, int64_t k, const std::string& dtype, Address weight, Address counts,
                    Address new_mu, Address new_counts, int n_threads) {
    check_sizes(n, d, k, n_threads);
    double inertia = 0;
    call(dtype, [&](const auto& kernels) {
        using T = decltype(type_of(kernels));
        return kernels.kmeans_batch({matrix<T>(x), pointer<const int64_t>(rows), matrix<T>(mu), n,
                                     d, k, pointer<const T>(weight), pointer<const double>(counts),
                                     pointer<T>(new_mu), pointer<double>(new_counts), &inertia,
                                     n_threads});
    });
    return inertia;
}

py::object kmeans_candidates(const MatrixArgument& x, const MatrixArgument& candidates, int64_t n,
                             int64_t d, int64_t k, const std::string& dtype, Address nearest,
                             Address weight, Address sq_dist, Address potentials, int n_threads,
                             bool check) {
    check_sizes(n, d, k, n_threads);
    return call(dtype, [&](const auto& kernels) {
        using T = decltype(type_of(kernels));
        return kernels.kmeans_candidates({matrix<T>(x), matrix<T>(candidates), n, d, k,
                                          pointer<const T>(nearest), pointer<const T>(weight),
                                          result<T>(sq_dist, k * n), pointer<double>(potentials),
                                          n_threads, check});
    });
}

py::object kmeans_update(const MatrixArgument& x, int64_t n, int64_t d, int64_t k,
                         const std::string& dtype, Address labels, Address before, Address weight,
                         Address sums, Address counts, int n_threads, bool check) {
    check_sizes(n, d, k, n_threads);
    return call(dtype, [&](const auto& kernels) {
        using T = decltype(type_of(kernels));
        return kernels.kmeans_update({matrix<T>(x), n, d, k, pointer<const int64_t>(labels),
                                      pointer<const T>(weight), pointer<double>(sums),
                                      pointer<double>(counts), n_threads, check,
                                      pointer<const int64_t>(before)});
    });
}

py::object kmeans_loss(const MatrixArgument& z, const MatrixArgument& mu, int64_t n, int64_t d,
                       int64_t k, const std::string& dtype, Address labels, double scale,
                       Address loss, Address dz, Address dmu, int n_threads, bool check) {
    check_sizes(n, d, k, n_threads);
    return call(dtype, [&](const auto& kernels) {
        using T = decltype(type_of(kernels));
        return kernels.kmeans_loss({matrix<T>(z), matrix<T>(mu), n, d, k,
                                    pointer<const int64_t>(labels), scale, pointer<T>(loss),
                                    result<T>(dz, n * d), pointer<T>(dmu), n_threads, check});
    });
}

py::object kmeans_step(const MatrixArgument& x, const MatrixArgument& mu, int64_t n, int64_t d,
                       int64_t k, const std::string& dtype, Address moved, Address labels,
                       Address upper, Address lower, Address sq_dist, int n_threads) {
    check_sizes(n, d, k, n_threads);
    return call(dtype, [&](const auto& kernels) {
        using T = decltype(type_of(kernels));
        return kernels.kmeans_step({matrix<T>(x), matrix<T>(mu), n, d, k, pointer<const T>(moved),
                                    pointer<int64_t>(labels), pointer<T>(upper), pointer<T>(lower),
                                    result<T>(sq_dist, n), n_threads});
    });
}

// n_open, scatter.
std::pair<int64_t, double> kmeans_round(const MatrixArgument& x, const MatrixArgument& mu,
                                        int64_t n, int64_t d, int64_t k, const std::string& dtype,
                                        Address rounded, Address labels, Address sums,
                                        Address counts, int n_threads) {
    check_sizes(n, d, k, n_threads);
    int64_t n_open = 0;
    double scatter = 0;
    call(dtype, [&](const auto& kernels) {
        using T = decltype(type_of(kernels));
        return kernels.kmeans_round({matrix<T>(x), matrix<T>(mu), n, d, k,
                                     result<char>(rounded, kernels.kmeans_rounded_bytes(n, d)),
                                     result<int64_t>(labels, n), pointer<double>(sums),
                                     pointer<double>(counts), &n_open, &scatter, n_threads});
    });
    return {n_open, scatter};
}

// n_open.
int64_t kmeans_rounded(Address rounded, const MatrixArgument& x, const MatrixArgument& mu,
                       int64_t n, int64_t d, int64_t k, const std::string& dtype, Address labels,
                       Address sq_dist, Address before, Address sums, Address counts,
                       int n_threads) {
    check_sizes(n, d, k, n_threads);
    int64_t n_open = 0;
    call(dtype, [&](const auto& kernels) {
        using T = decltype(type_of(kernels));
        return kernels.kmeans_rounded({pointer<const void>(rounded), matrix<T>(x), matrix<T>(mu), n,
                                       d, k, result<int64_t>(labels, n), result<T>(sq_dist, n),
                                       pointer<const int64_t>(before), pointer<double>(sums),
                                       pointer<double>(counts), &n_open, n_threads});
    });
    return n_open;
}

int64_t kmeans_rounded_bytes(int64_t n, int64_t d, const std::string& dtype) {
    check_sizes(n, d, 1, 1);
    const InstructionSet& isa = instruction_set();
    return dtype == "float32" ? isa.float32.kmeans_rounded_bytes(n, d)
                              : isa.float64.kmeans_rounded_bytes(n, d);
}

int64_t kmeans_step_groups(int64_t d, int64_t k, const std::string& dtype) {
    check_sizes(0, d, k, 1);
    const InstructionSet& isa = instruction_set();
    return dtype == "float32" ? isa.float32.kmeans_step_groups(d, k)
                              : isa.float64.kmeans_step_groups(d, k);
}

void adam(Address weight, Address first, Address second, Address gradient, Address copy, int64_t n,
          double step_size, double beta1, double beta2, double root_correction, double eps,
          int n_threads) {
    check_sizes(n, 1, 1, n_threads);
    py::gil_scoped_release release;
    instruction_set().adam({pointer<float>(weight), pointer<float>(first), pointer<float>(second),
                            pointer<const uint16_t>(gradient), pointer<uint16_t>(copy), n,
                            step_size, beta1, beta2, root_correction, eps, n_threads});
}

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
    m.doc() = "Compiled kernels of deepclust";
    instruction_set();  // a wrong DEEPCLUST_ISA is refused here
    m.def("isa", [] { return instruction_set_name(); });
    m.def("assign_forward", &assign_forward);
    m.def("assign_backward", &assign_backward);
    m.def("frequencies", &frequencies);
    m.def("targets", &targets);
    m.def("target_loss", &target_loss);
    m.def("kmeans_assign", &kmeans_assign);
    m.def("kmeans_round", &kmeans_round);
    m.def("kmeans_rounded", &kmeans_rounded);
    m.def("kmeans_rounded_bytes", &kmeans_rounded_bytes);
    m.def("kmeans_batch", &kmeans_batch);
    m.def("kmeans_candidates", &kmeans_candidates);
    m.def("kmeans_update", &kmeans_update);
    m.def("kmeans_loss", &kmeans_loss);
    m.def("kmeans_step", &kmeans_step);
    m.def("kmeans_step_groups", &kmeans_step_groups);
    m.def("adam", &adam);
}
