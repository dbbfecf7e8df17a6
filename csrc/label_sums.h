// Sums over the rows of each label, (k, d) of them in double, the same for any number of threads.
//
// Where k d is small, the rows are cut into at most kParts parts with sums of their own, added up
// in order at the end. Where it is large, parts would take too much memory: each task owns a range
// of columns then, and reads all rows.

#pragma once

#include "blocks.h"

namespace deepclust::DEEPCLUST_ISA {

// Rows [first, end) and columns [begin, stop) of one task, and where their sums go.
struct LabelTask {
    int64_t index, first, end, begin, stop;
    double* sums;  // (k, d)
};

class LabelSums {
  public:
    LabelSums(int64_t n, int64_t k, int64_t d) : n_(n), k_(k), d_(d) {
        const int64_t affordable = kPartsBytes / (k * d * int64_t(sizeof(double)));
        const bool few = affordable >= kFewestParts;
        n_parts_ = few ? most(1, least(least(kParts, affordable), n / kPartRows)) : 1;
        n_ranges_ = few ? 1 : (d + kRange - 1) / kRange;
        rest_ = Buffer<double>((n_parts_ - 1) * k * d);
    }

    int64_t n_tasks() const { return n_parts_ * n_ranges_; }

    // OUT sums (k, d). body(task) adds to task.sums what its rows and columns give.
    template <typename Body>
    void run(double* sums, int n_threads, const Body& body) const {
        const int64_t size = k_ * d_;
        n_threads = useful_threads(n_threads, n_tasks(), double(n_) * double(d_));
        std::memset(sums, 0, static_cast<size_t>(size) * sizeof(double));
        for_each_chunk(n_tasks(), n_threads, [&](int64_t task, int) {
            const int64_t part = task / n_ranges_, range = task % n_ranges_;
            double* const mine = part == 0 ? sums : &rest_[(part - 1) * size];
            if (part > 0) std::memset(mine, 0, static_cast<size_t>(size) * sizeof(double));
            const int64_t width = n_ranges_ == 1 ? d_ : kRange;
            body(LabelTask{task, part * n_ / n_parts_, (part + 1) * n_ / n_parts_, range * width,
                           least(d_, (range + 1) * width), mine});
        });
        for (int64_t part = 1; part < n_parts_; ++part)
            for (int64_t i = 0; i < size; ++i) sums[i] += rest_[(part - 1) * size + i];
    }

  private:
    static constexpr int64_t kFewestParts = 8, kPartRows = 1024, kRange = 64;
    int64_t n_, k_, d_, n_parts_, n_ranges_;
    Buffer<double> rest_;  // the sums of all parts but the first
};

}  // namespace deepclust::DEEPCLUST_ISA
