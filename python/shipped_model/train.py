"""Train the tokenizer and the model that pagedcore ships, and write them as a checkpoint.

The text comes from ``write_stories.py``. Every training batch is a function of the seed and the
number of its step, so a run can stop and resume, and no story is seen twice. Stories whose
checksum falls into one of fifty classes are held out: the training never sees them, and the
validation uses nothing else.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from chats import ASSISTANT_TOKEN, BEGIN_TOKEN, END_TOKEN, SYSTEM_TOKEN, USER_TOKEN
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from write_stories import StoryWriter

SPECIAL_TOKENS = [BEGIN_TOKEN, END_TOKEN, SYSTEM_TOKEN, USER_TOKEN, ASSISTANT_TOKEN]
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MAX_POSITIONS = 1024
HELD_OUT_CLASSES = 50
SHORTEST_HELD_OUT = 200
TOKENIZER_DOCUMENTS = 20_000
REPORT_STEPS = 100


@dataclass(frozen=True)
class Schedule:
    """How long and how fast the training goes."""

    steps: int
    tokens_per_step: int = 4096
    row_length: int = 512
    long_row_fraction: float = 0.15
    peak_learning_rate: float = 6e-3
    warm_up_steps: int = 100
    weight_decay: float = 0.05

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step: a linear warm-up and then a cosine to zero."""
        if step < self.warm_up_steps:
            return self.peak_learning_rate * (step + 1) / self.warm_up_steps
        progress = (step - self.warm_up_steps) / max(1, self.steps - self.warm_up_steps)
        return self.peak_learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)

    def row_length_of(self, step: int) -> int:
        """Return the row length of a step: the last steps use every position of the model."""
        is_long = step >= self.steps * (1 - self.long_row_fraction)
        return MAX_POSITIONS if is_long else self.row_length


def is_held_out(document: str) -> bool:
    """Return whether a document belongs to the validation set; short ones never do."""
    if len(document) < SHORTEST_HELD_OUT:
        return False
    return zlib.crc32(document.encode()) % HELD_OUT_CLASSES == 0


def documents(seed: str, held_out: bool) -> Iterator[str]:
    """Yield the documents of one seed that are, or are not, held out."""
    writer = StoryWriter()
    rng = random.Random(seed)
    while True:
        document = writer.document(rng)
        if is_held_out(document) == held_out:
            yield document


def train_tokenizer(vocabulary_size: int, seed: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer on generated documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    source = documents(f"{seed}/tokenizer", held_out=False)
    texts = (next(source) for _ in range(TOKENIZER_DOCUMENTS))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN_TOKEN} $A",
        pair=f"{BEGIN_TOKEN} $A {BEGIN_TOKEN} $B",
        special_tokens=[(BEGIN_TOKEN, tokenizer.token_to_id(BEGIN_TOKEN))],
    )
    return tokenizer


class Batches:
    """Makes batches of token rows; each row starts with a document and is cut at its end."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self.tokenizer = tokenizer
        self.seed = seed
        self.end_id = tokenizer.token_to_id(END_TOKEN)

    def batch(self, name: str, rows: int, row_length: int, held_out: bool = False) -> torch.Tensor:
        """Return the batch of this name: ``rows`` rows of ``row_length + 1`` token ids."""
        source = documents(f"{self.seed}/{name}", held_out)
        batch: list[list[int]] = []
        while len(batch) < rows:
            row: list[int] = []
            while len(row) <= row_length:
                row += [*self.tokenizer.encode(next(source)).ids, self.end_id]
            batch.append(row[: row_length + 1])
        return torch.tensor(batch)


def model_config(tokenizer: Tokenizer) -> LlamaConfig:
    """Return the shape of the shipped model."""
    return LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=192,
        intermediate_size=320,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BEGIN_TOKEN),
        eos_token_id=tokenizer.token_to_id(END_TOKEN),
    )


def row_loss(model: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Return the mean next-token loss in nats; no document attends to another one of its row."""
    inputs, targets = rows[:, :-1], rows[:, 1:]
    document = (inputs == model.config.bos_token_id).cumsum(dim=1)
    same_document = document[:, :, None] == document[:, None, :]
    mask = same_document.tril()[:, None]
    logits = model(input_ids=inputs, attention_mask=mask, use_cache=False).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


@torch.no_grad()
def validation_loss(model: LlamaForCausalLM, batches: Batches, rows: int, length: int) -> float:
    """Return the loss on rows of held-out documents."""
    held_out = batches.batch("validation", rows, length, held_out=True)
    losses = [row_loss(model, part.to(model.device)).item() for part in held_out.split(8)]
    return sum(losses) / len(losses)


def optimizers_for(model: LlamaForCausalLM, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the layers and AdamW for all other parameters."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        inside_layer = parameter.ndim == 2 and "embed_tokens" not in name
        (matrices if inside_layer else others).append(parameter)
    muon = torch.optim.Muon(
        matrices, weight_decay=schedule.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)]


def train(
    model: LlamaForCausalLM, batches: Batches, schedule: Schedule, state_file: Path
) -> dict[str, float]:
    """Train the model and return the measured figures.

    Args:
        model: The model to train, in place.
        batches: Source of the training and validation rows.
        schedule: Length and learning rates of the run.
        state_file: Where the run keeps its state; if the file exists, the run resumes from it.

    Returns:
        Mean training loss of the last steps in nats, and wall time in seconds.
    """
    optimizers = optimizers_for(model, schedule)
    losses: list[float] = []
    seconds = 0.0
    if state_file.exists():
        state = torch.load(state_file, map_location=model.device)
        model.load_state_dict(state["model"])
        for optimizer, optimizer_state in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(optimizer_state)
        losses, seconds = state["losses"], state["seconds"]
    for step in range(len(losses), schedule.steps):
        started = time.monotonic()
        length = schedule.row_length_of(step)
        rows = batches.batch(f"step {step}", schedule.tokens_per_step // length, length)
        with torch.autocast(model.device.type, dtype=torch.bfloat16):
            loss = row_loss(model, rows.to(model.device))
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = schedule.learning_rate(step)
            optimizer.step()
        losses.append(loss.item())
        seconds += time.monotonic() - started
        if len(losses) % REPORT_STEPS == 0:
            recent = sum(losses[-REPORT_STEPS:]) / REPORT_STEPS
            print(f"step {len(losses)} loss {recent:.4f} seconds {seconds:.0f}", flush=True)
            state = {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "losses": losses,
                "seconds": seconds,
            }
            torch.save(state, state_file)
    last_losses = losses[-REPORT_STEPS:]
    return {
        "steps": schedule.steps,
        "train_loss": sum(last_losses) / len(last_losses),
        "seconds": seconds,
    }


def write_checkpoint(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the model, its configuration and the tokenizer as a Hugging Face checkpoint."""
    model.to("cpu", torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
        max_new_tokens=300,
    )
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN_TOKEN,
        eos_token=END_TOKEN,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    settings_file = folder / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    settings["chat_template"] = CHAT_TEMPLATE
    settings_file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Train the shipped model and write its checkpoint."""
    default_folder = Path(__file__).parent.parent / "pagedcore" / "shipped_model"
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", type=Path, default=default_folder)
    parser.add_argument("--state", type=Path, default=Path("shipped_model_training.pt"))
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="where to train: cpu or cuda")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    tokenizer = train_tokenizer(arguments.vocabulary, arguments.seed)
    model = LlamaForCausalLM(model_config(tokenizer)).to(arguments.device)
    batches = Batches(tokenizer, arguments.seed)
    schedule = Schedule(arguments.steps)
    figures = train(model, batches, schedule, arguments.state)
    write_checkpoint(model, tokenizer, arguments.output)
    figures["parameters"] = sum(p.numel() for p in model.parameters())
    figures["validation_loss"] = validation_loss(model.eval(), batches, 64, schedule.row_length)
    figures["validation_perplexity"] = math.exp(figures["validation_loss"])
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
