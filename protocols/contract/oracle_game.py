"""What a play of the kind `game` must look like, worked out from the YAML and the marker game alone.

The oracle plays the game along with a trace. What was drawn, by chance or for a seat whose moves were illegal, it finds
in what was said later. Shares no code with `protocols/kinds/game.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from protocols.contract.drive import Trace
from protocols.contract.game import CARDS, SECRET, MarkerGame, MarkerState
from protocols.contract.text import Raw, fill, pairs, quoted
from protocols.types import Outcome, Reply, Task, TurnRequest

Said = tuple[TurnRequest, Reply]


class GameOracle:
    """Feed it a trace; `found` lists what is wrong."""

    def __init__(self, raw: Raw, task: Task) -> None:
        assert isinstance(task.game, MarkerGame)
        self.raw, self.task, self.game = raw, task, task.game
        self.state = MarkerState(task.game)
        self.found: list[str] = []
        self.later: list[str] = []
        """Everything that is said to players from the current yield on."""
        self.chats: dict[str, list[tuple[str, str]]] = {}
        self.turns: dict[str, int] = dict.fromkeys(raw["seats"], 0)
        self.rejected: list[tuple[str, int]] = []
        self.forfeited: list[str] = []
        self.moves = 0
        self.situations: dict[str, tuple[object, ...]] = {}
        self.guesses = [self.state.past]
        """Histories that agree with what was said: several where a draw is told to nobody."""

    def run(self, trace: Trace) -> list[str]:
        self.rest: list[list[Any]] = list(trace.rounds)
        self.seats = self._seated()
        if not self.found:
            self._play()
        if self.rest and not self.found:
            self.found.append("play went on after its end")
        self._outcome(trace.outcome)
        return self.found

    def _seated(self) -> list[str]:
        """player -> seat, told by the card that the seat is shown first. In fixed order, as the YAML lists them."""
        first: dict[str, str] = {}
        for asks in self.rest:
            for ask, _ in asks:
                first.setdefault(ask.seat, "\n".join(message.text for message in ask.messages))
        found = []
        for player in range(self.game.seats):
            cards = [self.game.card(player, outcome) for outcome in range(CARDS)]
            slots = [seat for seat, text in first.items() if any(card in text for card in cards)]
            if len(slots) != 1:
                self.found.append(f"the card of player {player} is shown to {slots}")
            found += slots
        if not self.found and self.raw.get("order", "fixed") == "fixed" and found != [*self.raw["seats"]]:
            self.found.append(f"players are {found}, not in the order of seats")
        return found

    def _play(self) -> None:
        while not self.state.over and not self.forfeited and self.moves < self.raw.get("max_moves", 1000):
            self.later = [ask.messages[-1].text for asks in self.rest for ask, _ in asks]
            if self.state.chances():
                what, players = self.state._nodes[self.state.node]
                player = players[0] if what == "deal" else None
                drawn = [i for i in range(CARDS) if any(self.game.card(player, i) in t for t in self.later)]
                self.state.draw(drawn[0] if drawn else 0)
            elif not self._node():
                return

    def _node(self) -> bool:
        """Everybody's move at one node. False where the play does not go as it must."""
        open_, tries = list(self.state.movers()), dict.fromkeys(self.state.movers(), 0)
        reasons: dict[int, str] = {}
        chosen: dict[int, list[str]] = {}
        while open_ and not self.forfeited:
            if not self.rest:
                self.found.append(f"play ended before the move of {[self.seats[p] for p in open_]}")
                return False
            got: list[Said] = self.rest.pop(0)
            if [ask.seat for ask, _ in got] != [self.seats[player] for player in open_]:
                self.found.append(f"asked {[ask.seat for ask, _ in got]}, not players {open_}")
                return False
            for player, (request, reply) in zip(list(open_), got):
                self._request(player, request, reasons.get(player, ""), tries[player])
                self.chats[request.seat] = [*pairs(request), ("assistant", reply.text)]
                self.turns[request.seat] += 1
                said, legal = reply.text.strip(), self.state.legal(player)
                if said in legal:
                    chosen[player] = [said]
                    open_.remove(player)
                    continue
                self.rejected.append((request.seat, request.turn))
                reasons[player], tries[player] = f"{said[:40]!r} is not legal", tries[player] + 1
                if tries[player] > self.raw.get("retries", 0):
                    open_.remove(player)
                    if self.raw.get("illegal", "forfeit") == "forfeit":
                        self.forfeited.append(request.seat)
                    else:
                        chosen[player] = list(legal)
        if not self.forfeited:
            self._move(chosen)
        return True

    def _move(self, chosen: Mapping[int, Sequence[str]]) -> None:
        """Moves that were drawn are the ones that somebody is told of later."""
        later = [ask.messages[-1].text for asks in self.rest for ask, _ in asks]
        moves, open_ends = {}, []
        for player, candidates in chosen.items():
            told = [move for move in candidates if any(f"p{player} {move}" in text for text in later)]
            moves[player] = (told or list(candidates))[0]
            if not told and len(candidates) > 1:
                open_ends.append((player, candidates))
        self.moves += len(moves)
        past = list(self.state.past)
        self.state.apply(moves)
        self.guesses = [self.state.past]
        for player, candidates in open_ends:  # the last move of all: nobody is asked after it
            self.guesses = [[*past, sorted({**moves, player: move}.items())] for move in candidates]

    def _request(self, player: int, request: TurnRequest, reason: str, tries: int) -> None:
        seat, state, raw = request.seat, self.state, self.raw
        legal, chat_view = state.legal(player), raw.get("view", "state") == "chat"
        values = {"question": self.task.question, "player": str(player), "seat": seat, "role": raw["seats"][seat]}
        system = fill(raw.get("system", ""), values)
        begin = [("system", system)] if system else []
        shown = "" if chat_view and reason else state.news(player) if chat_view else state.known(player)
        values |= {"state": shown, "quoted": quoted(shown), "moves": ", ".join(legal)}
        text = fill(raw.get("prompt", "{{ state }}"), values).strip()
        if reason:
            default = "{{ reason }}; legal moves: {{ moves }}"
            notice = fill(raw.get("rejected", default), {"reason": reason, "moves": ", ".join(legal)})
            text = notice if chat_view else f"{text}\n\n{notice}"
        chat = [*(self.chats.get(seat, begin) if chat_view else begin), ("user", text)]
        if pairs(request) != chat:
            self.found.append(f"{seat} (player {player}) read {pairs(request)}, not {chat}")
        expected = (legal, raw.get("enforce", True), not chat_view, self.turns[seat], False, raw["seats"][seat])
        got = (request.choices, request.enforce, request.fresh, request.turn, request.read, request.role)
        if got != expected:
            self.found.append(f"{seat}: (choices, enforce, fresh, turn, read, role) are {got}, not {expected}")
        if (request.max_tokens, request.temperature) != (raw.get("max_tokens"), raw.get("temperature")):
            self.found.append(f"{seat} has other limits than the file's")
        self._secrets(player, request)
        infoset = (state.known(player),) if raw.get("situation", "infoset") == "infoset" else ()
        key = (player, *infoset, tries)
        if self.situations.setdefault(request.situation, key) != key or request.situation == "":
            self.found.append(f"{seat}: situation {request.situation!r} means two things")
        if sum(known == key for known in self.situations.values()) != 1:
            self.found.append(f"{seat}: {key} has two situations")

    def _secrets(self, player: int, request: TurnRequest) -> None:
        """What the others hold, and what was done in secret, stands nowhere in the chat."""
        told = "\n".join(message.text for message in request.messages if message.speaker != "assistant")
        held = {self.game.card(p, i) for p in range(self.game.seats) for i in range(CARDS) if p != player}
        secret = next(n for n, (what, _) in enumerate(self.state._nodes) if what == "secret")
        if player != 0:
            held |= {f"p0 {move}" for move in self.game.moves(0, secret)}
        for mark in sorted(held):
            if mark in told:
                self.found.append(f"{request.seat} (player {player}) is shown {mark}, which is another's secret")
        if player != 0 and self.state.node > secret and SECRET not in told:
            self.found.append(f"{request.seat} did not hear of the secret move")

    def _outcome(self, outcome: Outcome) -> None:
        if self.found:
            return
        if not self.state.over and not self.forfeited:
            if outcome.status != "invalid":
                self.found.append("a game that was too long counts")
            return
        options = [self._paid(past) for past in self.guesses]
        got = sorted((r.seat, -1 if r.turn is None else r.turn, round(r.value, 9), r.name) for r in outcome.rewards)
        if outcome.status != "ok" or got not in [paid for paid, _ in options]:
            self.found.append(f"{outcome.status}, paid {got}, not {options[0][0]}")
        elif outcome.score not in [score for paid, score in options if paid == got]:
            self.found.append(f"score {outcome.score} where {got} was paid")

    def _paid(self, past: Sequence[object]) -> tuple[list[tuple[str, int, float, str]], float | None]:
        """(rewards, score) of a play with that history."""
        terms = self.raw.get("rewards", [{"name": "game_return"}])
        paid = []
        for term in terms:
            weight, params = term.get("weight", 1.0), term.get("params", {})
            if term["name"] == "game_return":
                returns = self._returns(past, params.get("forfeit", 1.0))
                paid += [(seat, -1, round(weight * value, 9), "game_return") for seat, value in returns.items()]
            if term["name"] == "illegal":
                paid += [(seat, turn, -weight, "illegal") for seat, turn in self.rejected]
        seat = self.raw.get("score", "")
        plain = {**dict.fromkeys(self.seats, 0.0), **self._returns(past, 1.0)}
        ahead = [plain[seat] - value for other, value in plain.items() if other != seat] if seat else []
        score = None if not ahead else 1.0 if min(ahead) > 0 else 0.5 if min(ahead) == 0 else 0.0
        return sorted(paid), score

    def _returns(self, past: Sequence[object], forfeit: float) -> dict[str, float]:
        if not self.forfeited:
            return dict(zip(self.seats, map(float, self.game.returns(past))))
        others = [seat for seat in self.seats if seat not in self.forfeited]
        if not others:
            return {}
        share = forfeit * len(self.forfeited) / len(others)
        return {seat: -forfeit if seat in self.forfeited else share for seat in self.seats}
