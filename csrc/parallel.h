// Runs the chunks of a loop on OpenMP threads, and survives fork().
//
// The caller cuts its rows into chunks by their size alone, never by the number of threads, so what
// a chunk computes is the same bits for any number of threads.
//
// libgomp keeps a pool of threads for each thread that starts a parallel region. fork() copies the
// pool's records but not its threads, so a region started in the child waits for them for ever. A
// process that was forked without exec therefore starts its regions on a new thread, which has no
// records yet: some 100 us a call, and only there.

#pragma once

#include <algorithm>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>

#include <thread>
#endif

namespace deepclust {

// Whether this process was forked without exec, before or after the library was loaded.
bool is_forked();

// The threads worth waking for n_chunks chunks of `work` multiply-adds in all: a thread has to earn
// its start.
inline int useful_threads(int n_threads, int64_t n_chunks, double work) {
    constexpr double kWorkPerThread = 1 << 18;  // some 50 us
    const double most = static_cast<double>(std::min<int64_t>(n_threads, n_chunks));
    return static_cast<int>(std::max(1.0, std::min(work / kWorkPerThread, most)));
}

// Calls body(chunk, thread) for each chunk in [0, n_chunks), on n_threads threads or fewer,
// numbered from 0. Each thread meets its chunks in rising order. The body must not throw.
template <typename Body>
void for_each_chunk(int64_t n_chunks, [[maybe_unused]] int n_threads, const Body& body) {
#ifdef _OPENMP
    if (n_threads > 1) {
        const auto region = [&] {
#pragma omp parallel for schedule(monotonic : dynamic) num_threads(n_threads)
            for (int64_t chunk = 0; chunk < n_chunks; ++chunk) body(chunk, omp_get_thread_num());
        };
        if (is_forked())
            std::thread(region).join();
        else
            region();
        return;
    }
#endif
    for (int64_t chunk = 0; chunk < n_chunks; ++chunk) body(chunk, 0);
}

}  // namespace deepclust
