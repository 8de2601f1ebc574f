"""From judgments to gradients: samples, advantages, losses, and the DeepSpeed ranks.

Importing this package registers every method that a `learner:` section can name (configs/methods.py). No torch yet.
"""

from configs.methods import ADVANTAGES, CORRECTIONS, LOSSES, REFERENCES, SIGNALS
from learners.credit import advantages, gae, signals, truth, turns
from learners.losses import policy_gradient, preference, scoring
from learners.models import reference

__all__ = [
    "ADVANTAGES", "CORRECTIONS", "LOSSES", "REFERENCES", "SIGNALS", "advantages", "gae", "policy_gradient",
    "preference", "reference", "scoring", "signals", "truth", "turns",
]  # fmt: skip
