"""Rehearsals: whether a policy could learn anything is seen by playing the protocol, whatever its kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from configs.load import load, load_protocol, load_task_source
from configs.rehearsal import rehearse
from protocols.kinds.solve import Solve
from tests.support.config_files import CONFIGS, LAPTOP, mistakes

OPEN = """
  open:
    extends: [PROTOCOLS/debate_open.yaml]
    phases:
      - {name: answer, seats: [alice], moves: choices, commits: true, prompt: "Your answer is:"}
      - {name: solution, seats: [alice], prompt: "Go on:"}
      - {name: critique, seats: [bob], prompt: "Go on:"}
    judge: {votes: 0, retries: 0, max_tokens: null}
    rewards: [{name: win_logit}]
"""
GRADED = """
  graded: {extends: [PROTOCOLS/debate.yaml], judge: {grade: {of: claims}, max_tokens: 20}}
"""
PROVER = """
  prover: {extends: [PROTOCOLS/prover_verifier.yaml], max_tokens: 6}
"""
CORRECTOR = """
  corrector: {extends: [PROTOCOLS/corrector.yaml]}
"""
SELLER = """
  sale:
    extends: [PROTOCOLS/negotiation.yaml]
    prices: [2, 4]
    max_tokens: null
    rewards: [{name: game_result, to: [seller]}]
"""
TRUTH = "learner: {signal: {kind: truth}, loss: {kind: log_score}}"
ASKED = """
  asked:
    kind: phased
    seats: {alice: solver, judge: judge}
    sides: {alice: 0}
    prompts: {solver: {opening: "{{ question }}"}}
    phases: [{name: say, seats: [alice], prompt: "Go on:"}]
    judge: {seat: judge, view: transcript, when: end, prompt: "{{ a }} or {{ b }} {{ transcript }}"}
    rewards: [{name: win_logit}]
"""


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """A config of two policies, `one` and `two`, and a single protocol on toy questions."""

    def _config(protocol: str, roles: str, one: str = "", two: str = "", tasks: str = "{kind: toys}") -> Path:
        name = protocol.split(":")[0].strip()
        text = f"tasks: {tasks}\nprotocols:{protocol}policies:\n  one: {{{one}}}\n  two: {{{two}}}\n"
        text += f"stages:\n  main: {{protocol: {name}, roles: {roles}, plays_per_step: 8, repeats: 4}}\n"
        path = tmp_path / "c.yaml"
        path.write_text(text.replace("PROTOCOLS", str(CONFIGS / "protocol")))
        return path

    return _config


def test_seats_that_choose_their_side_are_paid_for_it(config: Callable[..., Path]) -> None:
    load(config(OPEN, "{solver: one, critic: one, judge: two}", "trained: true"), machine=LAPTOP)
    load(config(OPEN, "{solver: two, critic: one, judge: two}", "trained: true"), machine=LAPTOP)


def test_a_verifier_that_is_read_learns_from_the_truth_and_from_nothing_else(config: Callable[..., Path]) -> None:
    roles = "{prover: two, verifier: one}"
    load(config(PROVER, roles, f"trained: true, {TRUTH}"), machine=LAPTOP)
    [(key, error)] = mistakes(config(PROVER, roles, "trained: true")).items()
    assert key == "stages.main.roles" and "only asked for probabilities" in error.message


def test_a_judge_that_writes_grades_is_not_read(config: Callable[..., Path]) -> None:
    roles = "{debater: two, judge: one}"
    [(key, error)] = mistakes(config(GRADED, roles, f"trained: true, {TRUTH}")).items()
    assert key == "stages.main.roles" and "none of its roles is read" in error.message
    [(key, error)] = mistakes(config(GRADED, roles, "trained: true")).items()
    assert key == "stages.main.roles" and "no reward of protocol 'graded' is for its roles" in error.message


def test_a_rater_of_texts_has_no_right_answer_to_learn_from(config: Callable[..., Path]) -> None:
    roles = "{upstream: two, corrector: two, rater: one}"
    [error] = mistakes(config(CORRECTOR, roles, f"trained: true, {TRUTH}")).values()
    assert "to none of the questions that it is asked is a right answer known" in error.message


def test_a_reward_for_the_other_seat_trains_nobody(config: Callable[..., Path]) -> None:
    load(config(SELLER, "{seller: one, buyer: two}", "trained: true"), machine=LAPTOP)
    [error] = mistakes(config(SELLER, "{seller: two, buyer: one}", "trained: true")).values()
    assert "no reward of protocol 'sale' is for its roles" in error.message and "seller" in error.valid


def test_a_warm_start_that_no_teacher_could_play_is_refused_with_its_place(config: Callable[..., Path]) -> None:
    warm = "trained: true, warm_start: {steps: 3, protocol: corrector, roles: [corrector]}"
    path = config(CORRECTOR, "{upstream: two, corrector: one, rater: two}", warm)
    [(key, error)] = mistakes(path).items()
    assert key == "policies.one.warm_start.protocol" and error.where.endswith("c.yaml:5")
    assert "asked for free text whose right reply nobody knows" in error.message


def test_a_warm_start_of_turns_without_a_right_reply_is_refused(config: Callable[..., Path]) -> None:
    choose = ASKED.replace('prompt: "Go on:"', "moves: choices")
    warm = "trained: true, warm_start: {steps: 3, protocol: asked, roles: [solver, judge]}"
    load(config(choose, "{solver: one, judge: two}", warm), machine=LAPTOP)
    toys = load_task_source({"kind": "toys"})
    rater = load_protocol(CONFIGS / "protocol" / "corrector.yaml")
    assert rehearse(rater, toys, "warm").untaught == {"upstream", "corrector"}


def test_a_protocol_that_its_tasks_cannot_be_played_on_is_refused_before_the_run(config: Callable[..., Path]) -> None:
    path = config(ASKED, "{solver: one, judge: two}", "trained: true", tasks="{kind: lists, sampler: uniform}")
    [(key, error)] = mistakes(path).items()
    assert key == "stages.main.protocol" and "has 0 choices for the judge's 2 labels" in error.message


def test_what_is_seen_of_a_solver() -> None:
    seen = rehearse(Solve(name="solve"), load_task_source({"kind": "lists", "sampler": "uniform"}))
    assert seen.sampled == seen.paid == seen.free == seen.taught == seen.paired == {"solver"}
    assert seen.amounts == {"solver": {0.0, 1.0}} and seen.scored and not seen.read and not seen.refusal


def test_pairs_need_a_paid_turn_that_two_plays_come_to_alike(config: Callable[..., Path]) -> None:
    dpo = "trained: true, learner: {loss: {kind: dpo}}"
    late = ASKED.replace("phases: [", "phases: [{name: think, seats: [alice]}, ").replace(
        "rewards: [{name: win_logit}]", "rewards: [{name: format}]"
    )
    load(config(ASKED, "{solver: one, judge: two}", dpo), machine=LAPTOP)
    load(config(late, "{solver: one, judge: two}", dpo), machine=LAPTOP)
    society = "\n  society: {extends: [PROTOCOLS/decomposition.yaml]}\n"
    path = config(society, "{solver: one}", dpo)
    path.write_text(path.read_text().replace("  two: {}\n", ""))
    [error] = mistakes(path).values()
    assert "no two of its replies that are paid answer the same prompt" in error.message


def test_a_uniform_judge_makes_all_rewards_equal(config: Callable[..., Path]) -> None:
    [(key, error)] = mistakes(config(ASKED, "{solver: one, judge: two}", "trained: true", "kind: uniform")).items()
    assert key == "stages.main.roles.judge" and "all rewards would be equal" in error.message


def test_a_uniform_policy_cannot_write(config: Callable[..., Path]) -> None:
    roles = "{upstream: two, corrector: one, rater: one}"
    [(key, error)] = mistakes(config(CORRECTOR, roles, "trained: true", "kind: uniform")).items()
    assert key == "stages.main.roles.upstream" and "only picks among choices" in error.message
