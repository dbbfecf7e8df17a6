// Vectors of one register's width, for the instruction set that the including file is compiled for.
//
// GCC's and Clang's vector extension: +, -, *, <, and mask ? a : b work lane by lane, on any
// target.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace deepclust {
namespace {  // compiled once for each instruction set, so no definition may be shared between files

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif

template <typename T>
constexpr int kLanes = kRegisterBytes / sizeof(T);

template <typename T>
struct LanesOf {
    typedef T type __attribute__((vector_size(kRegisterBytes)));
};
template <typename T>
using Lanes = typename LanesOf<T>::type;

// An integer as wide as T: what comparing two Lanes<T> gives, lane by lane.
template <typename T>
using IntLike = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

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

template <typename T>
inline Lanes<T> broadcast(T value) {
    return value - Lanes<T>{};
}

}  // namespace
}  // namespace deepclust
