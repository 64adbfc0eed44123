"""The whole engine against transformers: checkpoints on disk and in memory, greedy decoding."""

import json

import pytest
import torch
from support import models

from pagedcore import LLM, SamplingParams

LENGTHS = (1, 3, 8, 17, 25, 40, 64, 90)
GREEDY = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
OPTIONS = {"num_threads": 2, "block_size": 8, "num_blocks": 256, "max_num_batched_tokens": 50}


def expected_tokens(model, prompts, generated):
    """What transformers would say after each prefix of what was generated."""
    sequences = [[*prompt, *tokens[:-1]] for prompt, tokens in zip(prompts, generated)]
    return [
        logits[len(prompt) - 1 :].argmax(axis=1).tolist()
        for prompt, logits in zip(prompts, models.all_logits(model, sequences))
    ]


def check(llm, model):
    prompts = models.prompts(model.config.vocab_size, LENGTHS, seed=2)
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    generated = [list(output.outputs[0].token_ids) for output in outputs]
    assert [len(tokens) for tokens in generated] == [64] * len(LENGTHS)
    assert generated == expected_tokens(model, prompts, generated)


@pytest.mark.parametrize(
    "case",
    [
        "llama_rope_llama3",
        "mistral_window",
        "qwen2_window_in_late_layers",
        "qwen3",
        "opt_norm_after_with_projections",
        "gpt2",
    ],
)
def test_a_sharded_checkpoint_generates_the_tokens_of_transformers(case, tmp_path):
    model = models.build(models.CASES[case]())
    model.save_pretrained(tmp_path, max_shard_size="500KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    check(LLM(tmp_path, **OPTIONS), model)


def test_a_bfloat16_checkpoint_run_in_float32_generates_the_tokens_of_transformers(tmp_path):
    model = models.build(models.llama(), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    check(LLM(tmp_path, dtype="float32", **OPTIONS), models.cast(model, torch.float32))


def test_a_sequence_outgrows_the_original_length_of_dynamic_rope():
    config = models.scaled("dynamic", factor=4.0, max_position_embeddings=32)
    model = models.build(config)
    llm = LLM.from_tensors(
        models.config_json(config), model.state_dict(), max_model_len=128, **OPTIONS
    )
    (prompt,) = models.prompts(config.vocab_size, [20])
    (output,) = llm.generate([prompt], GREEDY, use_tqdm=False)
    expected = model.generate(
        torch.tensor([prompt]), max_new_tokens=64, do_sample=False, eos_token_id=None
    )
    assert [*prompt, *output.outputs[0].token_ids] == expected[0].tolist()
