"""Adds requests to vLLM, which validates and prepares one request of each kind; later ones are copies of it.

`LLMEngine.add_request` validates the sampling parameters, fills in the model's defaults and draws a name: a
measurable cost for tiny models. Apart from the prompt's length the result depends on parameters and adapter only,
and plays use few combinations of these.
"""

from __future__ import annotations

import copy
import time
from typing import Any

KINDS = 4096
"""Prepared kinds to keep, as many as cached sampling parameters (actors/engine/generation.py)."""


class Requests:
    """The requests of one vLLM LLMEngine in this process."""

    def __init__(self, llm: Any):
        from vllm.inputs import tokens_input

        self._llm, self._tokens_input = llm, tokens_input
        self._vocab_size = llm.model_config.get_vocab_size()
        self._longest = llm.model_config.max_model_len - 1
        self._kinds: dict[tuple[int, int], tuple[Any, Any, Any]] = {}
        """(id of parameters, id of adapter) -> both, kept alive so that their ids stay unique, and a prepared
        request."""

    def add(self, name: str, prompt_ids: list[int], params: Any, lora: Any) -> None:
        """Queues a request named `name`. `params`: SamplingParams; `lora`: a LoRARequest or None. Raises
        VLLMClientError when vLLM refuses it, and ValueError for token ids outside the vocabulary, which would crash
        vLLM."""
        if prompt_ids and not 0 <= min(prompt_ids) <= max(prompt_ids) < self._vocab_size:
            raise ValueError(f"prompt has token ids outside the vocabulary of {self._vocab_size}")
        kind = self._kinds.get((id(params), id(lora)))
        if kind is None or not 0 < len(prompt_ids) <= self._longest:
            kind = (params, lora, self._prepared(name, prompt_ids, params, lora))
            if len(self._kinds) >= KINDS:
                self._kinds.clear()
            self._kinds[id(params), id(lora)] = kind
        request = copy.copy(kind[2])
        request.request_id = request.external_req_id = name
        request.prompt_token_ids, request.arrival_time = prompt_ids, time.time()
        request.sampling_params = copy.copy(request.sampling_params)
        self._llm.output_processor.add_request(request, None, None, 0)
        self._llm.engine_core.add_request(request)

    def _prepared(self, name: str, prompt_ids: list[int], params: Any, lora: Any) -> Any:
        """An EngineCoreRequest, validated by vLLM."""
        llm, prompt = self._llm, self._tokens_input(prompt_ids)
        return llm.input_processor.process_inputs(
            name, prompt, params, supported_tasks=llm.get_supported_tasks(), lora_request=lora
        )
