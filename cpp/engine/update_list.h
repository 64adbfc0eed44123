#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "pagedcore/request.h"

namespace pagedcore {

// The updates of one step. Those of the step before lie where they were until this step's take
// their places, so that one that comes again need not be written again.
class UpdateList {
 public:
  void clear() { size_ = 0; }
  std::int32_t size() const { return size_; }
  // Makes room, so that so many updates come without an allocation.
  void reserve(std::size_t count) {
    if (updates_.size() < count) updates_.resize(count);
  }
  SequenceUpdate& add() {
    if (updates_.size() == static_cast<std::size_t>(size_)) updates_.emplace_back();
    return updates_[size_++] = {};
  }
  // Adds again the last step's updates that lie in the next `count` places.
  void repeat(std::int32_t count) { size_ += count; }
  // The last step's update at `last` lies in the place `place` from now on. REQUIRES: size() <=
  // place <= last.
  void move(std::int32_t last, std::int32_t place) { updates_[place] = updates_[last]; }
  SequenceUpdate& operator[](std::int32_t place) { return updates_[place]; }
  SequenceUpdate& back() { return updates_[size_ - 1]; }
  std::span<const SequenceUpdate> all() const { return std::span(updates_).first(size_); }

 private:
  std::int32_t size_ = 0;
  std::vector<SequenceUpdate> updates_;
};

}  // namespace pagedcore
