// Every primitive on four threads, for thread sanitizer, against the same on one: the bits agree.
//
// libgomp's own waiting is not instrumented, and all of it would look like races: the loops run on
// std::thread here, which takes the place of csrc/parallel.cpp.

#include <atomic>
#include <cstdio>
#include <thread>

#include "driver.h"
#include "parallel.h"

namespace deepclust {

int most_threads = 0;  // that any loop was given

int useful_threads(int n_threads, int64_t n_chunks, double) {
    return n_chunks < n_threads ? (n_chunks < 1 ? 1 : int(n_chunks)) : n_threads;
}

void run_chunks(int64_t n_chunks, int n_threads, void (*body)(const void*, int64_t, int),
                const void* context) {
    most_threads = n_threads > most_threads ? n_threads : most_threads;
    std::atomic<int64_t> next{0};
    const auto work = [&](int thread) {
        // Relaxed: taking a chunk orders nothing, as in OpenMP's dynamic schedule.
        for (int64_t chunk; (chunk = next.fetch_add(1, std::memory_order_relaxed)) < n_chunks;)
            body(context, chunk, thread);
    };
    std::vector<std::thread> threads;
    for (int i = 1; i < n_threads; ++i) threads.emplace_back(work, i);
    work(0);
    for (std::thread& thread : threads) thread.join();
}

template <typename T>
int check(const Kernels<T>& kernels, int64_t n, int64_t d, int64_t k, HeadKind kind, T nu) {
    int failures = 0;
    for (const std::string& name : Job<T>::names()) {
        const bool by_label =
            name == "kmeans_update" || name == "kmeans_changes" || name == "kmeans_loss";
        const bool pulls_back = name == "assign_backward" || name == "target_loss";
        if (n < 4096 ? !pulls_back : k > 500 && !by_label) continue;
        Job<T> one(kernels, n, d, k, kind, nu), four(kernels, n, d, k, kind, nu);
        most_threads = 0;
        one.run(name, 1);
        four.run(name, 4);
        if (most_threads == 4 && one.outputs() == four.outputs()) continue;
        std::printf("%s, n %d, d %d, k %d, head %d: %s\n", name.c_str(), int(n), int(d), int(k),
                    int(kind), most_threads == 4 ? "other bits" : "did not use 4 threads");
        ++failures;
    }
    return failures;
}

}  // namespace deepclust

int main() {
    using namespace deepclust;
    const InstructionSet& isa = DEEPCLUST_ISA::kInstructionSet;
    // Sums in parts, in slabs and by columns (which only sums by labels know).
    const int64_t sizes[][3] = {{4501, 10, 10}, {2101, 130, 260}, {4101, 264, 1001}};
    int failures = 0;
    for (const auto& [n, d, k] : sizes) {
        failures += check<float>(isa.float32, n, d, k, HeadKind::kStudentT, 1);
        if (k > 100) continue;
        failures += check<float>(isa.float32, n, d, k, HeadKind::kStudentT, 3);
        failures += check<float>(isa.float32, n, d, k, HeadKind::kLinear, 1);
        failures += check<double>(isa.float64, n, d, k, HeadKind::kGaussian, 1);
    }
    return failures > 0;
}
