#include <pybind11/numpy.h>

#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "cpp/bindings/bindings.h"
#include "cpp/bindings/record.h"
#include "pagedcore/backend.h"
#include "pagedcore/error.h"
#include "pagedcore/sampling_ops.h"
#include "pagedcore/sampling_params.h"

namespace pagedcore::bindings {
namespace {

// A SampleRow that owns what its spans borrow.
struct OwnedSampleRow : SampleRow {
  std::vector<SeenToken> owned_seen;
  std::vector<LogitBias> owned_bias;
  std::vector<TokenId> owned_allowed;
  std::vector<TokenId> owned_banned;

  SampleRow borrow() const {
    SampleRow borrowed = *this;
    borrowed.seen = owned_seen;
    borrowed.bias = owned_bias;
    borrowed.allowed = owned_allowed;
    borrowed.banned = owned_banned;
    return borrowed;
  }
};

using Pairs = std::vector<std::pair<TokenId, std::int32_t>>;

void bind_sample_row(py::module_& m) {
  Record<OwnedSampleRow>(m, "SampleRow")
      .keyword_init()
      .read_write("logit_row", &OwnedSampleRow::logit_row)
      .read_write("temperature", &OwnedSampleRow::temperature)
      .read_write("top_k", &OwnedSampleRow::top_k)
      .read_write("top_p", &OwnedSampleRow::top_p)
      .read_write("min_p", &OwnedSampleRow::min_p)
      .read_write("repetition_penalty", &OwnedSampleRow::repetition_penalty)
      .read_write("presence_penalty", &OwnedSampleRow::presence_penalty)
      .read_write("frequency_penalty", &OwnedSampleRow::frequency_penalty)
      .read_write("seed", &OwnedSampleRow::seed)
      .read_write("position", &OwnedSampleRow::position)
      .read_write("num_top", &OwnedSampleRow::num_top)
      .read_write("given_token", &OwnedSampleRow::given_token)
      .read_write("allowed", &OwnedSampleRow::owned_allowed)
      .read_write("banned", &OwnedSampleRow::owned_banned)
      .def_property(
          "seen",
          [](const OwnedSampleRow& self) {
            Pairs pairs;
            for (const SeenToken& seen : self.owned_seen)
              pairs.emplace_back(seen.token, seen.output_count);
            return pairs;
          },
          [](OwnedSampleRow& self, const Pairs& pairs) {
            self.owned_seen.clear();
            for (const auto& [token, count] : pairs) self.owned_seen.push_back({token, count});
          })
      .def_property(
          "bias",
          [](const OwnedSampleRow& self) {
            std::vector<std::pair<TokenId, float>> pairs;
            for (const LogitBias& bias : self.owned_bias) pairs.emplace_back(bias.token, bias.bias);
            return pairs;
          },
          [](OwnedSampleRow& self, const std::vector<std::pair<TokenId, float>>& pairs) {
            self.owned_bias.clear();
            for (const auto& [token, bias] : pairs) self.owned_bias.push_back({token, bias});
          });
}

py::tuple sample(Backend& backend,
                 const py::array_t<float, py::array::c_style | py::array::forcecast>& logits,
                 const std::vector<OwnedSampleRow>& rows, std::int32_t max_top) {
  PAGEDCORE_REQUIRE(backend.is_host(), "backend must be a host backend, got ",
                    backend.description());
  PAGEDCORE_REQUIRE(logits.ndim() == 2, "logits must be [rows, vocab_size], got ", logits.ndim(),
                    " dimensions");
  const auto count = static_cast<py::ssize_t>(rows.size());
  std::vector<SampleRow> samples;
  for (const OwnedSampleRow& row : rows) samples.push_back(row.borrow());
  py::array_t<TokenId> tokens(count), top_tokens({count, py::ssize_t{max_top}});
  py::array_t<std::int32_t> ranks(count);
  py::array_t<float> logprobs(count), top_logprobs({count, py::ssize_t{max_top}});

  const auto span = [](auto& array) {
    return std::span(array.mutable_data(), static_cast<std::size_t>(array.size()));
  };
  SampleParams params;
  params.logits = logits.data();
  params.num_rows = logits.shape(0);
  params.vocab_size = logits.shape(1);
  params.samples = samples;
  params.outputs = {span(tokens), span(logprobs),   span(ranks),
                    max_top,      span(top_tokens), span(top_logprobs)};
  const Buffer workspace(
      backend, backend.sample_workspace_bytes(params.vocab_size, static_cast<std::int32_t>(count)));
  params.workspace = workspace.data();
  params.workspace_bytes = workspace.bytes();
  {
    const py::gil_scoped_release no_gil;
    backend.sample(params);
  }
  return py::make_tuple(tokens, logprobs, ranks, top_tokens, top_logprobs);
}

std::variant<bool, std::string> early_stopping(const SamplingParams& params) {
  if (params.early_stopping == EarlyStopping::kNever) return "never";
  return params.early_stopping == EarlyStopping::kTrue;
}

void set_early_stopping(SamplingParams& params, const std::variant<bool, std::string>& value) {
  if (const auto* text = std::get_if<std::string>(&value)) {
    PAGEDCORE_REQUIRE(*text == "never", "early_stopping must be True, False or \"never\", got \"",
                      *text, "\"");
    params.early_stopping = EarlyStopping::kNever;
  } else {
    params.early_stopping = std::get<bool>(value) ? EarlyStopping::kTrue : EarlyStopping::kFalse;
  }
}

}  // namespace

void bind_sampling(py::module_& m) {
  Record<SamplingParams>(m, "SamplingParams")
      .keyword_init()
      .read_write("n", &SamplingParams::n)
      .read_write("best_of", &SamplingParams::best_of)
      .read_write("temperature", &SamplingParams::temperature)
      .read_write("top_p", &SamplingParams::top_p)
      .read_write("top_k", &SamplingParams::top_k)
      .read_write("min_p", &SamplingParams::min_p)
      .read_write("seed", &SamplingParams::seed)
      .read_write("max_tokens", &SamplingParams::max_tokens)
      .read_write("min_tokens", &SamplingParams::min_tokens)
      .read_write("stop_token_ids", &SamplingParams::stop_token_ids)
      .read_write("ignore_eos", &SamplingParams::ignore_eos)
      .read_write("repetition_penalty", &SamplingParams::repetition_penalty)
      .read_write("presence_penalty", &SamplingParams::presence_penalty)
      .read_write("frequency_penalty", &SamplingParams::frequency_penalty)
      .read_write("logit_bias", &SamplingParams::logit_bias)
      .read_write("allowed_token_ids", &SamplingParams::allowed_token_ids)
      .read_write("bad_token_ids", &SamplingParams::bad_token_ids)
      .read_write("logprobs", &SamplingParams::logprobs)
      .read_write("prompt_logprobs", &SamplingParams::prompt_logprobs)
      .read_write("beam_width", &SamplingParams::beam_width)
      .read_write("length_penalty", &SamplingParams::length_penalty)
      .def_property("early_stopping", &early_stopping, &set_early_stopping)
      .def("validate", &SamplingParams::validate, py::arg("vocab_size"));

  bind_sample_row(m);
  m.def("sample", &sample, py::arg("backend"), py::arg("logits"), py::arg("rows"),
        py::arg("max_top") = 0);
}

}  // namespace pagedcore::bindings
