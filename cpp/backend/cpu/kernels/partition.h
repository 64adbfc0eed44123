#pragma once

#include <cstdint>

namespace pagedcore::cpu::PAGEDCORE_ISA {

struct Span {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  bool empty() const { return begin >= end; }
};

// One thread's part of a matrix of outputs.
struct Share {
  Span groups;
  Span rows;
  bool empty() const { return groups.empty() || rows.empty(); }
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

  bool cuts_rows() const { return row_cuts_ > 1; }

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

// Groups that threads take a few at a time, at most `most` and fewer toward the end, so that a
// thread that is held up leaves more of them to the others. Which it takes first is known before.
class GroupQueue {
 public:
  GroupQueue(Span groups, int num_threads, std::int64_t most)
      : groups_(groups), num_threads_(num_threads), most_(most) {
    next_ = groups.begin + num_threads * share_of_rest(groups.begin);
  }

  Span first(int thread) const {
    const std::int64_t size = share_of_rest(groups_.begin);
    const std::int64_t begin = groups_.begin + thread * size;
    return {begin, begin + size < groups_.end ? begin + size : groups_.end};
  }

  // Empty when all are taken. Threads may call this at once.
  Span take() {
    std::int64_t begin = __atomic_load_n(&next_, __ATOMIC_RELAXED);
    while (begin < groups_.end) {
      const std::int64_t end = begin + share_of_rest(begin);
      if (__atomic_compare_exchange_n(&next_, &begin, end, true, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
        return {begin, end};
      }
    }
    return {};
  }

 private:
  std::int64_t share_of_rest(std::int64_t begin) const {
    const std::int64_t size = (groups_.end - begin) / num_threads_;
    return size < 1 ? 1 : size < most_ ? size : most_;
  }

  Span groups_;
  int num_threads_;
  std::int64_t most_;
  std::int64_t next_;
};

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
