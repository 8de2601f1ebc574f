"""The frozen copy of a policy that its learner compares it with: a reference, or a magnet that follows it.

Pure torch. A rank keeps one whole copy (also at ZeRO stage 3, where the policy itself is cut) in the dtype of the
policy, so that equal weights have exactly equal log-probabilities: 4 bytes per parameter in float32, 2 in bfloat16
and 4 more for a moving average, which bfloat16 would round away. Weights that do not train are shared where they are
whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.methods import REFERENCES, LearnerConfigError
from configs.schema.run import Packing, ReferenceConfig
from learners.batches.batching import collate
from learners.batches.packing import split
from learners.types import Sample
from learners.weights import bucket_names

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

WEIGHTS = "reference.safetensors"
Gather = Callable[[list[Any]], AbstractContextManager[Any]]
"""Makes the parameters of a policy whole for as long as the context lasts."""


@REFERENCES.register("initial", source="arXiv 2009.01325")
def initial(step: int, config: ReferenceConfig) -> float:
    """The policy's weights at the start of the stage."""
    return float(step == 0)


@REFERENCES.register("previous", reads={"every"})
def previous(step: int, config: ReferenceConfig) -> float:
    """The policy's weights before the last step whose number is a multiple of `every`, from 0."""
    return float(step % config.every == 0)


@REFERENCES.register(
    "ema", reads={"decay"}, needs={"average"}, source="magnetic mirror descent, arXiv 2206.05825; arXiv 2606.23995"
)
def ema(step: int, config: ReferenceConfig) -> float:
    """w <- decay w + (1 - decay) policy, once per step after the first: a magnet that trails behind the policy."""
    return 1.0 if step == 0 else 1.0 - config.decay


class Reference:
    """A copy of `policy` and when it moves. `share`: parameters of the policy that do not train are not copied;
    only where nothing cuts them into slices afterwards."""

    def __init__(self, policy: nn.Module, config: ReferenceConfig, share: bool = False) -> None:
        kept = {id(p): p for p in policy.parameters() if share and not p.requires_grad}
        self.learned = [name for name, p in policy.named_parameters() if p.requires_grad]
        self.model = copy.deepcopy(policy, kept).requires_grad_(False).eval()
        self.config = config
        self.steps = 0
        """Learner steps so far. Before the first, the copy takes the policy's weights: a warm start may have moved
        them since it was made."""
        own = dict(self.model.named_parameters())
        self.weights: dict[str, Tensor] = {name: own[name].data for name in self.learned}
        if "average" in REFERENCES.needs(config.kind):
            self.weights = {name: weight.float() for name, weight in self.weights.items()}

    def advance(self, policy: nn.Module, gather: Gather = lambda _: nullcontext()) -> None:
        """Call at the start of every learner step, on all ranks: moves the copy as REFERENCES[config.kind] says."""
        import torch

        share: float = REFERENCES[self.config.kind](self.steps, self.config)
        self.steps += 1
        if share == 0.0:
            return
        theirs = dict(policy.named_parameters())
        for names in bucket_names((name, 4 * self.weights[name].numel()) for name in self.learned):
            with gather([theirs[name] for name in names]), torch.no_grad():
                for name in names:
                    self._move(name, theirs[name], share)

    def _move(self, name: str, theirs: Tensor, share: float) -> None:
        mine = self.weights[name]
        if share == 1.0:
            mine.copy_(theirs)
        else:
            mine.lerp_(theirs.to(mine.dtype), share)
        self._show(name)

    def _show(self, name: str) -> None:
        """The weights that are kept become those of the forward pass, in its dtype."""
        shown = self.model.get_parameter(name).data
        if shown.data_ptr() != self.weights[name].data_ptr():
            shown.copy_(self.weights[name])

    def logprobs(
        self, samples: Sequence[Sample], micro_tokens: int, packing: Packing = "none"
    ) -> list[list[float]]:
        """Log-probability of every loss token of `samples`, under the masks and temperatures of the policy's."""
        device = next(self.model.parameters()).device
        return token_logprobs(self.model, samples, micro_tokens, device, packing)

    def facts(self) -> dict[str, Any]:
        """What `load` compares and takes over, as JSON."""
        return {"kind": self.config.kind, "steps": self.steps}

    def save(self, folder: str | Path) -> None:
        """The kept weights, into an existing folder; nothing before the first step."""
        from safetensors.torch import save_file

        if self.steps:
            state = {name: weight.contiguous() for name, weight in self.weights.items()}
            save_file(state, Path(folder, WEIGHTS))

    def load(self, folder: str | Path, facts: Mapping[str, Any]) -> None:
        """Takes up, bit by bit, what `save` and `facts` left."""
        from safetensors.torch import load_file

        self.steps = int(facts["steps"])
        if not self.steps:
            return
        for name, saved in load_file(Path(folder, WEIGHTS)).items():
            self.weights[name].copy_(saved)
            self._show(name)


def check_saved(folder: str | Path, facts: Mapping[str, Any] | None, reference: Reference | None) -> None:
    """Raises LearnerConfigError unless the reference saved in `folder` (None: there was none) is of the same kind."""
    kind = reference and reference.config.kind
    if kind != (facts and facts["kind"]):
        was = f"reference {facts['kind']}" if facts else "no reference"
        raise LearnerConfigError(f"{folder}: saved with {was}, this learner has {kind or 'none'}")


def token_logprobs(
    forward: Callable[..., tuple[Tensor, ...]],
    samples: Sequence[Sample],
    micro_tokens: int,
    device: torch.device,
    packing: Packing = "none",
    at_least: int = 0,
    output: int = 0,
) -> list[list[float]]:
    """Log-probability of every loss token of every sample, without gradient, or what else the forward pass has as its
    `output`. `at_least`: forward passes, for ranks that have to keep step with others."""
    import torch

    parts, width = split(samples, micro_tokens, packing)
    found: list[list[float]] = [[] for _ in samples]
    with torch.no_grad():
        for i in range(max(len(parts), at_least)):
            batch = collate(samples, parts[i] if i < len(parts) else [], device, width)
            values_L = forward(**batch.inputs)[output]
            for owner, value in zip(batch.index_L.tolist(), values_L.tolist()):
                if owner >= 0:
                    found[owner].append(value)
    return found
