"""The Python face: `LLM` reads a checkpoint, turns text into tokens and back, wraps the engine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pagedcore import _core
from pagedcore._core import InvalidArgument
from pagedcore.background import Background
from pagedcore.chat_template import ChatTemplate, Message
from pagedcore.checkpoint import Checkpoint, checkpoint_from_tensors, load_checkpoint
from pagedcore.config import model_config
from pagedcore.engine_options import engine_config, make_backend
from pagedcore.interrupts import interrupts_deferred
from pagedcore.live_request import Batch, LiveRequest
from pagedcore.outputs import RequestOutput
from pagedcore.prompts import Prompt, RequestSpec, as_prompt_list, as_spec_list, check_tokens
from pagedcore.quantization import check_quantization, make_weights
from pagedcore.sampling_params import SamplingParams, suggested_params, utf8_text, whole_number
from pagedcore.text import Tokenizer, eos_token_ids
from pagedcore.text_pieces import TextPieces

SHIPPED_MODEL = Path(__file__).parent / "shipped_model"
"""A small story-telling model that comes with the package."""


class LLM:
    """A language model and the engine that serves it. Thread-safe.

    Args:
        model: A folder with config.json, safetensors and tokenizer.json, or a Hugging Face hub id.
        dtype: "auto" (the checkpoint's own, nothing is copied), "float32", "float16", "bfloat16".
        quantization: "int8" or "int4" rounds the matrices of the layers when they are loaded, and
            lm_head to int8; the rounded weights are held in memory, on the CPU only. Checkpoints of
            GPTQ and AWQ need no option.
        quantization_group_size: Inputs that share a scale: a power of two from 32 to 1024; None:
            32. Larger ones take less memory and round more.
        device: "cpu", "cuda", "cuda:1" or "auto": CUDA where build and machine have it, else CPU.
        num_threads: Of the CPU backend; None: as many as this process may use.
        block_size: Tokens in a block of the KV cache; a power of two from 1 to 256.
        kv_cache_bytes: Size of the KV cache; 1 GiB where `num_blocks` is not given either.
        num_blocks: The same, in blocks.
        max_model_len: Longest prompt and output together, in tokens; None: what the model knows.
        max_num_seqs: Most sequences in one step.
        max_num_batched_tokens: Most tokens computed in one step; longer prompts are cut in chunks.
        enable_prefix_caching: Reuse the KV of prompts that begin alike.
        kv_dtype: Of the KV cache; None: the weights' dtype. "int8" (CPU): a scale a token and head.
        swap_space_bytes: Host memory to which preempted requests may move.
        preemption_mode: "recompute", "swap" or "auto" (the cheaper), under memory pressure.
        max_waiting: Longest queue of waiting requests; 0: any length.
        seed: Of requests whose sampling parameters have none.
        isa: Instruction set of the CPU kernels; None: PAGEDCORE_ISA, else the best there is.

    Attributes:
        engine: The engine underneath; hold `lock` to use it beside running calls.
        default_sampling_params: What the checkpoint's generation_config.json suggests; used where
            a call gives none.
        num_weights: Numbers in the checkpoint's tensors.
        weight_bytes: Bytes that they take, quantised where they are.
        tensors: Name to (dtype, shape) of the weights as the engine holds them.
        tokenizer: None for a model without tokenizer.json, which takes token ids only.
        on_step: Called after each step, with `lock` held; None: nothing.

    Raises:
        InvalidArgument: An argument or the checkpoint is wrong; the message says which and why.
        OutOfMemory: The KV cache could not be allocated.
        BackendUnavailable: `device` is "cuda", and the build or the machine has none.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        dtype: str = "auto",
        quantization: str | None = None,
        quantization_group_size: int | None = None,
        device: str = "auto",
        num_threads: int | None = None,
        block_size: int = 16,
        kv_cache_bytes: int | None = None,
        num_blocks: int | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 2048,
        enable_prefix_caching: bool = True,
        kv_dtype: str | None = None,
        swap_space_bytes: int = 0,
        preemption_mode: str = "recompute",
        max_waiting: int = 0,
        seed: int = 0,
        isa: str | None = None,
    ) -> None:
        config = engine_config(
            block_size=block_size,
            kv_cache_bytes=kv_cache_bytes,
            num_blocks=num_blocks,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            enable_prefix_caching=enable_prefix_caching,
            kv_dtype=kv_dtype,
            swap_space_bytes=swap_space_bytes,
            preemption_mode=preemption_mode,
            max_waiting=max_waiting,
            seed=seed,
        )
        backend = make_backend(device, num_threads, isa)
        check_quantization(quantization, quantization_group_size, backend)
        checkpoint = load_checkpoint(model, dtype)
        rounding = (quantization, quantization_group_size, num_threads)
        self._start(checkpoint, checkpoint.folder, backend, config, rounding)

    @classmethod
    def from_tensors(
        cls,
        config: Mapping[str, Any],
        tensors: Mapping[str, Any],
        *,
        tokenizer: str | os.PathLike[str] | None = None,
        dtype: str = "auto",
        quantization: str | None = None,
        quantization_group_size: int | None = None,
        device: str = "auto",
        num_threads: int | None = None,
        isa: str | None = None,
        **options: Any,
    ) -> LLM:
        """A model whose weights are in memory already; on the CPU they are used where they lie.

        Args:
            config: What config.json would hold.
            tensors: Name to numpy array or CPU torch tensor, named as in a checkpoint.
            tokenizer: Folder with tokenizer.json; None: the model takes token ids only.
            dtype: As for `LLM`; so are the further arguments and errors.
            quantization: As for `LLM`.
            quantization_group_size: As for `LLM`.
            device: As for `LLM`.
            num_threads: As for `LLM`.
            isa: As for `LLM`.
            options: The engine's options, as for `LLM`.
        """
        llm = cls.__new__(cls)
        backend = make_backend(device, num_threads, isa)
        check_quantization(quantization, quantization_group_size, backend)
        checkpoint = checkpoint_from_tensors(config, tensors, dtype)
        folder = None if tokenizer is None else Path(tokenizer)
        rounding = (quantization, quantization_group_size, num_threads)
        llm._start(checkpoint, folder, backend, engine_config(**options), rounding)
        return llm

    def _start(
        self,
        checkpoint: Checkpoint,
        folder: Path | None,
        backend: _core.Backend,
        config: _core.EngineConfig,
        rounding: tuple[str | None, int | None, int | None],
    ) -> None:
        tokenizer = None if folder is None else Background(Tokenizer.load, folder)
        model = model_config(checkpoint.config)
        weights = make_weights(model, checkpoint, *rounding)
        if backend.is_host:
            weights.fault_in()  # which takes about as long as the tokenizer, beside it
        self.tokenizer = None if tokenizer is None else tokenizer.result()
        self._name = str(folder) if folder else "the model"
        self._chat_template = (
            ChatTemplate.load(folder, self.tokenizer.config, self.tokenizer.special_tokens)
            if folder and self.tokenizer
            else None
        )
        config.eos_token_ids = eos_token_ids(
            checkpoint.config, checkpoint.generation_config, self.tokenizer
        )
        self.engine = _core.Engine(model, weights, backend, config)
        self.num_weights = checkpoint.num_weights
        self.tensors = weights.describe()
        self.weight_bytes = self.engine.memory_plan.weights_bytes
        self.default_sampling_params = suggested_params(checkpoint.generation_config)
        self.lock = threading.RLock()
        self.on_step: Callable[[], object] | None = None
        self._vocab_size = model.vocab_size
        self._live: dict[int, LiveRequest] = {}

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: int | Sequence[int] = 0,
        tenant: str | Sequence[str] = "",
        cache_salt: str | Sequence[str] = "",
    ) -> list[RequestOutput]:
        """Completes prompts, all in one batch.

        Args:
            prompts: A text, a list of token ids, or a list of either.
            sampling_params: One for all prompts or one each; None: `default_sampling_params`.
            use_tqdm: Show progress.
            priority: Lower runs first, and may preempt what runs; one for all prompts or one each.
            tenant: Whose quota a prompt counts against (`set_tenant_quota`); one or one each.
            cache_salt: Prompts reuse the KV only of those with the same salt; one or one each.

        Returns:
            One output a prompt, in their order.

        Raises:
            InvalidArgument: A prompt or a parameter is wrong; no prompt was started then.
            QueueFull: More than `max_waiting` requests would wait; no prompt was started then.
            KeyboardInterrupt: All prompts of this call were aborted; the engine goes on working.
        """
        items = as_prompt_list(prompts)
        params = sampling_params or self.default_sampling_params
        specs = as_spec_list(len(items), params, priority, tenant, cache_salt)
        return self._run(items, self._encode(items), specs, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: int | Sequence[int] = 0,
        tenant: str | Sequence[str] = "",
        cache_salt: str | Sequence[str] = "",
        **template_variables: Any,
    ) -> list[RequestOutput]:
        """Answers one conversation or several, written as the checkpoint's chat template says.

        Args:
            messages: Mappings with "role" and "content"; or a list of such lists.
            sampling_params: As for `generate`.
            use_tqdm: Show progress.
            priority: As for `generate`.
            tenant: As for `generate`.
            cache_salt: As for `generate`.
            template_variables: What the template may read, such as "tools".

        Raises:
            InvalidArgument: The model has no chat template, or as for `generate`.
            QueueFull: As for `generate`.
        """
        several = isinstance(messages, (list, tuple)) and all(
            isinstance(item, (list, tuple)) for item in messages
        )
        conversations = messages if several and messages else [messages]
        texts = [
            self.chat_prompt(cast(Sequence[Message], conversation), **template_variables)
            for conversation in conversations
        ]
        params = sampling_params or self.default_sampling_params
        specs = as_spec_list(len(texts), params, priority, tenant, cache_salt)
        token_ids = self._tokenizer_or_raise().encode(texts, add_special_tokens=False)
        return self._run(texts, token_ids, specs, use_tqdm)

    def stream(
        self,
        prompt: Prompt | None = None,
        sampling_params: SamplingParams | None = None,
        *,
        messages: Sequence[Message] | None = None,
        priority: int = 0,
        tenant: str = "",
        cache_salt: str = "",
    ) -> TextPieces:
        """Completes one prompt, or answers one conversation, piece by piece as the text comes.

        Args:
            prompt: A text or a list of token ids.
            sampling_params: With n = 1.
            messages: A conversation, instead of `prompt`.
            priority: As for `generate`.
            tenant: As for `generate`.
            cache_salt: As for `generate`.

        Returns:
            An iterator of pieces of text; closing it early ends the request.

        Raises:
            InvalidArgument: As for `generate`.
            QueueFull: As for `generate`.
        """
        tokenizer = self._tokenizer_or_raise()
        if (prompt is None) == (messages is None):
            raise InvalidArgument("stream needs either prompt or messages")
        params = sampling_params or self.default_sampling_params
        specs = as_spec_list(1, params, priority, tenant, cache_salt)
        if (n := specs[0].params.n) != 1:
            raise InvalidArgument(f"n must be 1 to stream, got {n}")
        if messages is not None:
            prompt = self.chat_prompt(messages)
            (token_ids,) = tokenizer.encode([prompt], add_special_tokens=False)
        else:
            (token_ids,) = self._encode([cast(Prompt, prompt)])
        batch = self._add([cast(Prompt, prompt)], [token_ids], specs)
        return TextPieces(batch, self.step_for, self.abort)

    def set_tenant_quota(self, tenant: str, num_blocks: int) -> None:
        """Lets the requests of a tenant together hold at most so many KV blocks; 0: no limit.

        Further ones wait, and those of other tenants pass them.

        Raises:
            InvalidArgument: `num_blocks` is negative or no whole number.
        """
        tenant, num_blocks = utf8_text("tenant", tenant), whole_number("num_blocks", num_blocks)
        with self.lock:
            self.engine.set_tenant_quota(tenant, num_blocks)

    def chat_prompt(self, messages: Sequence[Message], **template_variables: Any) -> str:
        """The text that the checkpoint's chat template makes of a conversation."""
        if self._chat_template is None:
            raise InvalidArgument(
                f"{self._name} has no chat template (in chat_template.jinja or "
                "tokenizer_config.json), so it cannot chat; use generate"
            )
        return self._chat_template.render(messages, **template_variables)

    def _encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Token ids of each prompt; an empty text stays empty, whatever tokens begin every text."""
        texts = [p for p in prompts if isinstance(p, str) and p]
        encoded = iter(self._tokenizer_or_raise().encode(texts) if texts else ())
        return [
            check_tokens(i, next(encoded) if isinstance(p, str) and p else p, self._vocab_size)
            for i, p in enumerate(prompts)
        ]

    def _tokenizer_or_raise(self) -> Tokenizer:
        if self.tokenizer is None:
            raise InvalidArgument(
                f"{self._name} has no tokenizer.json, so it takes no text; pass token ids, "
                "as in generate([[1, 2, 3]])"
            )
        return self.tokenizer

    def _run(
        self,
        prompts: Sequence[Prompt],
        token_ids: Sequence[list[int]],
        specs: Sequence[RequestSpec],
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        batch = self._add(prompts, token_ids, specs)
        try:
            self._serve(batch, use_tqdm)
        finally:
            self.abort(batch)
        return [request.result() for request in batch.requests]

    def _add(
        self,
        prompts: Sequence[Prompt],
        token_ids: Sequence[list[int]],
        specs: Sequence[RequestSpec],
    ) -> Batch:
        """Queues all prompts, or none where one is refused."""
        batch = Batch()
        try:
            with self.lock, interrupts_deferred():
                for i, (prompt, ids, spec) in enumerate(zip(prompts, token_ids, specs)):
                    request_id = self._add_one(i, ids, spec)
                    text = prompt if isinstance(prompt, str) else None
                    request = LiveRequest(batch, request_id, text, ids, spec.params, self.tokenizer)
                    self._live[request_id] = request
        except BaseException:
            self.abort(batch)
            raise
        return batch

    def _add_one(self, i: int, token_ids: list[int], spec: RequestSpec) -> int:
        if spec.params.stop_strings:
            self._tokenizer_or_raise()
        try:
            return self.engine.add_request(
                token_ids,
                spec.params.core,
                priority=spec.priority,
                tenant=spec.tenant,
                cache_salt=spec.cache_salt,
            )
        except InvalidArgument as error:
            raise InvalidArgument(f"prompts[{i}]: {error}") from None

    def _serve(self, batch: Batch, use_tqdm: bool) -> None:
        """Steps until the batch is finished; other live requests advance with it."""
        if use_tqdm:
            from pagedcore.progress import serve_with_bar

            serve_with_bar(batch, self.step_for)
        while batch.num_open:
            self.step_for(batch)

    def step_for(self, batch: Batch) -> None:
        """One step of the engine, unless another thread has finished the batch meanwhile.

        Gives every live request what the step added to it.
        """
        with self.lock, interrupts_deferred():
            if batch.num_open == 0:
                return
            for update in self.engine.step():
                request = self._live[update.request_id]
                request.apply(update, self.engine)
                if request.finished:
                    del self._live[update.request_id]
            if self.on_step is not None:
                self.on_step()

    def abort(self, batch: Batch) -> None:
        """Ends those requests of the batch that are not finished."""
        with self.lock, interrupts_deferred():
            for request in batch.requests:
                if self._live.pop(request.request_id, None) is not None:
                    self.engine.abort(request.request_id)
                    request.abort()
