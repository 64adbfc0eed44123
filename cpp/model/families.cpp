#include "cpp/model/families.h"

#include <string>
#include <vector>

#include "pagedcore/error.h"
#include "pagedcore/model_config.h"

namespace pagedcore {
namespace {

constexpr TensorNames llama_like(std::string_view architecture) {
  return {
      .architecture = architecture,
      .prefixes = {"model.", "", ""},
      .token_embedding = "embed_tokens",
      .final_norm = "norm",
      .layers = "layers",
      .attention_norm = "input_layernorm",
      .qkv = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
      .attention_out = "self_attn.o_proj",
      .mlp_norm = "post_attention_layernorm",
      .gate = "mlp.gate_proj",
      .up = "mlp.up_proj",
      .down = "mlp.down_proj",
  };
}

constexpr TensorNames qwen3() {
  TensorNames names = llama_like("Qwen3ForCausalLM");
  names.q_norm = "self_attn.q_norm";
  names.k_norm = "self_attn.k_norm";
  return names;
}

constexpr TensorNames kGpt2 = {
    .architecture = "GPT2LMHeadModel",
    .prefixes = {"transformer.", "", ""},
    .layout = WeightLayout::kInOut,
    .token_embedding = "wte",
    .position_embedding = "wpe",
    .final_norm = "ln_f",
    .layers = "h",
    .attention_norm = "ln_1",
    .qkv = {"attn.c_attn", "", ""},
    .attention_out = "attn.c_proj",
    .mlp_norm = "ln_2",
    .up = "mlp.c_fc",
    .down = "mlp.c_proj",
};

constexpr TensorNames kOpt = {
    .architecture = "OPTForCausalLM",
    .prefixes = {"model.decoder.", "decoder.", ""},
    .token_embedding = "embed_tokens",
    .position_embedding = "embed_positions",
    .project_in = "project_in",
    .project_out = "project_out",
    .final_norm = "final_layer_norm",
    .layers = "layers",
    .attention_norm = "self_attn_layer_norm",
    .qkv = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
    .attention_out = "self_attn.out_proj",
    .mlp_norm = "final_layer_norm",
    .up = "fc1",
    .down = "fc2",
};

constexpr std::array kFamilies = {
    kGpt2, llama_like("LlamaForCausalLM"), llama_like("MistralForCausalLM"),
    kOpt,  llama_like("Qwen2ForCausalLM"), qwen3(),
};

}  // namespace

std::span<const TensorNames> families() { return kFamilies; }

const TensorNames& family(std::string_view architecture) {
  std::string known;
  for (const TensorNames& names : kFamilies) {
    if (names.architecture == architecture) return names;
    known += (known.empty() ? "" : ", ") + std::string(names.architecture);
  }
  detail::throw_invalid_argument(
      {"architecture must be one of ", known, ", got '", architecture, "'"});
}

std::vector<std::string> supported_architectures() {
  std::vector<std::string> result;
  for (const TensorNames& names : kFamilies) result.emplace_back(names.architecture);
  return result;
}

}  // namespace pagedcore
