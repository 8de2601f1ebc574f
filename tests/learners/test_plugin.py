"""A package outside the repository adds methods through the registries, and no file of ours changes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from configs.checks.learner import check_learner
from configs.methods import ADVANTAGES, LOSSES, REFERENCES, SIGNALS, needs_reference
from configs.reading.errors import ConfigErrors
from configs.schema.run import AdvantageConfig, LearnerConfig, LossConfig
from learners.batches.training_batch import build_training_batch
from learners.losses.policy_gradient import token_loss
from protocols.errors import UserError
from protocols.extension import load_plugins
from tests.support.config_files import mistakes, read, write as write
from tests.support.loss_inputs import micro_batch
from tests.support.sample_episodes import answers

PACKAGE = '''
from configs.methods import LOSSES, POLICY_GRADIENT, REFERENCES
from learners.credit.advantages import per_group

@per_group("above_the_worst", reads={"group_by"}, source="Doe 2026, section 3")
def above_the_worst(credits_G):
    """r - min of the group."""
    return credits_G - credits_G.min()

@LOSSES.register("squared", reads=POLICY_GRADIENT)
def squared(logprobs_L, batch, config):
    """(log p - A)^2"""
    return (logprobs_L - batch.advantages_L) ** 2, {}
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that the repository does not have; what it registers is taken out again afterwards."""
    folder = tmp_path / "packages" / "doe_methods"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(folder.parent))
    before = [(registry, dict(registry.entries)) for registry in (ADVANTAGES, SIGNALS, LOSSES, REFERENCES)]
    yield "doe_methods"
    for registry, entries in before:
        registry.entries = entries
    sys.modules.pop("doe_methods", None)


def test_an_estimator_of_another_package_is_checked_and_computes_advantages(
    plugin: str, write: Callable[..., Path]
) -> None:
    file = write(("kind: reinforce", "kind: above_the_worst"))
    with pytest.raises(ConfigErrors, match="there is no advantage 'above_the_worst'"):
        read(file, "stages.main.repeats=2")
    load_plugins([plugin])
    config = read(file, "stages.main.repeats=2", "stages.main.plays_per_step=4").config.policies["debater"].learner
    samples, _ = build_training_batch(answers((1, 2), [0.0, 0.5, 2.0], "a"), "p", config, {})
    assert [sample.advantages_L[0] for sample in samples] == [0.0, 0.5, 2.0]
    # What it declares is what the checks know of it: it compares members, and does not read `discount`.
    assert "groups of one: above_the_worst" in mistakes(file)["stages.main.repeats"].message
    wrong = mistakes(file, "stages.main.repeats=2", "stages.main.plays_per_step=4",
                     "policies.debater.learner.advantage={kind: above_the_worst, discount: 0.5}")  # fmt: skip
    assert "has no effect on the advantage 'above_the_worst'" in next(iter(wrong.values())).message


def test_a_loss_of_another_package_gets_what_policy_gradients_share(plugin: str) -> None:
    load_plugins([plugin])
    config = LossConfig("squared", entropy=0.5)
    check_learner(LearnerConfig(loss=config, advantage=AdvantageConfig("reinforce")), "cpu")
    assert not needs_reference(config)
    logprobs_L, advantages_L = torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 0.0])
    loss_L, _ = token_loss(logprobs_L, torch.tensor([0.2, 0.4]), micro_batch(logprobs_L, advantages_L), config)
    assert loss_L.tolist() == pytest.approx([4.0 - 0.1, 4.0 - 0.2])


def test_a_plugin_that_is_not_there_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="plugins: cannot import 'nowhere_to_be_found'"):
        load_plugins(["nowhere_to_be_found"])
