"""Audits: a share of the tasks of a stage is answered by policies that do not learn there, to see whether the tasks'
right answers are. What they find is recorded and told to the guards; it trains nobody and costs nobody a reward.

An auditor errs too. On real tasks its disagreement is its own error rate: what proposed tasks have more than that is
theirs.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace

from actors.players.base import Seated
from actors.rollout.ledger import Ledger
from actors.rollout.runner import run_play
from actors.serving.messages import EngineLost
from configs.schema.run import AuditConfig, StageConfig
from protocols.base import Protocol
from protocols.types import EXAMPLE, PROPOSAL, Episode, InvalidProposal, Task, VerifierError


class Audit:
    """The audits of one stage. They run beside its plays, and no step waits for them."""

    def __init__(
        self, stage: str, config: AuditConfig, protocol: Protocol, players: Mapping[str, Seated], ledger: Ledger,
        seed: int,
    ):  # fmt: skip
        self.stage, self.config, self.protocol = stage, config, protocol
        self.players, self.ledger, self.seed = players, ledger, seed
        self.counts: Counter[str] = Counter()
        """audits: with a result; audits_failed: unreadable, lost, or of a task that cannot be told."""
        self._disagreed: dict[str, list[float]] = defaultdict(list)
        """Origin of the task -> 1 less the score of each audit since the last metrics."""
        self._running: set[asyncio.Task[None]] = set()

    def begin(self, root: Episode, task: Task, proposal: str, origin: str, number: int = 0) -> None:
        """Audits the task that came of a root play, if it is one of the share. `task`: the root task;
        `number`: of the proposal, where the play made several."""
        of = f"/{number}" if number else ""
        rng = random.Random(f"{self.seed}/{self.stage}/audit/{root.meta['index']}{of}")
        if rng.random() < self.config.share:
            audit = self._audit(f"audit-{root.id}{of}", root, task, proposal, origin, rng.randrange(2**63))
            running = asyncio.ensure_future(audit)
            self._running.add(running)
            running.add_done_callback(self._running.discard)

    async def _audit(self, id: str, root: Episode, task: Task, proposal: str, origin: str, seed: int) -> None:
        assert task.domain is not None
        hidden = {name: one for name, one in task.hidden.items() if name not in (PROPOSAL, EXAMPLE)}
        try:
            derived = task.domain.derive(replace(task, hidden=hidden), proposal)
            if id in self.ledger.restored:
                play = self.ledger.recall(id)
            else:
                meta = {"arm": f"audit@{self.stage}", "audits": root.id, "origin": origin}
                play = await run_play(self.protocol, derived, seed, self.players, id, meta=meta)
                self.ledger.commit(id, play, train=False)
        except (EngineLost, InvalidProposal, VerifierError):
            self.counts["audits_failed"] += 1
            return
        outcome = play[0].outcome
        if outcome.status != "ok" or outcome.score is None:
            self.counts["audits_failed"] += 1
            return
        self.counts["audits"] += 1
        self._disagreed[origin].append(1.0 - outcome.score)

    def metrics(self) -> dict[str, float]:
        """audit_disagreement/ORIGIN: mean over the audits that ended since the last call; and how many so far."""
        found = {name: float(self.counts[name]) for name in ("audits", "audits_failed")}
        found |= {f"audit_disagreement/{origin}": sum(s) / len(s) for origin, s in self._disagreed.items()}
        self._disagreed.clear()
        return found

    async def stop(self) -> None:
        """Ends the audits under way: they count as failed."""
        ending = list(self._running)
        for one in ending:
            one.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        self.counts["audits_failed"] += len(ending)


def audit_of(
    name: str, stage: StageConfig, protocols: Mapping[str, Protocol],
    players: Callable[[Mapping[str, str]], Mapping[str, Seated]], ledger: Ledger, seed: int,
) -> Audit | None:  # fmt: skip
    """The audits that a stage asks for. `players`: role -> policy to role -> who plays it."""
    config = stage.audit
    if config is None:
        return None
    return Audit(name, config, protocols[config.protocol], players(config.roles), ledger, seed)
