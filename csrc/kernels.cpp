// The table of the kernels of the instruction set that this file is compiled for.

#include "kernels.h"

namespace deepclust::DEEPCLUST_ISA {
namespace {

template <typename T>
constexpr Kernels<T> kernels() {
    return {assign_forward<T>, assign_backward<T>, frequencies<T>,         targets<T>,
            target_loss<T>,    kmeans_assign<T>,   kmeans_batch<T>,        kmeans_candidates<T>,
            kmeans_update<T>,  kmeans_loss<T>,     kmeans_step<T>,         kmeans_step_groups<T>,
            kmeans_round<T>,   kmeans_rounded<T>,  kmeans_rounded_bytes<T>};
}

}  // namespace

const InstructionSet kInstructionSet{kernels<float>(), kernels<double>(), adam};

}  // namespace deepclust::DEEPCLUST_ISA
