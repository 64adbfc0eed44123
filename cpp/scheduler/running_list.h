#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "pagedcore/sequence.h"

namespace pagedcore {

// The running groups in queue order; a list of pointers that also keeps, side by side, the sequence
// of each group that has just one to go on with. A decode step reads nothing else of it.
class RunningList {
 public:
  void reserve(std::size_t count) {
    groups_.reserve(count);
    only_.reserve(count);
  }
  std::size_t size() const { return groups_.size(); }
  bool empty() const { return groups_.empty(); }
  SequenceGroup* operator[](std::size_t i) const { return groups_[i]; }
  SequenceGroup* back() const { return groups_.back(); }
  auto begin() const { return groups_.begin(); }
  auto end() const { return groups_.end(); }
  auto rbegin() const { return groups_.rbegin(); }
  std::span<Sequence* const> only() const { return only_; }

  template <typename ComesBefore>
  void insert(SequenceGroup& group, Sequence* only, const ComesBefore& comes_before) {
    const auto at = std::upper_bound(groups_.begin(), groups_.end(), &group, comes_before);
    only_.insert(only_.begin() + (at - groups_.begin()), only);
    groups_.insert(at, &group);
  }
  void erase(const SequenceGroup& group) {
    const std::ptrdiff_t i = find(group);
    groups_.erase(groups_.begin() + i);
    only_.erase(only_.begin() + i);
  }
  void set_only(const SequenceGroup& group, Sequence* only) { only_[find(group)] = only; }

 private:
  std::ptrdiff_t find(const SequenceGroup& group) const {
    return std::find(groups_.begin(), groups_.end(), &group) - groups_.begin();
  }

  std::vector<SequenceGroup*> groups_;
  std::vector<Sequence*> only_;  // [size()]; null where a group has several, or runs partially
};

}  // namespace pagedcore
