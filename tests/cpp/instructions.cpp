// Runs every primitive on n points and on 2 n, each between a mark: tests/test_instructions.py has
// callgrind write the instructions of each mark and takes the difference, which leaves set-up out.
//
// Prints what each mark was: primitive, d, k, n; in the order in which they are run.

#include <cstdio>

#include "driver.h"

using namespace deepclust;

// callgrind starts counting at each call of this and writes the count at its end. It finds only
// plain names.
extern "C" __attribute__((noinline)) void measured(Job<float>& job, const std::string& name) {
    job.run(name, 1);
    asm volatile("" ::: "memory");  // no tail call, which would end `measured` early
}

int main() {
    // Few points: valgrind takes some hundred times as long as the processor.
    const int64_t sizes[][3] = {{1024, 10, 10}, {128, 64, 256}, {128, 784, 10}};
    for (const auto& [points, d, k] : sizes)
        for (const int64_t n : {points, 2 * points}) {
            Job<float> job(DEEPCLUST_ISA::kInstructionSet.float32, n, d, k, HeadKind::kStudentT, 1);
            for (const std::string& name : Job<float>::names()) {
                measured(job, name);
                std::printf("%s %d %d %d\n", name.c_str(), int(d), int(k), int(n));
            }
        }
}
