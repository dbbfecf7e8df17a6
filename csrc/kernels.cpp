// The table of the kernels of the instruction set that this file is compiled for.

#include "kernels.h"

namespace deepclust::DEEPCLUST_ISA {
namespace {

template <typename T>
constexpr Kernels<T> kernels() {
    return {assign_forward<T>, assign_backward<T>, frequencies<T>,  targets<T>,
            target_loss<T>,    kmeans_assign<T>,   kmeans_batch<T>, kmeans_candidates<T>,
            kmeans_update<T>,  kmeans_loss<T>,     kmeans_step<T>,  kmeans_step_groups<T>};
}

#define DEEPCLUST_QUOTE(name) #name
#define DEEPCLUST_NAME(macro) DEEPCLUST_QUOTE(macro)

}  // namespace

const InstructionSet kInstructionSet{DEEPCLUST_NAME(DEEPCLUST_ISA), kernels<float>(),
                                     kernels<double>(), adam};

}  // namespace deepclust::DEEPCLUST_ISA
