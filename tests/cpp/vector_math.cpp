// The largest errors of vector_math.h, in units in the last place, of numbers drawn over their
// ranges: a line for each type and function. Its results are held to what the header states.

#include "vector_math.h"

#include <cmath>
#include <cstdio>
#include <random>

using namespace deepclust::DEEPCLUST_ISA;

namespace {

// float is checked in double, double in the 64 bits of a long double.
template <typename T>
using Exact = std::conditional_t<sizeof(T) == 4, double, long double>;

template <typename T, typename Draw, typename Fast, typename True>
void check(const char* type, const char* name, const Draw& draw, const Fast& fast,
           const True& exact) {
    std::mt19937_64 random(0);
    double worst = 0;
    for (int i = 0; i < 400000; ++i) {
        Lanes<T> x;
        for (int lane = 0; lane < kLanes<T>; ++lane) x[lane] = draw(random);
        const Lanes<T> found = fast(x);
        for (int lane = 0; lane < kLanes<T>; ++lane) {
            const Exact<T> expected = exact(Exact<T>(x[lane]));
            const T rounded = std::fabs(T(expected));
            const T unit = std::nextafter(rounded, kInfinity<T>) - rounded;
            const double error = double(std::fabs(found[lane] - expected) / unit);
            worst = error <= worst ? worst : error;  // NaN stays
        }
    }
    std::printf("%s %s %.3f\n", type, name, worst);
}

template <typename T>
void check_all(const char* type) {
    using std::exp, std::log, std::log1p;
    const double least = Format<T>::kSmallestExp;
    const double log_most = 0.685 * Format<T>::kExponentBias;  // normal
    std::uniform_real_distribution<double> below(least, 0), above(0, -least), near(-1, 1),
        decades(-log_most, log_most);
    const auto positive = [&](auto& random) { return T(std::exp(decades(random))); };
    check<T>(
        type, "exp", [&](auto& random) { return T(below(random)); },
        [](Lanes<T> x) { return deepclust::DEEPCLUST_ISA::exp<T>(x); },
        [](auto x) { return exp(x); });
    check<T>(
        type, "exp_above", [&](auto& random) { return T(above(random)); },
        [](Lanes<T> x) { return deepclust::DEEPCLUST_ISA::exp<T>(x); },
        [](auto x) { return exp(x); });
    check<T>(
        type, "log", positive, [](Lanes<T> x) { return deepclust::DEEPCLUST_ISA::log<T>(x); },
        [](auto x) { return log(x); });
    check<T>(
        type, "log_near_1", [&](auto& random) { return T(1 + near(random) / 4); },
        [](Lanes<T> x) { return deepclust::DEEPCLUST_ISA::log<T>(x); },
        [](auto x) { return log(x); });
    check<T>(
        type, "log1p", positive, [](Lanes<T> x) { return deepclust::DEEPCLUST_ISA::log1p<T>(x); },
        [](auto x) { return log1p(x); });
    check<T>(
        type, "inverse", positive,
        [](Lanes<T> x) { return deepclust::DEEPCLUST_ISA::inverse<T>(x); },
        [](auto x) { return 1 / x; });
}

}  // namespace

int main() {
    check_all<float>("float");
    check_all<double>("double");
}
