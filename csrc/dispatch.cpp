// Which instruction set's kernels run: the best of those that were compiled and that this processor
// has, unless the environment asks for a lesser one.

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace deepclust {

namespace baseline {
extern const InstructionSet kInstructionSet;
}
#ifdef DEEPCLUST_X86_64
namespace avx2 {
extern const InstructionSet kInstructionSet;
}
namespace avx512 {
extern const InstructionSet kInstructionSet;
}
#endif

namespace {

struct Candidate {
    const char* name;
    const InstructionSet* kernels;
    bool runs;
    bool multiplies_pairs_at_once = false;
};

Candidate choose() {
#ifdef DEEPCLUST_X86_64
    __builtin_cpu_init();
    const bool avx2_runs = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512_runs =
        avx2_runs && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    const bool vnni_runs = avx512_runs && __builtin_cpu_supports("avx512vnni");
    const Candidate candidates[] = {{"avx512vnni", &avx512::kInstructionSet, vnni_runs, true},
                                    {"avx512", &avx512::kInstructionSet, avx512_runs},
                                    {"avx2", &avx2::kInstructionSet, avx2_runs},
                                    {"baseline", &baseline::kInstructionSet, true}};
#else
    const Candidate candidates[] = {{"baseline", &baseline::kInstructionSet, true}};
#endif
    const char* const wanted = std::getenv("DEEPCLUST_ISA");
    std::string names;
    for (const Candidate& candidate : candidates) {
        if (!candidate.runs) continue;
        if (wanted == nullptr || *wanted == '\0' || wanted == std::string(candidate.name))
            return candidate;
        names += (names.empty() ? "" : ", ") + std::string(candidate.name);
    }
    throw std::runtime_error("DEEPCLUST_ISA: got '" + std::string(wanted) +
                             "', this processor takes " + names);
}

const Candidate& chosen() {
    static const Candidate candidate = choose();
    return candidate;
}

}  // namespace

const InstructionSet& instruction_set() {
    return *chosen().kernels;
}

const char* instruction_set_name() {
    return chosen().name;
}

bool multiplies_pairs_at_once() {
    return chosen().multiplies_pairs_at_once;
}

}  // namespace deepclust
