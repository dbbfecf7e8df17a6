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

#include <cstdint>

namespace deepclust {

// The threads worth waking for n_chunks chunks of `work` multiply-adds in all: a thread has to earn
// its start.
int useful_threads(int n_threads, int64_t n_chunks, double work);

// Calls body(context, chunk, thread) for each chunk in [0, n_chunks), on n_threads threads or
// fewer, numbered from 0. Each thread meets its chunks in rising order. The body must not throw.
void run_chunks(int64_t n_chunks, int n_threads, void (*body)(const void*, int64_t, int),
                const void* context);

// The same for body(chunk, thread).
template <typename Body>
void for_each_chunk(int64_t n_chunks, int n_threads, const Body& body) {
    run_chunks(
        n_chunks, n_threads,
        [](const void* context, int64_t chunk, int thread) {
            (*static_cast<const Body*>(context))(chunk, thread);
        },
        &body);
}

}  // namespace deepclust
