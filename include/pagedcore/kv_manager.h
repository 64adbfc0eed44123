#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pagedcore/block_allocator.h"
#include "pagedcore/export.h"
#include "pagedcore/sequence.h"
#include "pagedcore/types.h"

namespace pagedcore {

// Decides where the tokens of sequences lie; the scheduler decides when they are computed. The
// scheduler's own manager pages; benches put contiguous ones in its place. Copies that a call asks
// for are appended to its `copies` and done before the step's forward pass.
class PAGEDCORE_API KvManager {
 public:
  virtual ~KvManager() = default;

  virtual BlockAllocator& allocator() = 0;
  virtual BlockTable make_table() = 0;
  // Blocks that `prompt_tokens` and `num_sequences` first output tokens take at the very least; a
  // request that needs more than the pool is refused.
  virtual std::int32_t min_blocks(std::int32_t prompt_tokens, std::int32_t num_sequences,
                                  std::int32_t max_total_tokens) const = 0;

  // Gives a group that does not run blocks for all of its tokens and leaves `headroom` blocks. May
  // raise num_computed of its sequences. All or nothing.
  virtual bool try_admit(SequenceGroup& group, std::int32_t headroom,
                         std::vector<BlockCopy>& copies) = 0;
  // Makes positions [num_computed, num_tokens) of a running sequence writable. All or nothing.
  virtual bool try_extend(Sequence& sequence, std::vector<BlockCopy>& copies) = 0;
  // `child` is new and gets the first num_computed(child) tokens of `parent`.
  virtual void fork(Sequence& parent, Sequence& child, std::vector<BlockCopy>& copies) = 0;
  // num_computed of the sequence has crossed the end of a block.
  virtual void on_blocks_filled(Sequence&) {}
  // Takes the sequence's blocks back; its num_computed becomes 0. `content_is_good` is false where
  // copies or tokens of the step in flight were never carried out.
  virtual void release(Sequence& sequence, bool content_is_good) = 0;
  // The step's copies are done.
  virtual void end_step() {}

  virtual std::int32_t acquire_salt(std::string_view) { return 0; }
  virtual void release_salt(std::int32_t) {}
  virtual std::vector<std::string> check_invariants() const = 0;

 protected:
  // Implementations change sequences through these.
  static BlockTable& table(Sequence& sequence) { return sequence.table_; }
  static void set_num_computed(Sequence& s, std::int32_t n) { s.num_computed_ = n; }
  static void set_writable_end(Sequence& s, std::int32_t n) { s.writable_end_ = n; }
  static std::int32_t writable_end(const Sequence& s) { return s.writable_end_; }
  static std::int32_t& num_registered_blocks(Sequence& s) { return s.num_registered_blocks_; }
  static const Sequence* waits_for(const Sequence& s) { return s.waits_for_; }
  static void set_waits_for(Sequence& s, const Sequence* sibling) { s.waits_for_ = sibling; }
  // Entries of the table from `index` on are new to the caller.
  static void mark_changed(Sequence& s, std::int32_t index) {
    if (index < s.first_changed_block_) s.first_changed_block_ = index;
  }
};

}  // namespace pagedcore
