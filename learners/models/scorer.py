"""Probabilities of one-token answers to very many short prompts, as fast as one process can.

For searches over all states of a judge (the exact value of a debate). Axes: N prompts, B of them in one
forward pass, T tokens, C choices, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 256
"""Prompts per forward pass on the CPU: larger ones leave the caches (measured, 14 tokens, 64 wide)."""


class ChoiceScorer:
    """A frozen causal LM in float32 in this process.

    No engine: no scheduling, no KV cache, no sampling. Prompts of equal length go through together, so nothing
    is padded, and the head is applied to the last position and the rows of the choices only. `threads`: torch
    threads; searches run faster as several processes of one thread each.
    """

    def __init__(
        self, model_dir: str | Path, device: str = "cpu", batch: int = BATCH, threads: int = 1
    ) -> None:
        import torch

        from learners.models.token_model import TokenModel, check_head, load_lm

        if device == "cpu":
            torch.set_num_threads(threads)
        self.device, self.batch = torch.device(device), batch
        lm = load_lm(model_dir, torch.float32).to(self.device)
        check_head(TokenModel(lm))
        self.base: Any = lm.base_model
        self.head: Any = lm.get_output_embeddings()
        self.limit = int(lm.config.get_text_config().max_position_embeddings)

    def score(self, prompts: Sequence[Sequence[int]], choices: Sequence[int | Sequence[int]]) -> np.ndarray:
        """Probability of each choice after each prompt, normalised over the choices: float64 [N, C].

        `choices`: token ids, or token sequences of length one; the same for all prompts. Raises ValueError for
        longer ones and for prompts that are empty or do not fit.
        """
        import torch

        answers = [choice if isinstance(choice, int) else _only(choice) for choice in choices]
        lengths_N = np.fromiter((len(prompt) for prompt in prompts), dtype=np.int64, count=len(prompts))
        if len(prompts) and not 1 <= lengths_N.min() <= lengths_N.max() <= self.limit:
            raise ValueError(
                f"prompts of {lengths_N.min()} to {lengths_N.max()} tokens: 1 to {self.limit} fit"
            )
        probs_NC = np.empty((len(prompts), len(answers)))
        with torch.inference_mode():
            for length in np.unique(lengths_N):
                index_K = np.flatnonzero(lengths_N == length)
                for start in range(0, len(index_K), self.batch):
                    index_B = index_K[start : start + self.batch]
                    tokens_BT = torch.tensor([prompts[i] for i in index_B], device=self.device)
                    probs_NC[index_B] = self._probs(tokens_BT, answers).cpu().numpy()
        return probs_NC

    def _probs(self, tokens_BT: Tensor, answers: list[int]) -> Tensor:
        import torch

        hidden_BD = self.base(input_ids=tokens_BT, use_cache=False).last_hidden_state[:, -1]
        bias = getattr(self.head, "bias", None)
        logits_BC = torch.nn.functional.linear(
            hidden_BD, self.head.weight[answers], None if bias is None else bias[answers]
        )
        return torch.softmax(logits_BC.double(), -1)


def _only(choice: Sequence[int]) -> int:
    if len(choice) != 1:
        raise ValueError(f"choice {list(choice)}: must be exactly one token")
    return choice[0]
