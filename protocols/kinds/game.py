"""The kind `game`: seats play, in words, a game whose formal rules the task carries (`Task.game`).

The rules say whose move it is, which moves are legal, what each player knows and what the end pays; chance is drawn
from the play's own randomness. This file says how that becomes requests, and what becomes of a move that is not legal.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from protocols.base import Ask, Play, Protocol
from protocols.chat import Chat, as_reply, fresh_chat
from protocols.errors import UserError
from protocols.rewards.record import Move, Record, RewardTerm
from protocols.rewards.registry import REWARDS, pay, reward_problems
from protocols.templates import literals, names, quote, render, template_problems
from protocols.types import GameState, IllegalMove, Message, Outcome, Reply, Task, TurnRequest, VerifierError

JOINER = "\n\n"
"""Between what a seat knows and the notice that its move was not legal."""


@dataclass(frozen=True)
class GamePlay(Protocol):
    """Outcome.score: see `score`. A game that somebody forfeits has ended; one that is too long is `invalid`."""

    kind: ClassVar[str] = "game"
    seats: dict[str, str]
    """seat -> role, in the order of the game's players."""
    order: Literal["fixed", "shuffled"] = "fixed"
    """fixed: the first seat is player 0. shuffled: who is which player is drawn for the play."""
    system: str = ""
    """Names: question, player, seat, role."""
    prompt: str = "{{ state }}"
    """Asks for a move. Names: state (what the seat knows of the game), quoted (that, with every line marked), moves
    (the legal ones), question, player (its number in the game, from 0), seat, role."""
    view: Literal["state", "chat"] = "state"
    """state: a fresh chat for every move, which shows all that the seat knows: in equal information states the
    prompts are equal. chat: one chat that grows, in which `state` is what the seat has not been told yet."""
    enforce: bool = True
    """Decoding is limited to the legal moves. false: written freely and verified afterwards."""
    rejected: str = "{{ reason }}; legal moves: {{ moves }}"
    """What a seat is told of a move that is not legal. Names: reason, moves."""
    retries: int = 0
    """enforce: false. How often a seat may try again, for each of its moves."""
    illegal: Literal["forfeit", "random"] = "forfeit"
    """After the last try. forfeit: the game ends and the seat has lost it (the reward `game_return` says what that
    costs). random: a legal move is drawn for the seat; the reward `illegal` can fine it."""
    situation: Literal["infoset", "seat"] = "infoset"
    """What rewards are compared within besides task, role and turn (`advantage.group_by`, `baseline_by`). infoset:
    moves made with the same knowledge, which needs few enough information states that plays share. seat: those of
    the same player."""
    max_moves: int = 1000
    """A game that is not over after so many moves is missing data."""
    score: str = ""
    """The seat whose success is the score of a play: 1 where it is paid most, 0.5 where another is paid as much, else
    0. Empty: plays have no score."""
    rewards: list[RewardTerm] = field(default_factory=lambda: [RewardTerm("game_return")])
    zero_sum: bool = False
    """A promise, held to in every play: the rewards sum to 0. The game must keep it too."""
    max_tokens: int | None = None
    temperature: float | None = None
    name: str = ""

    def play(self, task: Task, rng: random.Random) -> Play:
        if problem := self.unplayable(task):
            raise UserError(f"protocol {self.name}: {problem}")
        match = Match(self, task, rng)
        while match.goes_on():
            while asks := match.ask():
                match.take([as_reply(answer) for answer in (yield asks)])
            match.move()
        return match.outcome()

    def request(self, task: Task, state: GameState, player: int, seat: str) -> TurnRequest:
        """What a seat is asked in a position where that player moves, at its first turn and first try. With
        view: state, nothing but turn number differs at later ones."""
        values = self._values(task, state.known(player), state.legal(player), player, seat)
        chat = fresh_chat(render(self.system, values), render(self.prompt, values).strip())
        return self._request(chat, state, player, seat, 0, "")

    @property
    def success(self) -> str:
        return f"{self.score} wins" if self.score else "score"

    def roles(self) -> Mapping[str, str]:
        return self.seats

    def unplayable(self, task: Task) -> str:
        if task.game is None:
            return f"task {task.id} is no game: the kind game needs tasks that are (open_spiel, textarena)"
        if task.game.players != len(self.seats):
            return f"{task.id} has {task.game.players} players, and there are {len(self.seats)} seats"
        return ""

    def exact_problem(self) -> str:
        """Why the policies of its seats cannot be read in every information state; empty where they can."""
        if self.view != "state" or not self.enforce:
            return "its NashConv needs view: state and enforce: true"
        return "" if self.order == "fixed" else "its NashConv needs order: fixed"

    def problems(self) -> list[tuple[str, str]]:
        found = [] if self.seats else [("seats", "needs a seat for each player of the game")]
        found += template_problems("prompt", self.prompt, _NAMES)
        found += template_problems("system", self.system, _ALWAYS)
        found += template_problems("rejected", self.rejected, _REJECTED_NAMES)
        if not {"state", "quoted"} & {*names(self.prompt)}:
            found.append(("prompt", "shows nothing of the game; name {{ state }} or {{ quoted }} in it"))
        if self.enforce and self.retries:
            found.append(("retries", "has no effect with enforce: true, where no move can be illegal"))
        for key, low in (("retries", 0), ("max_moves", 1), ("max_tokens", 1), ("temperature", 0)):
            if (value := getattr(self, key)) is not None and value < low:
                found.append((key, f"must be at least {low}"))
        if self.score and self.score not in self.seats:
            found.append(("score", f"there is no seat {self.score!r}; valid: {', '.join(self.seats)}"))
        found += reward_problems(self.rewards, {"turns", "legal moves", "game"}, self.seats)
        for i, term in enumerate(self.rewards if self.zero_sum else ()):
            if term.name in REWARDS and (not REWARDS[term.name].zero_sum or term.to):
                found.append((f"rewards.{i}", "zero_sum: true is promised; valid: game_return, paid to all"))
        return found

    def literal_texts(self) -> list[str]:
        """Every fixed text that a seat may be sent: the words that a small vocabulary must hold."""
        return [text for text in map(literals, (self.system, self.prompt, self.rejected)) if text.strip()]

    def _values(
        self, task: Task, state: str, moves: tuple[str, ...], player: int, seat: str
    ) -> Mapping[str, str]:
        return {
            "state": state, "quoted": quote(state), "moves": ", ".join(moves), "question": task.question,
            "player": str(player), "seat": seat, "role": self.seats[seat],
        }  # fmt: skip

    def _request(
        self, chat: tuple[Message, ...], state: GameState, player: int, seat: str, turn: int, again: str
    ) -> TurnRequest:
        place = f"player {player}"
        known = f"{place}: {state.known(player)}" if self.situation == "infoset" else place
        return TurnRequest(
            seat=seat, role=self.seats[seat], messages=chat, turn=turn, phase="move", choices=state.legal(player),
            enforce=self.enforce, fresh=self.view == "state", situation=known + again,
            max_tokens=self.max_tokens, temperature=self.temperature,
        )  # fmt: skip


_ALWAYS = ("question", "player", "seat", "role")
_NAMES = ("state", "quoted", "moves", *_ALWAYS)
_REJECTED_NAMES = ("reason", "moves")


class Match:
    """One play of a game, between its yields."""

    def __init__(self, rules: GamePlay, task: Task, rng: random.Random) -> None:
        assert task.game is not None
        self.rules, self.task, self.rng = rules, task, rng
        seats = list(rules.seats)
        if rules.order == "shuffled":
            rng.shuffle(seats)
        self.seats = tuple(seats)
        """player -> seat"""
        self.state = task.game.start(rng)
        self.forfeited: list[str] = []
        self.moves = 0
        self._record: list[Move] = []
        self._turns = dict.fromkeys(seats, 0)
        self._chats = {seat: Chat.begun(self._system(player, seat), "", JOINER) for player, seat in enumerate(seats)}
        self._chosen: dict[int, str] = {}
        """player -> its move at this node"""
        self._open: dict[int, str] = {}
        """player -> why it is asked again; empty where it is asked for the first time"""
        self._tries: dict[int, int] = {}
        self._asked: list[TurnRequest] = []

    def goes_on(self) -> bool:
        """Plays out chance, up to where somebody moves. False at the end."""
        while not (self.state.over or self.forfeited or self.moves >= self.rules.max_moves):
            chances = self.state.chances()
            if not chances:
                self._open = dict.fromkeys(self.state.movers(), "")
                self._tries, self._chosen = dict.fromkeys(self._open, 0), {}
                return True
            self.state.draw(self.rng.choices(range(len(chances)), chances)[0])
        return False

    def ask(self) -> list[Ask]:
        """The requests of those who move now and have not made a legal move; all built before any reply exists."""
        self._asked = [self._request(player, why) for player, why in self._open.items()]
        return list(self._asked)

    def take(self, replies: list[Reply]) -> None:
        """Keeps legal moves; whoever made none is asked again, forfeits, or has one drawn."""
        for (player, request), reply in zip(zip(list(self._open), self._asked), replies, strict=True):
            seat = self.seats[player]
            self._turns[seat] += 1
            if self.rules.view == "chat":
                self._chats[seat].said(reply.text)
            reason = ""
            try:
                self._chosen[player] = self.state.read(player, reply.text)
                del self._open[player]
            except IllegalMove as error:
                reason = str(error)
                self._reject(player, reason)
            unfinished = reply.truncated or not reply.text.strip()
            self._record.append(Move(seat, request.turn, rejected=bool(reason), unfinished=unfinished))
        if self.forfeited:
            self._open.clear()

    def move(self) -> None:
        """Everybody who moves at this node has moved, or somebody has forfeited."""
        if not self.forfeited:
            self.moves += len(self._chosen)
            self.state.apply(self._chosen)

    def outcome(self) -> Outcome:
        rejected = sum(move.rejected for move in self._record)
        metrics = {"moves": float(self.moves), "illegal": float(rejected), "forfeits": float(len(self.forfeited))}
        if not (self.state.over or self.forfeited):
            return Outcome("invalid", metrics=metrics, reason=f"not over after {self.moves} moves")
        try:
            returns = {} if self.forfeited else dict(zip(self.seats, self.state.returns(), strict=True))
        except VerifierError as error:
            return Outcome("invalid", metrics=metrics, reason=str(error))
        record = Record(self.rules.seats, self._record, returns=returns, forfeited=self.forfeited)
        rewards = pay(self.rules.rewards, record)
        total = sum(reward.value for reward in rewards)
        if self.rules.zero_sum and abs(total) > 1e-9:
            raise UserError(
                f"protocol {self.rules.name} promises zero_sum, and a play of {self.task.id} paid {total:g} in all"
            )
        return Outcome("ok", rewards=rewards, score=self._score(record), metrics=metrics)

    def _request(self, player: int, why: str) -> TurnRequest:
        seat, rules, state = self.seats[player], self.rules, self.state
        turn, legal = self._turns[seat], state.legal(player)
        notice = render(rules.rejected, {"reason": why, "moves": ", ".join(legal)}) if why else ""
        if rules.view == "chat":
            values = rules._values(self.task, "" if why else state.news(player), legal, player, seat)
            chat = self._chats[seat].ask(notice or render(rules.prompt, values).strip())
        else:
            first = rules.request(self.task, state, player, seat).messages
            chat = (*first[:-1], *fresh_chat("", f"{first[-1].text}{JOINER}{notice}")) if why else first
        again = f" (try {self._tries[player] + 1})" if why else ""
        return rules._request(chat, state, player, seat, turn, again)

    def _reject(self, player: int, reason: str) -> None:
        """A reply that is no legal move."""
        self._tries[player] += 1
        legal = self.state.legal(player)
        if self._tries[player] <= self.rules.retries:
            self._open[player] = reason
            return
        del self._open[player]
        if self.rules.illegal == "random" and legal:
            self._chosen[player] = self.rng.choice(legal)
        else:
            self.forfeited.append(self.seats[player])

    def _score(self, record: Record) -> float | None:
        """Of what the game pays, forfeits included, whatever else the seats are paid."""
        if not self.rules.score:
            return None
        paid = {r.seat: r.value for r in pay([RewardTerm("game_return")], record)}
        mine = paid.pop(self.rules.score, 0.0)
        best = max(paid.values(), default=mine)
        return 1.0 if mine > best else 0.5 if mine == best else 0.0

    def _system(self, player: int, seat: str) -> str:
        return render(self.rules.system, self.rules._values(self.task, "", (), player, seat))
