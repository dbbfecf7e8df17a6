#include "memory.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

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

void ask_for_huge_pages(void* memory, size_t bytes) noexcept {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t kHugePage = 2 << 20;
    const auto address = reinterpret_cast<uintptr_t>(memory);
    const uintptr_t first = (address + kHugePage - 1) / kHugePage * kHugePage;
    const uintptr_t end = (address + bytes) / kHugePage * kHugePage;
    if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

}  // namespace deepclust
