// Memory for the kernels' own buffers, from one place that is compiled for any processor.

#pragma once

#include <cstddef>
#include <cstdint>

namespace deepclust {

// Aligned to a cache line, not initialised. Throws std::bad_alloc.
void* allocate(size_t bytes);
void release(void* memory) noexcept;

// Asks for huge pages for memory that is about to be filled: page by page, faults would cost as
// much as the arithmetic. Nothing changes where there are none, or for less than two of them.
void ask_for_huge_pages(void* memory, size_t bytes) noexcept;

#ifdef DEEPCLUST_ISA
namespace DEEPCLUST_ISA {

template <typename T>
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(int64_t size)
        : data_(static_cast<T*>(allocate(static_cast<size_t>(size) * sizeof(T)))) {}
    Buffer(Buffer&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
    Buffer& operator=(Buffer&& other) noexcept {
        T* const mine = data_;
        data_ = other.data_;
        other.data_ = mine;
        return *this;
    }
    ~Buffer() { release(data_); }

    T* get() const { return data_; }
    T& operator[](int64_t i) const { return data_[i]; }

  private:
    T* data_ = nullptr;
};

}  // namespace DEEPCLUST_ISA
#endif

}  // namespace deepclust
