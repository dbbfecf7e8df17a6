#include "parallel.h"

#include <algorithm>

#ifdef _OPENMP
#include <omp.h>

#include <thread>
#endif

#ifdef __linux__
#include <pthread.h>

#include <fstream>
#include <sstream>
#include <string>
#endif

namespace deepclust {
namespace {

// Whether this process was forked without exec, before or after the library was loaded.
[[maybe_unused]] bool forked = false;

#ifdef __linux__
// The kernel's own record, for a library that is loaded only after the fork.
bool loaded_in_forked_child() {
    constexpr unsigned kForkedWithoutExec = 0x40;  // PF_FORKNOEXEC
    std::ifstream file("/proc/self/stat");
    std::string line, field;
    std::getline(file, line);
    // pid (name) state ppid pgrp session tty tpgid flags ...; the name may hold anything.
    std::istringstream after_name(line.substr(line.rfind(')') + 1));
    unsigned flags = 0;
    for (int skipped = 0; skipped < 6; ++skipped) after_name >> field;
    after_name >> flags;
    return flags & kForkedWithoutExec;
}

[[maybe_unused]] const bool watched = [] {
    forked = loaded_in_forked_child();
    return pthread_atfork(nullptr, nullptr, [] { forked = true; }) == 0;
}();
#endif

}  // namespace

int useful_threads(int n_threads, int64_t n_chunks, double work) {
    constexpr double kWorkPerThread = 1 << 18;  // some 10 to 50 us
    const double most = static_cast<double>(std::min<int64_t>(n_threads, n_chunks));
    return static_cast<int>(std::max(1.0, std::min(work / kWorkPerThread, most)));
}

void run_chunks(int64_t n_chunks, [[maybe_unused]] int n_threads,
                void (*body)(const void*, int64_t, int), const void* context) {
#ifdef _OPENMP
    if (n_threads > 1) {
        // A thread takes some chunks at a time: of neighbours what is called ahead for one, and the
        // lines that two of them share, are wanted by the same thread. Few enough to even out.
        const int64_t at_a_time = std::max<int64_t>(1, n_chunks / (32 * int64_t(n_threads)));
        const auto region = [=] {
#pragma omp parallel for schedule(monotonic : dynamic, at_a_time) num_threads(n_threads)
            for (int64_t chunk = 0; chunk < n_chunks; ++chunk)
                body(context, chunk, omp_get_thread_num());
        };
        if (forked)
            std::thread(region).join();
        else
            region();
        return;
    }
#endif
    for (int64_t chunk = 0; chunk < n_chunks; ++chunk) body(context, chunk, 0);
}

}  // namespace deepclust
