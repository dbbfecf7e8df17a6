// The kernels of one instruction set, and the choice among them.

#pragma once

#include "adam.h"
#include "assign.h"
#include "frequencies.h"
#include "kmeans_assign.h"
#include "kmeans_batch.h"
#include "kmeans_candidates.h"
#include "kmeans_loss.h"
#include "kmeans_rounded.h"
#include "kmeans_step.h"
#include "kmeans_update.h"
#include "target_loss.h"
#include "targets.h"

namespace deepclust {

// Each returns the first bad row it met, if it was asked to check.
template <typename T>
struct Kernels {
    BadRow (*assign_forward)(const AssignForward<T>&);
    BadRow (*assign_backward)(const AssignBackward<T>&);
    BadRow (*frequencies)(const Frequencies<T>&);
    BadRow (*targets)(const Targets<T>&);
    BadRow (*target_loss)(const TargetLoss<T>&);
    BadRow (*kmeans_assign)(const KMeansAssign<T>&);
    BadRow (*kmeans_batch)(const KMeansBatch<T>&);
    BadRow (*kmeans_candidates)(const KMeansCandidates<T>&);
    BadRow (*kmeans_update)(const KMeansUpdate<T>&);
    BadRow (*kmeans_loss)(const KMeansLoss<T>&);
    BadRow (*kmeans_step)(const KMeansStep<T>&);
    int64_t (*kmeans_step_groups)(int64_t d, int64_t k);
    BadRow (*kmeans_round)(const KMeansRound<T>&);
    BadRow (*kmeans_rounded)(const KMeansRounded<T>&);
    int64_t (*kmeans_rounded_bytes)(int64_t n, int64_t d);
};

struct InstructionSet {
    Kernels<float> float32;
    Kernels<double> float64;
    void (*adam)(const Adam&);
};

// The best that this processor runs, or the one that DEEPCLUST_ISA names in the environment. Throws
// std::runtime_error where the processor does not run that, or nothing has that name.
const InstructionSet& instruction_set();
const char* instruction_set_name();

// Whether there is one instruction that multiplies pairs of 16-bit integers and adds both products
// to a sum, which no kernels are compiled apart for.
bool multiplies_pairs_at_once();

#ifdef DEEPCLUST_ISA
namespace DEEPCLUST_ISA {

extern const InstructionSet kInstructionSet;

template <typename T>
BadRow assign_forward(const AssignForward<T>&);
template <typename T>
BadRow assign_backward(const AssignBackward<T>&);
template <typename T>
BadRow frequencies(const Frequencies<T>&);
template <typename T>
BadRow targets(const Targets<T>&);
template <typename T>
BadRow target_loss(const TargetLoss<T>&);
template <typename T>
BadRow kmeans_assign(const KMeansAssign<T>&);
template <typename T>
BadRow kmeans_batch(const KMeansBatch<T>&);
template <typename T>
BadRow kmeans_candidates(const KMeansCandidates<T>&);
template <typename T>
BadRow kmeans_update(const KMeansUpdate<T>&);
template <typename T>
BadRow kmeans_loss(const KMeansLoss<T>&);
template <typename T>
BadRow kmeans_step(const KMeansStep<T>&);
template <typename T>
int64_t kmeans_step_groups(int64_t d, int64_t k);
template <typename T>
BadRow kmeans_round(const KMeansRound<T>&);
template <typename T>
BadRow kmeans_rounded(const KMeansRounded<T>&);
template <typename T>
int64_t kmeans_rounded_bytes(int64_t n, int64_t d);
void adam(const Adam&);

}  // namespace DEEPCLUST_ISA
#endif

}  // namespace deepclust
