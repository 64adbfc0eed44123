#pragma once

#include <cstdint>

namespace pagedcore::cpu::PAGEDCORE_ISA {

struct Span {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

// One thread's part of a matrix of outputs.
struct Share {
  Span groups;
  Span rows;
  bool empty() const { return groups.begin == groups.end || rows.begin == rows.end; }
};

// Splits num_groups groups of outputs by num_rows rows over threads: a grid of shares as even as
// can be, and among equals the one with the fewest cuts through the rows, since every cut makes one
// more thread read the same weights. Rows are cut at multiples of row_step.
class Partition {
 public:
  Partition(std::int64_t num_groups, std::int64_t num_rows, std::int64_t row_step, int num_threads)
      : num_groups_(num_groups), num_rows_(num_rows), row_step_(row_step) {
    const std::int64_t row_units = (num_rows + row_step - 1) / row_step;
    std::int64_t least = -1;
    for (int cuts = 1; cuts <= num_threads && cuts <= row_units; ++cuts) {
      const int group_cuts = num_threads / cuts;
      const std::int64_t load =
          ((num_groups + group_cuts - 1) / group_cuts) * ((row_units + cuts - 1) / cuts);
      if (least >= 0 && load >= least) continue;
      least = load;
      row_cuts_ = cuts;
      group_cuts_ = group_cuts;
    }
  }

  Share share(int thread) const {
    if (thread >= row_cuts_ * group_cuts_) return {};
    const std::int64_t row_units = (num_rows_ + row_step_ - 1) / row_step_;
    const Span groups = cut(num_groups_, thread % group_cuts_, group_cuts_);
    const Span units = cut(row_units, thread / group_cuts_, row_cuts_);
    const std::int64_t end = units.end * row_step_;
    return {groups, {units.begin * row_step_, end < num_rows_ ? end : num_rows_}};
  }

 private:
  static Span cut(std::int64_t count, int part, int parts) {
    return {count * part / parts, count * (part + 1) / parts};
  }

  std::int64_t num_groups_;
  std::int64_t num_rows_;
  std::int64_t row_step_;
  int row_cuts_ = 1;
  int group_cuts_ = 1;
};

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
