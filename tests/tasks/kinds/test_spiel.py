"""OpenSpiel games as tasks: what is told against OpenSpiel's own information states, NashConv against brute force."""

from __future__ import annotations

import itertools
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from configs.load import load_protocol, load_task_source
from configs.reading.errors import ConfigErrors
from protocols.contract.drive import drive
from protocols.types import Reply, TurnRequest
from tasks.kinds import spiel
from tasks.kinds.spiel import OpenSpiel, SpielGame

KUHN = SpielGame("kuhn_poker")
PROTOCOLS = Path(__file__).resolve().parents[3] / "configs" / "protocol"


def anything(rng: random.Random) -> Callable[[TurnRequest], Reply]:
    return lambda request: Reply(rng.choice(request.choices))


def told(game: SpielGame) -> dict[tuple[int, str], set[str]]:
    """(player, text) -> OpenSpiel's names of the information states in which that text is told."""
    found = defaultdict(set)
    for position in game.positions():
        (player,) = position.movers()
        found[player, position.known(player)].add(position.state.information_state_string(player))
    return found


@pytest.mark.parametrize(
    ("name", "count"),
    [("kuhn_poker", 12), ("kuhn_poker(players=3)", 48), ("leduc_poker(suit_isomorphism=True)", 288)],
)
def test_texts_are_information_states(name: str, count: int) -> None:
    states = told(SpielGame(name))
    assert len(states) == count
    assert all(len(names) == 1 for names in states.values())
    assert len(set().union(*states.values())) == count
    assert len({text for _, text in states}) == count  # the text tells the player too


def test_kuhn_word_for_word() -> None:
    texts = {text for _, text in told(KUHN)}
    after = {"", " pass", " bet", " pass bet"}
    assert texts == {f"card {card}{moves}" for card in "JQK" for moves in after}


def test_leduc_tells_ranks_and_not_suits() -> None:
    """Every text stands for information states that differ in suits alone: as many as there are suits to give."""
    game = SpielGame("leduc_poker")
    states = told(game)
    assert len(states) == 288 and sum(map(len, states.values())) == 936
    assert "card J call raise call table Q raise" in {text for _, text in states}
    for (_, text), names in states.items():
        cards = text.split()
        pair = "table" in cards and cards[1] == cards[cards.index("table") + 1]
        assert len(names) == (2 if "table" not in cards or pair else 4)
    legal = defaultdict(set)
    for position in game.positions():
        (player,) = position.movers()
        legal[position.known(player)].add(position.legal(player))
    assert all(len(moves) == 1 for moves in legal.values())


def test_tic_tac_toe_word_for_word() -> None:
    state = SpielGame("tic_tac_toe").start(random.Random(0))
    for player, cell in ((0, "5"), (1, "1"), (0, "9")):
        state.apply({player: cell})
    assert state.known(1) == "you o board o 2 3 / 4 x 6 / 7 8 x"
    assert state.legal(1) == ("2", "3", "4", "6", "7", "8")
    for player, cell in ((1, "2"), (0, "4"), (1, "3")):
        state.apply({player: cell})
    assert state.over and state.returns() == (-1.0, 1.0)


def test_training_tasks_are_told_apart_by_their_draw_and_from_those_held_out() -> None:
    source = OpenSpiel()
    names = [source.train(random.Random(seed)).id for seed in range(50)]
    assert len(set(names)) == 50 and names[7] == source.train(random.Random(7)).id
    assert not set(names) & {task.id for task in source.heldout(50, 0)}
    assert len({source.train(random.Random(seed)).question for seed in range(9)}) == 1


@pytest.mark.parametrize("name", ["kuhn_poker", "leduc_poker", "tic_tac_toe"])
def test_a_tiny_vocabulary_holds_every_word(name: str) -> None:
    words, rng = set(OpenSpiel(name).words()), random.Random(0)
    for seed in range(30):
        task = OpenSpiel(name).train(rng)
        protocol = load_protocol(PROTOCOLS / "kuhn.yaml")
        trace = drive(protocol, task, seed, anything(rng))
        for request in trace.requests():
            said = [*(message.text for message in request.messages), *request.choices]
            assert {word for text in said for word in text.split()} <= words


def test_games_without_words_of_our_own() -> None:
    """A dice game, one with simultaneous moves, and one whose chance outcomes are public."""
    protocol = load_protocol(PROTOCOLS / "kuhn.yaml")
    for name in ("liars_dice(numdice=1,dice_sides=3)", "goofspiel(num_cards=3)", "matrix_mp"):
        source, rng = OpenSpiel(name), random.Random(0)
        assert source.problems() == [] and source.words()
        trace = drive(protocol, source.train(rng), 3, anything(rng))
        assert trace.outcome.status == "ok" and sum(r.value for r in trace.outcome.rewards) == 0


def test_deals_are_uniform_and_returns_are_the_game_s() -> None:
    """Betting into a caller: the higher card wins 2."""
    protocol, task = load_protocol(PROTOCOLS / "kuhn.yaml"), OpenSpiel().train(random.Random(0))
    deals: Counter[tuple[str, str]] = Counter()
    for seed in range(1200):
        trace = drive(protocol, task, seed, lambda request: Reply("bet"))
        first, second = trace.requests()
        assert second.messages[-1].text.endswith(" bet")
        cards = first.messages[-1].text.split()[1], second.messages[-1].text.split()[1]
        deals[cards] += 1
        wins = 2.0 if "JQK".index(cards[0]) > "JQK".index(cards[1]) else -2.0
        assert {r.seat: r.value for r in trace.outcome.rewards} == {"first": wins, "second": -wins}
    assert len(deals) == 6 and min(deals.values()) > 150  # 200 each; four standard deviations


# NashConv against a tree of Kuhn poker written down by hand


def value(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """What the first player wins. Each maps what the player knows to the probability that it bets."""
    total = 0.0
    for a, b in itertools.permutations("JQK", 2):
        wins = 1.0 if "JQK".index(a) > "JQK".index(b) else -1.0
        bet, call = first[f"card {a}"], second[f"card {b} bet"]
        raised, calls = second[f"card {b} pass"], first[f"card {a} pass bet"]
        after_bet = call * 2 * wins + (1 - call)
        after_pass = raised * (calls * 2 * wins - (1 - calls)) + (1 - raised) * wins
        total += (bet * after_bet + (1 - bet) * after_pass) / 6
    return total


MINE = {0: [f"card {c}{h}" for c in "JQK" for h in ("", " pass bet")],
        1: [f"card {c}{h}" for c in "JQK" for h in (" bet", " pass")]}  # fmt: skip


def brute(bets: Mapping[str, float]) -> float:
    """NashConv by trying all 64 pure strategies of each player."""
    pure = {p: [dict(zip(MINE[p], map(float, bits))) for bits in itertools.product((0, 1), repeat=6)] for p in MINE}
    best_first = max(value(strategy, bets) for strategy in pure[0])
    best_second = max(-value(bets, strategy) for strategy in pure[1])
    return best_first + best_second


def exact(bets: Mapping[str, float]) -> float:
    policy = {
        name: {"bet": bets[position.known(player)], "pass": 1 - bets[position.known(player)]}
        for name, (position, player) in KUHN.information_states().items()
    }
    return KUHN.nash_conv(policy)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=12, max_size=12))
def test_nash_conv_is_that_of_brute_force(chances: list[float]) -> None:
    bets = dict(zip(MINE[0] + MINE[1], chances))
    assert exact(bets) == pytest.approx(brute(bets), abs=1e-9)


def test_nash_conv_of_the_uniform_policy() -> None:
    assert exact(dict.fromkeys(MINE[0] + MINE[1], 0.5)) == pytest.approx(11 / 12)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1 / 3])
def test_nash_conv_of_kuhn_s_equilibria_is_zero(alpha: float) -> None:
    """Kuhn 1950: the first player may bluff with J as often as it likes up to 1/3, and bets K three times as often."""
    first = {"card J": alpha, "card Q": 0.0, "card K": 3 * alpha}
    called = {"card J pass bet": 0.0, "card Q pass bet": alpha + 1 / 3, "card K pass bet": 1.0}
    second = {"card J bet": 0.0, "card Q bet": 1 / 3, "card K bet": 1.0}
    passed = {"card J pass": 1 / 3, "card Q pass": 0.0, "card K pass": 1.0}
    bets = {**first, **called, **second, **passed}
    assert exact(bets) == pytest.approx(0.0, abs=1e-9)
    assert value(bets, bets) == pytest.approx(-1 / 18)


def test_what_is_too_large_or_not_in_turn_has_no_exact_value() -> None:
    assert KUHN.exact_problem() == ""
    assert SpielGame("leduc_poker").exact_problem() == ""
    assert "more than 100,000 positions" in SpielGame("tic_tac_toe").exact_problem()
    assert "at once" in SpielGame("matrix_mp").exact_problem()


def test_without_open_spiel_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    spiel.load_game.cache_clear()
    monkeypatch.setitem(sys.modules, "pyspiel", None)
    with pytest.raises(ConfigErrors, match=r"tasks\.game: OpenSpiel is not installed: pip install 'dissoi\[games\]'"):
        load_task_source({"kind": "open_spiel"})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("kuhn", "OpenSpiel has no game 'kuhn'; valid: kuhn_poker"),
        ("kuhn_poker(player=3)", "Unknown parameter 'player'"),
        ("mfg_crowd_modelling", "mean-field game"),
    ],
)
def test_unknown_games(name: str, says: str) -> None:
    ((key, message),) = OpenSpiel(name).problems()
    assert key == "game" and says in message


def test_held_out_plays_count_as_independent() -> None:
    source = OpenSpiel()
    tasks = source.derived_heldout(3, 0)
    assert len({source.cluster(task) for task in tasks}) == 3
    assert source.root("kuhn_poker").question == "Kuhn Poker"
    with pytest.raises(KeyError):
        source.root("leduc_poker")


def test_requests_of_a_protocol_are_those_of_its_plays() -> None:
    """`GamePlay.request`, by which NashConv reads a policy, asks what plays ask."""
    protocol, task = load_protocol(PROTOCOLS / "kuhn.yaml"), OpenSpiel().train(random.Random(0))
    seats = list(protocol.roles())
    asked: dict[str, TurnRequest] = {}
    for seed in range(200):
        trace = drive(protocol, task, seed, anything(random.Random(seed)))
        asked |= {request.situation: request for request in trace.requests()}
    for position, player in KUHN.information_states().values():
        request = protocol.request(task, position, player, seats[player])  # type: ignore[attr-defined]
        played = asked.pop(request.situation)
        assert (played.messages, played.choices, played.role) == (request.messages, request.choices, request.role)
    assert not asked
