// deepclust._C: addresses, strides and a type's name in; no torch, no NumPy. The Python side checks
// shapes, keeps the arrays alive during a call, and passes torch's thread count.

#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "kmeans_assign.h"

namespace py = pybind11;
using namespace deepclust;

namespace {

using Strides = std::pair<int64_t, int64_t>;

template <typename T>
Matrix<T> matrix(uintptr_t address, Strides strides) {
    return {reinterpret_cast<const T*>(address), strides.first, strides.second};
}

void check_at_least(const char* name, int64_t value, int64_t least) {
    if (value < least)
        throw std::invalid_argument(std::string(name) + ": got " + std::to_string(value) +
                                    ", takes " + std::to_string(least) + " or more");
}

int64_t py_kmeans_assign(uintptr_t x, Strides x_strides, uintptr_t c, Strides c_strides, int64_t n,
                         int64_t d, int64_t k, const std::string& dtype, uintptr_t labels,
                         uintptr_t sq_dist, int n_threads, bool check) {
    check_at_least("n", n, 0);
    check_at_least("d", d, 1);
    check_at_least("k", k, 1);
    check_at_least("n_threads", n_threads, 1);
    if (k > std::numeric_limits<int32_t>::max())  // a label has to fit a float's lane
        throw std::invalid_argument("k: got " + std::to_string(k) + ", takes less than 2^31");

    const auto run = [&](auto type) {
        using T = decltype(type);
        py::gil_scoped_release release;
        return kmeans_assign(matrix<T>(x, x_strides), matrix<T>(c, c_strides), n, d, k,
                             reinterpret_cast<int64_t*>(labels), reinterpret_cast<T*>(sq_dist),
                             n_threads, check);
    };
    if (dtype == "float32") return run(float());
    if (dtype == "float64") return run(double());
    throw std::invalid_argument("dtype: got '" + dtype + "', takes 'float32' or 'float64'");
}

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
    m.doc() = "Compiled kernels of deepclust";
    m.def("isa", [] { return "baseline"; });
    m.def("kmeans_assign", &py_kmeans_assign, py::arg("x_ptr"), py::arg("x_strides"),
          py::arg("c_ptr"), py::arg("c_strides"), py::arg("n"), py::arg("d"), py::arg("k"),
          py::arg("dtype"), py::arg("labels_ptr"), py::arg("sq_dist_ptr"), py::arg("n_threads"),
          py::arg("check"));
}
