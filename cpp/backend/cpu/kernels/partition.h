#pragma once

#include <cstdint>

namespace pagedcore::cpu::PAGEDCORE_ISA {

struct Span {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  bool empty() const { return begin >= end; }
  // One of `parts` parts that are as even as can be.
  Span part(int index, int parts) const {
    const std::int64_t size = end - begin;
    return {begin + size * index / parts, begin + size * (index + 1) / parts};
  }
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
    const Span groups = Span{0, num_groups_}.part(thread % group_cuts_, group_cuts_);
    const Span units = Span{0, row_units}.part(thread / group_cuts_, row_cuts_);
    const std::int64_t end = units.end * row_step_;
    return {groups, {units.begin * row_step_, end < num_rows_ ? end : num_rows_}};
  }

 private:
  std::int64_t num_groups_;
  std::int64_t num_rows_;
  std::int64_t row_step_;
  int row_cuts_ = 1;
  int group_cuts_ = 1;
};

// Groups that threads take a few at a time, at most `most` and fewer toward the end. Each thread
// has a part that lies in one piece, since a processor that reads a stream fetches what comes
// behind it, in vain where that is another thread's; who is done takes from the end of what others
// have left.
class GroupQueue {
 public:
  GroupQueue(Span groups, int num_threads, std::int32_t most)
      : num_parts_(num_threads < kMaxParts ? num_threads : kMaxParts), most_(most) {
    for (int i = 0; i < num_parts_; ++i) {
      const Span part = groups.part(i, num_parts_);
      parts_[i].rest = {static_cast<std::int32_t>(part.begin), static_cast<std::int32_t>(part.end)};
    }
  }

  // Empty when all are taken. Threads may call this at once.
  Span take(int thread) {
    for (int i = 0; i < num_parts_; ++i) {
      const Span taken = take_from(parts_[(thread + i) % num_parts_], i > 0);
      if (!taken.empty()) return taken;
    }
    return {};
  }

 private:
  static constexpr int kMaxParts = 16;  // more threads share them

  struct alignas(8) Rest {
    std::int32_t begin;
    std::int32_t end;
  };
  struct alignas(64) Part {
    Rest rest;
  };

  Span take_from(Part& part, bool from_end) const {
    Rest now;
    __atomic_load(&part.rest, &now, __ATOMIC_RELAXED);
    while (now.begin < now.end) {
      const std::int32_t half = (now.end - now.begin) / 2;
      const std::int32_t size = half < 1 ? 1 : half < most_ ? half : most_;
      const Rest taken =
          from_end ? Rest{now.end - size, now.end} : Rest{now.begin, now.begin + size};
      Rest left = from_end ? Rest{now.begin, taken.begin} : Rest{taken.end, now.end};
      if (__atomic_compare_exchange(&part.rest, &now, &left, true, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED)) {
        return {taken.begin, taken.end};
      }
    }
    return {};
  }

  int num_parts_;
  std::int32_t most_;
  Part parts_[kMaxParts];
};

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
