#include "cpp/engine/snapshot.h"

#include <bit>
#include <cstring>
#include <type_traits>
#include <utility>

#include "pagedcore/error.h"

namespace pagedcore {
namespace {

static_assert(std::endian::native == std::endian::little && sizeof(bool) == 1);
constexpr std::uint64_t kMagic = 0x31304d4e53434750;  // "PGCSNM01"
constexpr std::uint32_t kVersion = 2;
constexpr std::int64_t kHeaderBytes = 8 + 4 + 8;  // magic, version, length of the file
constexpr std::int64_t kChecksumBytes = 8;

class Writer {
 public:
  template <typename T>
  void operator()(const T& value) {
    if constexpr (std::is_arithmetic_v<T> || std::is_enum_v<T>) {
      append(&value, sizeof(value));
    } else {
      static_assert(std::is_trivially_copy_constructible_v<typename T::value_type>);
      (*this)(static_cast<std::int64_t>(value.size()));
      append(value.data(), value.size() * sizeof(typename T::value_type));
    }
  }
  void append(const void* data, std::size_t size) {
    const auto* begin = static_cast<const std::byte*>(data);
    bytes.insert(bytes.end(), begin, begin + size);
  }

  std::vector<std::byte> bytes;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : rest_(bytes) {}

  template <typename T>
  void operator()(T& value) {
    if constexpr (std::is_same_v<T, bool>) {  // a file may hold other bytes than 0 and 1
      std::uint8_t byte = 0;
      (*this)(byte);
      value = byte != 0;
    } else if constexpr (std::is_arithmetic_v<T> || std::is_enum_v<T>) {
      take(&value, sizeof(value));
    } else {
      std::int64_t size = 0;
      (*this)(size);
      constexpr std::int64_t kElement = sizeof(typename T::value_type);
      require_elements(size, kElement);
      value.resize(size);
      take(value.data(), size * kElement);
    }
  }
  // Each of so many elements takes a byte at the very least.
  void require_elements(std::int64_t count) const { require_elements(count, 1); }
  bool is_at_end() const { return rest_.empty(); }

 private:
  void require_elements(std::int64_t count, std::int64_t element_bytes) const {
    PAGEDCORE_REQUIRE(
        count >= 0 && count <= static_cast<std::int64_t>(rest_.size()) / element_bytes,
        "the snapshot holds a list of ", count, " elements in ", rest_.size(), " bytes");
  }
  void take(void* data, std::size_t size) {
    PAGEDCORE_REQUIRE(size <= rest_.size(), "the snapshot ends too early");
    if (size > 0) std::memcpy(data, rest_.data(), size);
    rest_ = rest_.subspan(size);
  }

  std::span<const std::byte> rest_;
};

// Writes or reads a list, element by element.
template <typename Archive, typename List, typename VisitElement>
void visit_list(Archive& archive, List& list, const VisitElement& visit_element) {
  auto size = static_cast<std::int64_t>(list.size());
  archive(size);
  if constexpr (std::is_same_v<Archive, Reader>) {
    archive.require_elements(size);
    list.resize(size);
  }
  for (auto& element : list) visit_element(archive, element);
}

// Writes or reads an optional number as a flag and a value.
template <typename Archive, typename Optional>
void visit_optional(Archive& archive, Optional& optional) {
  bool has_value = optional.has_value();
  auto value = optional.value_or(0);
  archive(has_value);
  archive(value);
  if constexpr (std::is_same_v<Archive, Reader>) {
    optional = has_value ? Optional(value) : Optional();
  }
}

// Fields of every kind, in the order of the file.
template <typename Archive, typename Params>
void visit_params(Archive& archive, Params& p) {
  archive(p.n);
  archive(p.best_of);
  archive(p.temperature);
  archive(p.top_p);
  archive(p.top_k);
  archive(p.min_p);
  visit_optional(archive, p.seed);
  visit_optional(archive, p.max_tokens);
  archive(p.min_tokens);
  archive(p.stop_token_ids);
  archive(p.ignore_eos);
  archive(p.repetition_penalty);
  archive(p.presence_penalty);
  archive(p.frequency_penalty);
  archive(p.logit_bias);
  archive(p.allowed_token_ids);
  archive(p.bad_token_ids);
  archive(p.logprobs);
  archive(p.prompt_logprobs);
  archive(p.beam_width);
  archive(p.length_penalty);
  archive(p.early_stopping);
}

template <typename Archive, typename Hypothesis>
void visit_hypothesis(Archive& archive, Hypothesis& hypothesis) {
  archive(hypothesis.tokens);
  archive(hypothesis.log_probability);
  archive(hypothesis.score);
  archive(hypothesis.stop_token);
}

template <typename Archive, typename Sequence>
void visit_sequence(Archive& archive, Sequence& sequence) {
  archive(sequence.is_live);
  archive(sequence.finish_reason);
  archive(sequence.stop_token);
  archive(sequence.cumulative_logprob);
  archive(sequence.tokens);
  archive(sequence.logprobs);
  archive(sequence.num_computed);
  archive(sequence.sibling);
  archive(sequence.num_shared);
  archive(sequence.kv);
}

template <typename Archive, typename File>
void visit(Archive& archive, File& file) {
  archive(file.model);
  archive(file.kv_dtype);
  visit_params(archive, file.params);
  archive(file.seed);
  archive(file.num_prompt_tokens);
  archive(file.needs_params);
  archive(file.cache_salt);
  archive(file.prompt_logprobs);
  archive(file.num_prompt_logprobs_done);
  archive(file.prompt_logprobs_reported);
  archive(file.beam_scores);
  visit_list(archive, file.hypotheses,
             [](auto& a, auto& hypothesis) { visit_hypothesis(a, hypothesis); });
  visit_list(archive, file.sequences, [](auto& a, auto& sequence) { visit_sequence(a, sequence); });
}

}  // namespace

std::uint64_t hash_bytes(std::span<const std::byte> bytes, std::uint64_t hash) {
  constexpr std::uint64_t kPrime = 0x100000001b3;
  std::size_t i = 0;
  for (; i + 8 <= bytes.size(); i += 8) {
    std::uint64_t word;
    std::memcpy(&word, bytes.data() + i, 8);
    hash = (hash ^ word) * kPrime;
    hash ^= hash >> 32;
  }
  for (; i < bytes.size(); ++i) hash = (hash ^ std::to_integer<std::uint64_t>(bytes[i])) * kPrime;
  return hash;
}

std::vector<std::byte> encode(const Snapshot& snapshot) {
  Writer writer;
  std::size_t expected = 4096;
  for (const SavedSequence& sequence : snapshot.sequences) {
    expected += sequence.kv.size() + sequence.tokens.size() * sizeof(TokenId) + 256;
  }
  writer.bytes.reserve(expected);
  writer(kMagic);
  writer(kVersion);
  writer(std::int64_t{0});
  visit(writer, snapshot);
  const auto length = static_cast<std::int64_t>(writer.bytes.size()) + kChecksumBytes;
  std::memcpy(writer.bytes.data() + kHeaderBytes - sizeof(length), &length, sizeof(length));
  writer(hash_bytes(writer.bytes));
  return std::move(writer.bytes);
}

Snapshot decode_snapshot(std::span<const std::byte> bytes) {
  const auto size = static_cast<std::int64_t>(bytes.size());
  PAGEDCORE_REQUIRE(size >= kHeaderBytes + kChecksumBytes, "the snapshot has only ", size,
                    " bytes: it is truncated or none");
  Reader header(bytes.first(kHeaderBytes));
  std::uint64_t magic = 0;
  std::uint32_t version = 0;
  std::int64_t length = 0;
  header(magic);
  header(version);
  header(length);
  PAGEDCORE_REQUIRE(magic == kMagic, "the bytes are not a snapshot of a request");
  PAGEDCORE_REQUIRE(version == kVersion, "the snapshot is of version ", version,
                    ", this library reads version ", kVersion);
  PAGEDCORE_REQUIRE(length == size, "the snapshot should have ", length, " bytes, got ", size);
  const std::span<const std::byte> checked = bytes.first(bytes.size() - kChecksumBytes);
  std::uint64_t checksum = 0;
  Reader(bytes.last(kChecksumBytes))(checksum);
  PAGEDCORE_REQUIRE(checksum == hash_bytes(checked),
                    "the snapshot's checksum is wrong: it was changed");

  Snapshot snapshot;
  Reader reader(checked.subspan(kHeaderBytes));
  visit(reader, snapshot);
  PAGEDCORE_REQUIRE(reader.is_at_end(), "the snapshot has bytes behind its end");
  return snapshot;
}

}  // namespace pagedcore
