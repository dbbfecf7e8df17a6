#include "memory.h"

#include <new>

namespace deepclust {
namespace {

constexpr std::align_val_t kCacheLine{64};

}  // namespace

void* allocate(size_t bytes) {
    return ::operator new(bytes, kCacheLine);
}

void release(void* memory) noexcept {
    ::operator delete(memory, kCacheLine);
}

}  // namespace deepclust
