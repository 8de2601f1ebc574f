"""Probabilities of one-token answers to very many short prompts, as fast as one process can.

For exhaustive searches over a judge's states (the exact minimax value of a debate). Prompts that share
beginnings share the work: within a chunk of the sorted prompts, keys and values of a common prefix are
computed once. Axes: N prompts, C choices, T tokens, P prefix tokens, U distinct prefixes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class ChoiceScorer:
    """A frozen causal LM in float32 on the CPU (or CUDA) of this process.

    `chunk`: prompts whose prefixes are shared with each other; bounds the memory (about chunk times prompt
    length times the size of a token's keys and values). `batch`: prompts per forward pass. `threads`: torch
    threads of this process, 0 leaves them alone.
    """

    def __init__(
        self, model_dir: str | Path, device: str = "cpu", batch: int = 1024, chunk: int = 65536, threads: int = 0
    ) -> None:
        import torch

        from learners.token_model import TokenModel, check_head, load_lm

        if threads:
            torch.set_num_threads(threads)
        self.device = torch.device(device)
        self.batch, self.chunk = batch, chunk
        lm = load_lm(model_dir, torch.float32).to(self.device)
        check_head(TokenModel(lm))
        self.base, self.head = lm.base_model, lm.get_output_embeddings()
        self.limit = int(lm.config.get_text_config().max_position_embeddings)

    def score(self, prompts: Sequence[Sequence[int]], choices: Sequence[Sequence[int]]) -> np.ndarray:
        """Probability of each choice after each prompt, normalised over the choices: float64 [N, C].

        `choices` are token sequences of length one, the same for all prompts. Raises ValueError for longer
        ones and for empty or too long prompts.
        """
        if not choices or any(len(choice) != 1 for choice in choices):
            raise ValueError(f"choices {list(choices)}: each must be exactly one token")
        answers = [choice[0] for choice in choices]
        lengths_N = np.fromiter((len(prompt) for prompt in prompts), dtype=np.int64, count=len(prompts))
        if len(prompts) and not 1 <= lengths_N.min() <= lengths_N.max() <= self.limit:
            raise ValueError(f"prompts of {lengths_N.min()} to {lengths_N.max()} tokens: 1 to {self.limit} fit")
        probs_NC = np.empty((len(prompts), len(answers)))
        for length in np.unique(lengths_N):
            index_K = np.flatnonzero(lengths_N == length)
            tokens_KT = np.array([prompts[i] for i in index_K], dtype=np.int64)
            probs_NC[index_K] = self.score_array(tokens_KT, answers)
        return probs_NC

    def score_array(self, tokens_NT: np.ndarray, answers: Sequence[int]) -> np.ndarray:
        """`score` for prompts of one length in an integer array [N, T]."""
        import torch

        probs_NC = np.empty((len(tokens_NT), len(answers)))
        order_N = np.lexsort(tokens_NT.T[::-1])
        columns_C = torch.tensor(list(answers), device=self.device)
        with torch.inference_mode():
            head_CD = self.head.weight[columns_C]
            bias_C = self.head.bias[columns_C] if getattr(self.head, "bias", None) is not None else None
            for start in range(0, len(order_N), self.chunk):
                index_K = order_N[start : start + self.chunk]
                hidden_KD = self._last_hidden(tokens_NT[index_K])
                logits_KC = torch.nn.functional.linear(hidden_KD, head_CD, bias_C)
                probs_NC[index_K] = torch.softmax(logits_KC.double(), -1).cpu().numpy()
        return probs_NC

    def _last_hidden(self, tokens_NT: np.ndarray) -> Tensor:
        """Hidden state after the last token of each prompt [N, D]; `tokens_NT` is sorted."""
        import torch

        cut = best_cut(tokens_NT)
        cache, inverse_N = self._prefixes(tokens_NT[:, :cut])
        tails_NT = torch.from_numpy(tokens_NT[:, cut:]).to(self.device)
        found = []
        for start in range(0, len(tails_NT), self.batch):
            piece = slice(start, start + self.batch)
            hidden, _ = self._run(tails_NT[piece], _pick(cache, inverse_N[piece]), keep=False)
            found.append(hidden[:, -1])
        return torch.cat(found)

    def _prefixes(self, prefixes_NP: np.ndarray) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Keys and values of the distinct prefixes [U, heads, P, width] per layer, and each row's place
        among them. Longer prefixes build on the keys and values of shorter ones."""
        import torch

        length = prefixes_NP.shape[1]
        if length == 0:
            return [], torch.zeros(len(prefixes_NP), dtype=torch.long, device=self.device)
        new_N = np.ones(len(prefixes_NP), dtype=bool)
        new_N[1:] = (prefixes_NP[1:] != prefixes_NP[:-1]).any(1)
        inverse_N = torch.from_numpy(np.cumsum(new_N) - 1).to(self.device)
        distinct_UP = prefixes_NP[new_N]
        cut = best_cut(distinct_UP)
        shorter, inverse_U = self._prefixes(distinct_UP[:, :cut])
        tails_UT = torch.from_numpy(distinct_UP[:, cut:]).to(self.device)
        pieces = []
        for start in range(0, len(tails_UT), self.batch):
            piece = slice(start, start + self.batch)
            pieces.append(self._run(tails_UT[piece], _pick(shorter, inverse_U[piece]), keep=True)[1])
        layers = [(torch.cat([p[i][0] for p in pieces]), torch.cat([p[i][1] for p in pieces])) for i in range(len(pieces[0]))]
        return layers, inverse_N

    def _run(self, tokens_BT: Tensor, past: list[tuple[Tensor, Tensor]], keep: bool) -> tuple[Tensor, Any]:
        """Hidden states of `tokens_BT` after `past`, and with `keep` the keys and values of both."""
        from transformers import DynamicCache

        if not past and not keep:
            return self.base(input_ids=tokens_BT, use_cache=False).last_hidden_state, None
        cache = DynamicCache(past) if past else DynamicCache()
        out = self.base(input_ids=tokens_BT, past_key_values=cache, use_cache=True)
        return out.last_hidden_state, [(layer.keys, layer.values) for layer in cache.layers] if keep else None


def best_cut(tokens_NT: np.ndarray) -> int:
    """Where to cut sorted rows so that distinct prefixes plus all tails hold the fewest tokens (the last
    token always stays in the tail); 0 when cutting saves less than a third."""
    rows, length = tokens_NT.shape
    if rows == 0:
        return 0
    changed_NT = np.logical_or.accumulate(tokens_NT[1:] != tokens_NT[:-1], axis=1)
    distinct_T = 1 + changed_NT.sum(0)
    costs = [rows * length] + [int(distinct_T[cut - 1]) * cut + rows * (length - cut) for cut in range(1, length)]
    cut = int(np.argmin(costs))
    return cut if costs[cut] * 3 < rows * length * 2 else 0


def _pick(cache: list[tuple[Tensor, Tensor]], rows_B: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(keys.index_select(0, rows_B), values.index_select(0, rows_B)) for keys, values in cache]
