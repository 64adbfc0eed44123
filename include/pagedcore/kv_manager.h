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

class PrefixCache;

// Decides where the tokens of sequences lie; the scheduler decides when they are computed. The
// scheduler's own manager pages; benches put contiguous ones in its place. Copies that a call asks
// for are appended to its `copies` and done before the step's forward pass.
class PAGEDCORE_API KvManager {
 public:
  virtual ~KvManager() = default;

  virtual BlockAllocator& allocator() = 0;
  virtual const BlockAllocator* host_allocator() const { return nullptr; }  // of the swap space
  virtual const PrefixCache* prefix_cache() const { return nullptr; }
  virtual std::int32_t block_size() const = 0;
  virtual BlockTable make_table() = 0;
  virtual BlockTable make_host_table() { return make_table(); }
  // Blocks that the prompt and the first output token of each sequence take at the very least; a
  // request that needs more than the pool is refused.
  virtual std::int32_t min_blocks(std::int32_t prompt_tokens, std::int32_t num_sequences,
                                  std::int32_t max_total_tokens) const = 0;
  // Available blocks that a group takes until it has room for all its tokens, those in host blocks
  // included.
  virtual std::int32_t num_blocks_to_admit(const SequenceGroup& group) const = 0;

  // Different blocks of a group once it has room for all its tokens.
  virtual std::int32_t num_blocks_of_whole(const SequenceGroup& group) const = 0;
  // Available blocks that try_extend() of all its sequences takes.
  virtual std::int32_t num_blocks_to_extend(const SequenceGroup&) const { return 0; }

  // Gives a group that does not run blocks for all its tokens and leaves `headroom` blocks
  // available. May raise num_computed of its sequences. All or nothing.
  virtual bool try_admit(SequenceGroup& group, std::int32_t headroom,
                         std::vector<BlockCopy>& copies) = 0;
  // Makes positions [num_computed, num_tokens) of a sequence writable. All or nothing.
  virtual bool try_extend(Sequence& sequence, std::int32_t num_tokens,
                          std::vector<BlockCopy>& copies) = 0;
  // Whether a sequence can run with blocks for only the first of its tokens, by the next two.
  virtual bool can_hold_partially() const { return false; }
  // try_extend() for as many tokens as at most `num_blocks` of the available blocks allow.
  virtual void extend_partially(Sequence&, std::int32_t /*num_blocks*/, std::vector<BlockCopy>&) {}

  // The last blocks of a group's tables. A block that several of its sequences hold is taken from
  // all of them or from none.
  struct Tail {
    std::vector<std::int32_t> num_kept;  // blocks that stay, of each of the group's sequences
    std::int32_t num_blocks = 0;         // taken that hold tokens
    std::int64_t num_tokens = 0;         // in these
    std::int64_t num_lost_tokens = 0;    // of these: in blocks that the group alone holds
  };
  // The shortest tail without which `num_available` blocks are available; all blocks where none
  // suffices.
  virtual Tail tail_of(const SequenceGroup&, std::int32_t /*num_available*/) const { return {}; }
  // Gives the tail up, and what lies in host blocks behind it; lowers num_computed to what stays.
  // REQUIRES, as try_swap_out() does: the group's content is good and it is not rebuilding.
  virtual void drop(SequenceGroup&, const Tail&) {}
  // Moves the tail to host blocks, before those that lie there already; num_computed stays. All or
  // nothing. A manager without swap space refuses.
  virtual bool try_swap_out(SequenceGroup&, const Tail&, std::vector<BlockCopy>& /*moves*/) {
    return false;
  }
  // Moves everything back from the host, where `headroom` blocks stay available. All or nothing.
  virtual bool try_swap_in(SequenceGroup&, std::int32_t /*headroom*/,
                           std::vector<BlockCopy>& /*moves*/) {
    return false;
  }

  // `child` is new; it gets the first num_computed(child) tokens of `parent`.
  virtual void fork(Sequence& parent, Sequence& child, std::vector<BlockCopy>& copies) = 0;
  // Tokens of a prompt, or of a sequence that was preempted, were computed, or a sequence is held.
  // What plain decoding fills is told of when the sequence ends or is preempted, by release().
  virtual void on_blocks_filled(Sequence&) {}
  // Takes the sequence's blocks back; its num_computed becomes 0. `content_is_good` is false where
  // copies or tokens of the step in flight were never carried out.
  virtual void release(Sequence& sequence, bool content_is_good) = 0;
  // The step's moves and copies are done.
  virtual void end_step() {}

  virtual std::int32_t acquire_salt(std::string_view) { return 0; }
  virtual void release_salt(std::int32_t) {}
  virtual std::vector<std::string> check_invariants() const = 0;

 protected:
  // Implementations change sequences through these.
  static BlockTable& table(Sequence& s) { return s.table_; }
  static BlockTable& host_table(Sequence& s) { return s.host_table_; }
  static void drop_host_tail(Sequence& s) { s.drop_host_tail(); }
  static void set_num_computed(Sequence& s, std::int32_t n) { s.num_computed_ = n; }
  static std::int32_t writable_end(const Sequence& s) { return s.writable_end_; }
  static void set_writable_end(Sequence& s, std::int32_t n) { s.writable_end_ = n; }
  static std::int32_t& num_registered_blocks(Sequence& s) { return s.num_registered_blocks_; }
  static const Sequence* waits_for(const Sequence& s) { return s.waits_for_; }
  static void set_waits_for(Sequence& s, const Sequence* sibling) { s.waits_for_ = sibling; }
  // Entries of the table from `index` on are new to the caller.
  static void mark_changed(Sequence& s, std::int32_t index) {
    s.table_changed_ = true;
    if (index < s.first_changed_block_) s.first_changed_block_ = index;
  }
};

}  // namespace pagedcore
