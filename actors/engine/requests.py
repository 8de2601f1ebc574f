"""Requests to vLLM: its own checks and preparations, once for each kind of request instead of every time.

`LLMEngine.add_request` checks the sampling parameters, fills in what the model says, and draws a name. That depends on
parameters and adapter alone, but for the prompt's length, and with a tiny model it is felt. Plays ask for few kinds: so
vLLM makes the first request of each, and later ones are copies of it with another prompt.
"""

from __future__ import annotations

import copy
import time
from typing import Any

KINDS = 4096
"""How many are remembered, as many as sampling parameters are (actors/engine/flight.py)."""


class Requests:
    """Adds requests to one vLLM LLMEngine that runs in this process."""

    def __init__(self, llm: Any):
        from vllm.inputs import tokens_input

        self._llm, self._tokens_input = llm, tokens_input
        self._vocab_size = llm.model_config.get_vocab_size()
        self._longest = llm.model_config.max_model_len - 1
        self._kinds: dict[tuple[int, int], tuple[Any, Any, Any]] = {}
        """Of parameters and adapter, by identity: both, kept so that nothing else can take their place in memory, and a
        request of vLLM's."""

    def add(self, name: str, prompt_ids: list[int], params: Any, lora: Any) -> None:
        """Queues a request. Raises what vLLM raises for one that it refuses, and ValueError for token ids beyond the
        vocabulary, which would kill vLLM."""
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
        """vLLM's EngineCoreRequest."""
        llm, prompt = self._llm, self._tokens_input(prompt_ids)
        return llm.input_processor.process_inputs(
            name, prompt, params, supported_tasks=llm.get_supported_tasks(), lora_request=lora
        )
