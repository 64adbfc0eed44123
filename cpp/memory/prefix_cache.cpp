#include "pagedcore/prefix_cache.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "cpp/base/reserve.h"
#include "pagedcore/error.h"

namespace pagedcore {
namespace {

// How many children of an entry a search for a partial hit looks at, the newest first: it bounds
// the time where thousands of prompts follow one system prompt.
constexpr int kMaxPartialCandidates = 64;

constexpr std::uint64_t kSeed = 0x9e3779b97f4a7c15;
constexpr std::uint64_t kMultiplier = 0xd6e8feb86659fd93;

// The folded 128-bit product of wyhash (Wang Yi, 2019).
std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

std::uint64_t pair_at(const TokenId* tokens) {
  std::uint64_t pair;
  std::memcpy(&pair, tokens, sizeof(pair));
  return pair;
}

std::uint64_t hash_bytes(std::string_view bytes) {
  std::uint64_t hash = kSeed;
  for (const char c : bytes) hash = mix(hash ^ static_cast<unsigned char>(c), kMultiplier);
  return hash;
}

std::int32_t common_prefix(std::span<const TokenId> a, std::span<const TokenId> b) {
  const std::size_t limit = std::min(a.size(), b.size());
  const auto [end, _] = std::mismatch(a.begin(), a.begin() + limit, b.begin());
  return static_cast<std::int32_t>(end - a.begin());
}

}  // namespace

PrefixCache::PrefixCache(BlockAllocator& allocator, std::int32_t block_size, int hash_bits)
    : allocator_(allocator), block_size_(block_size) {
  PAGEDCORE_REQUIRE(block_size >= 1, "block_size must be at least 1, got ", block_size);
  PAGEDCORE_REQUIRE(hash_bits >= 1 && hash_bits <= 64, "hash_bits must be in [1, 64], got ",
                    hash_bits);
  hash_mask_ = ~std::uint64_t{0} >> (64 - hash_bits);
  const auto num_blocks = static_cast<std::size_t>(allocator.num_blocks());
  nodes_.resize(num_blocks);
  tokens_.resize(num_blocks * block_size);
  buckets_.assign(std::bit_ceil(num_blocks), -1);
  roots_.push_back({.salt = "", .hash = hash_bytes(""), .num_users = 1});
  salts_.emplace("", 0);
  allocator_.set_eviction_listener(this);
}

PrefixCache::~PrefixCache() {
  allocator_.set_eviction_listener(nullptr);
  for (BlockId block = 0; block < allocator_.num_blocks(); ++block) {
    if (is_registered(block)) allocator_.set_reusable(block, false);
  }
}

PrefixCache::SaltId PrefixCache::acquire_salt(std::string_view salt) {
  Root root{.salt = std::string(salt), .hash = hash_bytes(salt), .num_users = 1};
  if (const auto known = salts_.find(root.salt); known != salts_.end()) {
    ++roots_[known->second].num_users;
    return known->second;
  }
  if (unused_roots_.empty()) {
    unused_roots_.reserve(roots_.size() + 1);  // so that giving roots back cannot fail
    roots_.emplace_back();
    unused_roots_.push_back(static_cast<SaltId>(roots_.size()) - 1);
  }
  const SaltId id = unused_roots_.back();
  salts_.emplace(root.salt, id);
  unused_roots_.pop_back();
  roots_[id] = std::move(root);
  return id;
}

void PrefixCache::release_salt(SaltId salt) {
  PAGEDCORE_REQUIRE(
      salt >= 0 && salt < static_cast<SaltId>(roots_.size()) && roots_[salt].num_users > 0,
      "release_salt: unknown salt id ", salt);
  drop_root_user(salt);
}

void PrefixCache::drop_root_user(SaltId salt) {
  if (--roots_[salt].num_users > 0) return;
  salts_.erase(roots_[salt].salt);
  unused_roots_.push_back(salt);
}

std::span<const TokenId> PrefixCache::tokens_of(BlockId block) const {
  return std::span(tokens_).subspan(static_cast<std::size_t>(block) * block_size_,
                                    nodes_[block].num_tokens);
}

BlockId PrefixCache::first_child_of(BlockId parent) const {
  return parent >= 0 ? nodes_[parent].first_child : roots_[-2 - parent].first_child;
}

BlockId& PrefixCache::first_child_of(BlockId parent) {
  return parent >= 0 ? nodes_[parent].first_child : roots_[-2 - parent].first_child;
}

std::uint64_t PrefixCache::hash_of(BlockId parent) const {
  return parent >= 0 ? nodes_[parent].hash : roots_[-2 - parent].hash;
}

// A block's own tokens are hashed from a fixed seed, so that only the last product waits for the
// block before: a processor hashes several blocks of a long prompt at once.
std::uint64_t PrefixCache::chain(std::uint64_t hash, std::span<const TokenId> tokens) const {
  std::uint64_t own = kSeed;
  std::size_t i = 0;
  for (; i + 4 <= tokens.size(); i += 4) {
    own = mix(own ^ pair_at(&tokens[i]), kMultiplier ^ pair_at(&tokens[i + 2]));
  }
  for (; i < tokens.size(); ++i) {
    own = mix(own ^ static_cast<std::uint32_t>(tokens[i]), kMultiplier);
  }
  return mix(hash ^ own, kSeed) & hash_mask_;
}

BlockId PrefixCache::find_full(BlockId parent, std::uint64_t hash,
                               std::span<const TokenId> tokens) const {
  BlockId block = buckets_[hash & (buckets_.size() - 1)];
  for (; block >= 0; block = nodes_[block].next_in_bucket) {
    const Node& node = nodes_[block];
    if (node.hash == hash && node.parent == parent &&
        std::equal(tokens.begin(), tokens.end(), tokens_of(block).begin())) {
      return block;
    }
  }
  return -1;
}

std::pair<BlockId, std::int32_t> PrefixCache::find_partial(BlockId parent,
                                                           std::span<const TokenId> tokens) const {
  std::pair<BlockId, std::int32_t> best{-1, 0};
  BlockId child = first_child_of(parent);
  for (int i = 0; child >= 0 && i < kMaxPartialCandidates; ++i) {
    const std::int32_t common = common_prefix(tokens, tokens_of(child));
    if (common > best.second) best = {child, common};
    child = nodes_[child].next_sibling;
  }
  return best;
}

PrefixMatch PrefixCache::match(std::span<const TokenId> tokens, std::string_view salt) const {
  const auto found = salts_.find(std::string(salt));
  return found == salts_.end() ? PrefixMatch{} : match(tokens, found->second);
}

PrefixMatch PrefixCache::match_behind(BlockId parent, std::span<const TokenId> tokens,
                                      SaltId salt) const {
  PrefixMatch match;
  if (tokens.empty()) return match;
  tokens = tokens.first(tokens.size() - 1);
  if (parent == kNoParent) parent = root_ref(salt);
  while (tokens.size() >= static_cast<std::size_t>(block_size_)) {
    const auto head = tokens.first(block_size_);
    const BlockId block = find_full(parent, chain(hash_of(parent), head), head);
    if (block < 0) break;
    match.blocks.push_back(block);
    parent = block;
    tokens = tokens.subspan(block_size_);
  }
  std::tie(match.partial_block, match.partial_tokens) = find_partial(parent, tokens);
  match.num_tokens =
      static_cast<std::int32_t>(match.blocks.size()) * block_size_ + match.partial_tokens;
  return match;
}

bool PrefixCache::try_acquire(const PrefixMatch& match, BlockTable& table,
                              std::vector<BlockCopy>& copies) {
  const std::int64_t num_tokens_before = table.num_slots();
  table.reserve_ids(num_tokens_before + match.num_tokens);
  reserve_more(copies, 1);
  for (const BlockId block : match.blocks) table.append_shared(block);
  if (match.partial_tokens == 0) return true;
  const BlockId src = match.partial_block;
  if (!allocator_.is_held(src) && nodes_[src].num_tokens == match.partial_tokens) {
    table.append_shared(src);
    return true;
  }
  allocator_.pin(src);
  const std::optional<BlockId> dst = allocator_.try_allocate();
  allocator_.unpin(src);
  if (!dst) {
    table.truncate(num_tokens_before);
    return false;
  }
  table.append_owned(*dst);
  copies.push_back({src, *dst});
  return true;
}

BlockId PrefixCache::insert(BlockId parent, std::span<const TokenId> tokens, BlockId block,
                            SaltId salt) {
  PAGEDCORE_REQUIRE(!tokens.empty() && tokens.size() <= static_cast<std::size_t>(block_size_),
                    "insert: the number of tokens must be in [1, ", block_size_, "], got ",
                    tokens.size());
  PAGEDCORE_REQUIRE(allocator_.is_held(block), "insert: block ", block, " is not held");
  if (parent == kNoParent) parent = root_ref(salt);
  if (parent >= 0 && nodes_[parent].num_tokens != block_size_) return -1;
  const bool is_full = tokens.size() == static_cast<std::size_t>(block_size_);
  const std::uint64_t hash = is_full ? chain(hash_of(parent), tokens) : 0;
  if (is_full) {
    if (const BlockId known = find_full(parent, hash, tokens); known >= 0) return known;
  } else if (const auto [known, common] = find_partial(parent, tokens);
             common == static_cast<std::int32_t>(tokens.size())) {
    return known == block ? block : -1;
  }
  forget(block);
  add_node(block, parent, hash, tokens);
  return block;
}

void PrefixCache::insert(std::span<const TokenId> tokens, BlockTable& table,
                         std::string_view salt) {
  PAGEDCORE_REQUIRE(static_cast<std::int64_t>(tokens.size()) <= table.num_slots(),
                    "insert: ", tokens.size(), " tokens do not fit the table's ", table.num_slots(),
                    " slots");
  const SaltId salt_id = acquire_salt(salt);
  BlockId parent = kNoParent;
  for (std::int32_t i = 0; !tokens.empty(); ++i) {
    const auto head = tokens.first(std::min<std::size_t>(tokens.size(), block_size_));
    const BlockId known = insert(parent, head, table.blocks()[i], salt_id);
    if (known < 0) break;
    if (known != table.blocks()[i]) table.replace(i, known);
    parent = known;
    tokens = tokens.subspan(head.size());
  }
  release_salt(salt_id);
}

void PrefixCache::add_node(BlockId block, BlockId parent, std::uint64_t hash,
                           std::span<const TokenId> tokens) {
  std::copy(tokens.begin(), tokens.end(),
            tokens_.begin() + static_cast<std::ptrdiff_t>(block) * block_size_);
  BlockId& first_child = first_child_of(parent);
  Node& node = nodes_[block];
  node = {.hash = hash,
          .num_tokens = static_cast<std::int32_t>(tokens.size()),
          .parent = parent,
          .next_sibling = first_child};
  if (first_child >= 0) nodes_[first_child].prev_sibling = block;
  first_child = block;
  if (node.num_tokens == block_size_) {
    BlockId& bucket = buckets_[hash & (buckets_.size() - 1)];
    node.next_in_bucket = bucket;
    bucket = block;
  }
  if (parent < 0) ++roots_[-2 - parent].num_users;
  ++num_entries_;
  allocator_.set_reusable(block, true);
}

void PrefixCache::remove_node(BlockId block) {
  Node& node = nodes_[block];
  if (node.num_tokens == block_size_) {
    BlockId* link = &buckets_[node.hash & (buckets_.size() - 1)];
    while (*link != block) link = &nodes_[*link].next_in_bucket;
    *link = node.next_in_bucket;
  }
  if (node.prev_sibling >= 0) {
    nodes_[node.prev_sibling].next_sibling = node.next_sibling;
  } else {
    first_child_of(node.parent) = node.next_sibling;
  }
  if (node.next_sibling >= 0) nodes_[node.next_sibling].prev_sibling = node.prev_sibling;
  const BlockId parent = node.parent;
  node = {};
  if (parent < 0) drop_root_user(-2 - parent);
  --num_entries_;
  allocator_.set_reusable(block, false);
}

void PrefixCache::forget(BlockId block) {
  if (!is_registered(block)) return;
  BlockId current = block;
  while (true) {
    while (nodes_[current].first_child >= 0) current = nodes_[current].first_child;
    const BlockId parent = nodes_[current].parent;
    remove_node(current);
    if (current == block) return;
    current = parent;
  }
}

std::int64_t PrefixCache::block_hash(BlockId block) const {
  return static_cast<std::int64_t>(nodes_[block].hash);
}

std::vector<std::string> PrefixCache::check_invariants() const {
  std::vector<std::string> report;
  const auto complain = [&](const auto&... parts) {
    report.push_back(detail::concat("prefix cache: ", parts...));
  };
  std::int32_t num_entries = 0;
  for (BlockId block = 0; block < allocator_.num_blocks(); ++block) {
    const Node& node = nodes_[block];
    if (is_registered(block) != allocator_.is_reusable(block)) {
      complain("block ", block, " is ", is_registered(block) ? "" : "not ",
               "registered, and the allocator says otherwise");
    }
    if (!is_registered(block)) continue;
    ++num_entries;
    if (node.parent >= 0 && nodes_[node.parent].num_tokens != block_size_) {
      complain("block ", block, " stands behind block ", node.parent, ", which is no full entry");
      continue;
    }
    const BlockId before = node.prev_sibling;
    if ((before >= 0 ? nodes_[before].next_sibling : first_child_of(node.parent)) != block) {
      complain("block ", block, " is not among its parent's children");
    }
    if (node.num_tokens < block_size_) {
      if (node.first_child >= 0) complain("partial block ", block, " has a child");
    } else if (node.hash != chain(hash_of(node.parent), tokens_of(block))) {
      complain("block ", block, " has a hash that is not of its tokens");
    } else if (find_full(node.parent, node.hash, tokens_of(block)) != block) {
      complain("block ", block, " is not found by its tokens");
    }
  }
  if (num_entries != num_entries_) {
    complain("counts ", num_entries_, " entries, has ", num_entries);
  }
  return report;
}

}  // namespace pagedcore
