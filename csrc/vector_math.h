// exp, log and log1p, lane by lane, in float and double: at most 2 units in the last place.
//
// The polynomials have the least largest relative error of the function over the reduced range
// (Remez): 2^-28 (exp) and 2^-27 (log) in float, 2^-57 and 2^-59 in double. Constants are written
// with the digits that pin the double down.

#pragma once

#include "lanes.h"

namespace deepclust::DEEPCLUST_ISA {

template <typename T>
struct Format;

template <>
struct Format<float> {
    static constexpr int kMantissaBits = 23;
    static constexpr int32_t kOne = 0x3f800000;       // the bits of 1
    static constexpr int32_t kRootHalf = 0x3f3504f3;  // of sqrt(1/2)
    static constexpr int32_t kTwo23 = 0x4b000000;     // of 2^23, whose unit in the last place is 1
    static constexpr float kTwo23Value = 8388608.0f;
    static constexpr int kExponentBias = 127;
    static constexpr float kLn2High = 0x1.62e4p-1f;    // few bits, so that an exponent times it is
    static constexpr float kLn2Low = 0x1.7f7d1cp-20f;  // exact; the rest of ln 2
    static constexpr float kSmallestExp = -87.3f;      // below it exp is 0 here: no subnormals
    static constexpr float kExp[] = {0.499999934123f, 0.166665201082f, 0.0416683942625f,
                                     0.00836878038195f, 0.00138144639022f};
    static constexpr float kLog[] = {0.333333317053f,  -0.250008216036f, 0.200012277633f,
                                     -0.166233361626f, 0.142017193734f,  -0.131603641101f,
                                     0.127619602048f,  -0.0763448412744f};
};

template <>
struct Format<double> {
    static constexpr int kMantissaBits = 52;
    static constexpr int64_t kOne = 0x3ff0000000000000;
    static constexpr int64_t kRootHalf = 0x3fe6a09e667f3bcd;
    static constexpr int64_t kTwo23 = 0x4330000000000000;  // 2^52 here
    static constexpr double kTwo23Value = 4503599627370496.0;
    static constexpr int kExponentBias = 1023;
    static constexpr double kLn2High = 0x1.62e42fee00000p-1;
    static constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
    static constexpr double kSmallestExp = -708.3;
    static constexpr double kExp[] = {0.50000000000000107208,   0.16666666666666410233,
                                      0.041666666666529189844,  0.0083333333334956263881,
                                      0.0013888888943922354769, 0.00019841269504757020286,
                                      0.000024801492763043504,  2.7557587351527630271e-6,
                                      2.7630378547659283141e-7, 2.4999961934860687713e-8};
    static constexpr double kLog[] = {
        0.33333333333333452495,   -0.24999999999998918514,  0.19999999999946060735,
        -0.16666666666914832059,  0.14285714293851391017,   -0.12499999981986986441,
        0.11111110515389589941,   -0.10000000384187671286,  0.090909335294638502352,
        -0.08333345757087303404,  0.076917139764182188486,  -0.071419996672232527798,
        0.066751541983601062489,  -0.062698105055235326246, 0.058177433893965917561,
        -0.053266927200072043068, 0.054160498794969322241,  -0.062753494940781653532,
        0.056969671253474924211,  -0.024274803431467904398};
};

// 1 / x for normal x whose inverse is normal, to a unit in the last place; of 1, exactly 1.
//
// A division of 16 floats holds the divider for 16 cycles, as long as 32 multiply-adds.
template <typename T>
inline Lanes<T> inverse(Lanes<T> x) {
#ifdef __AVX512F__
    if constexpr (std::is_same_v<T, float>) {
        const auto guess = bits_as<Lanes<T>>(_mm512_rcp14_ps(bits_as<__m512>(x)));  // to 2^-14
        return guess + guess * (T(1) - x * guess);                                  // Newton
    }
#endif
    return T(1) / x;
}

// sum_i coefficients[i] x^i, given x^2: even and odd powers side by side, half as long a chain.
template <typename T, int kTerms>
inline Lanes<T> polynomial(const T (&coefficients)[kTerms], Lanes<T> x, Lanes<T> square) {
    Lanes<T> sums[2] = {broadcast(coefficients[kTerms - 2 + kTerms % 2]),
                        broadcast(coefficients[kTerms - 1 - kTerms % 2])};
    for (int i = kTerms - 3; i >= 0; --i)
        sums[i % 2] = sums[i % 2] * square + broadcast(coefficients[i]);
    return sums[1] * x + sums[0];
}

// e^x for x <= 88 (709 in double); 0 below -87.3 (-708.3), where e^x would be subnormal.
template <typename T>
inline Lanes<T> exp(Lanes<T> x) {
    using F = Format<T>;
    const Lanes<T> reduced = max(x, broadcast(F::kSmallestExp));
    // x = n ln 2 + r: adding this rounds n to an integer and leaves it in the lowest bits.
    const Lanes<T> shifter = broadcast(T(1.5) * F::kTwo23Value);
    const Lanes<T> shifted = reduced * broadcast(T(1.44269504088896340736)) + shifter;
    const Lanes<T> n = shifted - shifter;
    const Lanes<T> r = (reduced - n * broadcast(F::kLn2High)) - n * broadcast(F::kLn2Low);
    const Lanes<T> square = r * r;
    const Lanes<T> mantissa = square * polynomial<T>(F::kExp, r, square) + r + broadcast(T(1));
    const auto power = (bits_as<IntLanes<T>>(shifted) << F::kMantissaBits) + F::kOne;  // 2^n
    const Lanes<T> result = mantissa * bits_as<Lanes<T>>(power);
    return x < broadcast(F::kSmallestExp) ? Lanes<T>{} : result;
}

// log(2^e (1 + f)) for 1 + f in [sqrt(1/2), sqrt(2)); biased_e is e + kExponentBias.
template <typename T>
inline Lanes<T> log_from(IntLanes<T> biased_e, Lanes<T> f) {
    using F = Format<T>;
    const Lanes<T> e =
        bits_as<Lanes<T>>(biased_e | F::kTwo23) - broadcast(F::kTwo23Value + T(F::kExponentBias));
    const Lanes<T> square = f * f;
    const Lanes<T> tail =
        polynomial<T>(F::kLog, f, square) * f * square + e * broadcast(F::kLn2Low);
    return e * broadcast(F::kLn2High) + (f + (tail - T(0.5) * square));
}

// The exponent, biased, that leaves x / 2^e in [sqrt(1/2), sqrt(2)).
template <typename T>
inline IntLanes<T> biased_exponent(Lanes<T> x) {
    using F = Format<T>;
    return (bits_as<IntLanes<T>>(x) + (F::kOne - F::kRootHalf)) >> F::kMantissaBits;
}

// log x for normal x > 0.
template <typename T>
inline Lanes<T> log(Lanes<T> x) {
    using F = Format<T>;
    const IntLanes<T> biased_e = biased_exponent<T>(x);
    const IntLanes<T> mantissa =
        bits_as<IntLanes<T>>(x) - ((biased_e - F::kExponentBias) << F::kMantissaBits);
    return log_from<T>(biased_e, bits_as<Lanes<T>>(mantissa) - T(1));
}

// log(1 + x) for 0 <= x < 2^126 (2^1022 in double).
template <typename T>
inline Lanes<T> log1p(Lanes<T> x) {
    using F = Format<T>;
    const IntLanes<T> biased_e = biased_exponent<T>(x + T(1));
    // (1 + x) 2^-e - 1, of which x 2^-e and 2^-e - 1 are exact: no digit of a small x is lost.
    const auto scale = bits_as<Lanes<T>>((2 * F::kExponentBias - biased_e) << F::kMantissaBits);
    return log_from<T>(biased_e, x * scale + (scale - T(1)));
}

}  // namespace deepclust::DEEPCLUST_ISA
