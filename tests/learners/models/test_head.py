"""Log-probabilities in chunks are those of torch's own softmax over everything at once, and so are their gradients."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.distributions import Categorical
from torch.utils._python_dispatch import TorchDispatchMode

from learners.models import head
from learners.models.head import head_logprobs

WIDTH, VOCABULARY = 5, 11


def plainly(
    hidden_LD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_L: Tensor,
    temperature_L: Tensor,
    legal: dict[int, list[int]],
) -> tuple[Tensor, Tensor]:
    """Row by row, with torch.distributions over the legal tokens alone."""
    logprobs, entropies = [], []
    for row, target in enumerate(targets_L.tolist()):
        logits_V = torch.nn.functional.linear(hidden_LD[row], weight_VD, bias_V).float() / temperature_L[row]
        allowed = sorted(legal.get(row, range(len(weight_VD))))
        drawn = Categorical(logits=logits_V[allowed])
        logprobs.append(drawn.log_prob(torch.tensor(allowed.index(target))))
        entropies.append(drawn.entropy())
    return torch.stack(logprobs), torch.stack(entropies)


def pairs(legal: dict[int, list[int]]) -> tuple[Tensor | None, Tensor | None]:
    if not legal:
        return None, None
    listed = [(row, token) for row in sorted(legal) for token in legal[row]]
    rows, tokens = zip(*listed)
    return torch.tensor(rows), torch.tensor(tokens)


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, dict[int, list[int]], list[int], list[float], bool, int]:
    length = draw(st.integers(1, 7))
    legal: dict[int, list[int]] = {}
    targets = []
    for row in range(length):
        allowed = list(range(VOCABULARY))
        if draw(st.booleans()):
            some = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=5, unique=True)
            allowed = legal[row] = draw(some)
        targets.append(draw(st.sampled_from(allowed)))
    temperatures = draw(st.lists(st.sampled_from([0.5, 1.0, 1.7]), min_size=length, max_size=length))
    return length, legal, targets, temperatures, draw(st.booleans()), draw(st.integers(1, 4))


@settings(max_examples=150, deadline=None)
@given(case=cases(), seed=st.integers(0, 1000), entropy_grad=st.booleans())
def test_values_and_gradients_are_torchs(case: Any, seed: int, entropy_grad: bool) -> None:
    length, legal, targets, temperatures, biased, rows = case
    generator = torch.Generator().manual_seed(seed)
    shapes = [(length, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,)]
    leaves = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    hidden_LD, weight_VD, bias_V = leaves
    bias = bias_V if biased else None
    weights_L, more_L = torch.randn(2, length, generator=generator)
    about = (torch.tensor(targets), torch.tensor(temperatures))

    def gradients(logprobs_L: Tensor, entropy_L: Tensor) -> list[Tensor]:
        loss = (weights_L * logprobs_L).sum()
        if entropy_grad:
            loss = loss + (more_L * entropy_L).sum()
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found)]

    expected = plainly(hidden_LD, weight_VD, bias, *about, legal)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "LOGIT_BYTES", {"cpu": 4 * VOCABULARY * rows})
        found = head_logprobs(hidden_LD, weight_VD, bias, *about, *pairs(legal), entropy_grad=entropy_grad)
        assert found[1].requires_grad == entropy_grad
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradients(*found), gradients(*expected), rtol=1e-4, atol=1e-5)


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("legal", [False, True])
def test_memory_does_not_grow_with_the_tokens(dtype: torch.dtype, legal: bool) -> None:
    """4,096 tokens of SmolLM2's vocabulary: 805 MB of float32 logits if they were made at once."""
    length, vocabulary, width = 4096, 49_152, 4
    hidden_LD = torch.randn(length, width, dtype=dtype, requires_grad=True)
    weight_VD = torch.randn(vocabulary, width, dtype=dtype, requires_grad=True)
    listed = pairs({row: [row, row + 1] for row in range(0, length, 2)} if legal else {})
    with Largest() as largest:
        logprobs_L, entropy_L = head_logprobs(
            hidden_LD, weight_VD, None, torch.arange(length), torch.ones(length), *listed, entropy_grad=True
        )
        (logprobs_L + entropy_L).sum().backward()
    assert largest.bytes <= head.LOGIT_BYTES["cpu"] <= 2**28


def test_legal_tokens_are_all_that_is_computed() -> None:
    hidden_LD, weight_VD = torch.randn(64, 4), torch.randn(50_000, 4)
    with Largest() as largest:
        legal = pairs({row: [7, 11, 49_999] for row in range(64)})
        logprobs_L, _ = head_logprobs(hidden_LD, weight_VD, None, torch.full((64,), 11), torch.ones(64), *legal)
    assert largest.bytes <= 4096, "logits of other tokens were made"
    expected_L = torch.log_softmax(hidden_LD @ weight_VD[[7, 11, 49_999]].T, -1)[:, 1]
    torch.testing.assert_close(logprobs_L, expected_L)


def test_bfloat16_gradients_do_not_round_at_every_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight's gradient is a sum over 512 tokens; added up in bfloat16, chunk by chunk, it would stop growing."""
    monkeypatch.setattr(head, "LOGIT_BYTES", {"cpu": 4 * VOCABULARY})  # one token to a chunk
    length = 512
    hidden_LD = torch.ones(length, WIDTH, dtype=torch.bfloat16)
    weight_VD = torch.zeros(VOCABULARY, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    logprobs_L, _ = head_logprobs(
        hidden_LD, weight_VD, None, torch.zeros(length, dtype=torch.long), torch.ones(length)
    )
    logprobs_L.sum().backward()
    expected_VD = torch.full((VOCABULARY, WIDTH), -length / VOCABULARY)
    expected_VD[0] += length
    assert weight_VD.grad is not None
    torch.testing.assert_close(weight_VD.grad.float(), expected_VD, rtol=1e-2, atol=0)
