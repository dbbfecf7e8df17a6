// Vectors of one register's width, for the instruction set that the including file is compiled for.
//
// GCC's and Clang's vector extension: +, -, *, <, and mask ? a : b work lane by lane, on any
// target. Every file of kernels is compiled once for each instruction set, into a namespace of its
// own: DEEPCLUST_ISA. Such files use no containers of the standard library: the linker would keep
// one copy of their functions for all, and that might be the one that this processor cannot run.

#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#ifdef __AVX__
#include <immintrin.h>
#endif

namespace deepclust::DEEPCLUST_ISA {

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
constexpr int kRegisters = 32;
#elif defined(__AVX__)
constexpr int kRegisterBytes = 32;
constexpr int kRegisters = 16;
#else
constexpr int kRegisterBytes = 16;
constexpr int kRegisters = 16;
#endif

template <typename T>
constexpr int kLanes = kRegisterBytes / sizeof(T);

// An integer as wide as T: what comparing two Lanes<T> gives, lane by lane.
template <typename T>
using IntLike = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

template <typename T>
struct LanesOf {
    typedef T type __attribute__((vector_size(kRegisterBytes)));
    typedef double as_double __attribute__((vector_size(kRegisterBytes / sizeof(T) * 8)));
};
template <typename T>
using Lanes = typename LanesOf<T>::type;
template <typename T>
using IntLanes = Lanes<IntLike<T>>;
// As many doubles as there are lanes of T: sums over many rows are kept in these.
template <typename T>
using DoubleLanes = typename LanesOf<T>::as_double;

// Calls body(std::integral_constant<int, value>), 1 <= value <= kMost.
template <int kMost, typename Body>
inline void with_constant(int value, const Body& body) {
    if constexpr (kMost > 1)
        if (value < kMost) return with_constant<kMost - 1>(value, body);
    body(std::integral_constant<int, kMost>());
}

template <typename T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

template <typename T>
inline Lanes<T> load(const T* from) {
    Lanes<T> lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

template <typename T>
inline void store(T* to, Lanes<T> lanes) {
    std::memcpy(to, &lanes, sizeof lanes);
}

// The first `count` lanes, and zeros.
template <typename T>
inline Lanes<T> first_lanes(Lanes<T> lanes, int64_t count) {
    IntLanes<T> lane;
    for (int i = 0; i < kLanes<T>; ++i) lane[i] = i;
    return lane < static_cast<IntLike<T>>(count) ? lanes : Lanes<T>{};
}

template <typename T>
inline Lanes<T> load_some(const T* from, int64_t count) {
    Lanes<T> lanes = {};
    std::memcpy(&lanes, from, static_cast<size_t>(count) * sizeof(T));
    return lanes;
}

template <typename T>
inline void store_some(T* to, Lanes<T> lanes, int64_t count) {
    std::memcpy(to, &lanes, static_cast<size_t>(count) * sizeof(T));
}

template <typename T>
inline Lanes<T> broadcast(T value) {
    return value - Lanes<T>{};
}

// With a NaN among them, min gives b and max a.
template <typename V>
inline V min(V a, V b) {
#ifdef __AVX512F__  // where GCC makes two instructions of a comparison and a choice
    if constexpr (std::is_same_v<V, Lanes<float>>)
        return static_cast<V>(_mm512_min_ps(static_cast<__m512>(a), static_cast<__m512>(b)));
    if constexpr (std::is_same_v<V, Lanes<double>>)
        return static_cast<V>(_mm512_min_pd(static_cast<__m512d>(a), static_cast<__m512d>(b)));
#endif
    return a < b ? a : b;
}

template <typename V>
inline V max(V a, V b) {
#ifdef __AVX512F__
    if constexpr (std::is_same_v<V, Lanes<float>>)
        return static_cast<V>(_mm512_max_ps(static_cast<__m512>(b), static_cast<__m512>(a)));
    if constexpr (std::is_same_v<V, Lanes<double>>)
        return static_cast<V>(_mm512_max_pd(static_cast<__m512d>(b), static_cast<__m512d>(a)));
#endif
    return a < b ? b : a;
}

// Has lanes lie in a register here: of a choice that is about to be stored GCC makes a masked
// store, which takes longer than the choice and the store.
template <typename V>
inline void keep_in_register(V& lanes) {
#ifdef __AVX512F__
    asm("" : "+v"(lanes));
#else
    (void)lanes;
#endif
}

template <typename To, typename From>
inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <typename T>
inline DoubleLanes<T> widen(Lanes<T> lanes) {
    return __builtin_convertvector(lanes, DoubleLanes<T>);
}

// IN/OUT sums: as many doubles as there are lanes.
template <typename T>
inline void add_widened(double* sums, Lanes<T> lanes, double factor = 1) {
    // A register at a time: GCC would send a factor of several through memory.
    constexpr int kRegistersOfDoubles = sizeof(DoubleLanes<T>) / kRegisterBytes;
    Lanes<double> wide[kRegistersOfDoubles];
    const DoubleLanes<T> all = widen<T>(lanes);
    std::memcpy(wide, &all, sizeof all);
    for (int i = 0; i < kRegistersOfDoubles; ++i) {
        double* const to = sums + i * kLanes<double>;
        store<double>(to, load(to) + wide[i] * broadcast(factor));
    }
}

// The sum of as many doubles as T has lanes, always in the same order.
template <typename T>
inline double sum_of_doubles(const double* lanes) {
    double sum[kLanes<T>];
    std::memcpy(sum, lanes, sizeof sum);
    for (int half = kLanes<T> / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
    return sum[0];
}

template <typename T>
inline double sum_of_doubles(DoubleLanes<T> lanes) {
    double sum[kLanes<T>];
    std::memcpy(sum, &lanes, sizeof sum);
    return sum_of_doubles<T>(sum);
}

// Whether all lanes of a comparison hold: each has all its bits, or none.
template <typename V>
inline bool all(V holds) {
#if defined(__AVX512F__)  // GCC compares into memory, and there word by word
    return _mm512_movepi32_mask(reinterpret_cast<__m512i>(holds)) == 0xffff;
#elif defined(__AVX__)
    return _mm256_movemask_ps(reinterpret_cast<__m256>(holds)) == 0xff;
#else
    int64_t words[kRegisterBytes / 8];
    std::memcpy(words, &holds, sizeof words);
    int64_t all_words = -1;
    for (const int64_t word : words) all_words &= word;
    return all_words == -1;
#endif
}

// Whether all lanes are zero: false of NaN, too.
template <typename T>
inline bool all_zero(Lanes<T> lanes) {
    return all(lanes == Lanes<T>{});
}

template <typename T, int... kFrom>
inline Lanes<T> shuffle(Lanes<T> a, Lanes<T> b) {
#ifdef __clang__
    return __builtin_shufflevector(a, b, kFrom...);
#else
    return __builtin_shuffle(a, b, IntLanes<T>{kFrom...});
#endif
}

// Of two rows of a matrix of blocks kHalf wide, exchanges a's odd blocks with b's even ones.
template <typename T, int kHalf, int... kLane>
inline void exchange(Lanes<T>& a, Lanes<T>& b, std::integer_sequence<int, kLane...>) {
    constexpr int kB = sizeof...(kLane);  // where b's lanes begin
    const Lanes<T> even = shuffle<T, (kLane & kHalf ? kB + (kLane ^ kHalf) : kLane)...>(a, b);
    b = shuffle<T, (kLane & kHalf ? kB + kLane : kLane ^ kHalf)...>(a, b);
    a = even;
}

template <typename T, int kHalf, int... kLane>
inline T sum_of_lanes(Lanes<T> lanes, std::integer_sequence<int, kLane...> all) {
    lanes += shuffle<T, (kLane ^ kHalf)...>(lanes, lanes);
    if constexpr (kHalf > 1)
        return sum_of_lanes<T, kHalf / 2>(lanes, all);
    else
        return lanes[0];
}

template <typename T>
inline T sum_of_lanes(Lanes<T> lanes) {
    return sum_of_lanes<T, kLanes<T> / 2>(lanes, std::make_integer_sequence<int, kLanes<T>>());
}

template <typename T, int kHalf, int... kLane>
inline T least_lane(Lanes<T> lanes, std::integer_sequence<int, kLane...> all) {
    lanes = min(lanes, shuffle<T, (kLane ^ kHalf)...>(lanes, lanes));
    if constexpr (kHalf > 1)
        return least_lane<T, kHalf / 2>(lanes, all);
    else
        return lanes[0];
}

template <typename T>
inline T least_lane(Lanes<T> lanes) {
    return least_lane<T, kLanes<T> / 2>(lanes, std::make_integer_sequence<int, kLanes<T>>());
}

// IN/OUT rows: a square matrix, one row a register.
template <typename T, int kHalf = kLanes<T> / 2>
inline void transpose(Lanes<T> (&rows)[kLanes<T>]) {
    for (int i = 0; i < kLanes<T>; ++i)
        if (!(i & kHalf))
            exchange<T, kHalf>(rows[i], rows[i | kHalf],
                               std::make_integer_sequence<int, kLanes<T>>());
    if constexpr (kHalf > 1) transpose<T, kHalf / 2>(rows);
}

}  // namespace deepclust::DEEPCLUST_ISA
