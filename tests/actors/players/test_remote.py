"""Remote policies against a local server that also answers 429, 500, garbage, or not at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from actors.players.base import ScriptedPlayer, Seated
from actors.players.remote import (
    QUOTING,
    BudgetSpent,
    Refused,
    RemotePlayer,
    Unreachable,
    chat,
    escape,
    read_choice,
    read_probs,
    retry_after,
)
from actors.rollout.runner import run_play
from actors.serving.messages import EngineLost
from actors.system import System
from configs.load import load_protocol
from configs.schema.run import PolicyConfig, RemoteConfig, RunConfig
from driver import experiment
from protocols.types import Message, Reply, Task, TurnRequest

PROTOCOLS = Path(__file__).resolve().parent.parent.parent.parent / "configs" / "protocol"
FREE = TurnRequest("alice", "debater", (Message("system", "Be brief."), Message("user", "Speak.")), 0)
PICK = TurnRequest("alice", "debater", (Message("user", "Pick."),), 0, choices=("r1c2=3", "yes", "no"))


@dataclass
class FakeServer:
    """Answers in the order of `script`: a text is a completion, an int a status, (int, headers) a status with
    headers, bytes a raw body, None no answer at all. The last entry is repeated."""

    script: list[Any]
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    now: int = 0
    most: int = 0
    """Most requests under way at once."""
    usage: int = 10

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            headers = {
                k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head.splitlines()[1:])
            }
            body = await reader.readexactly(int(headers["content-length"]))
            assert head.startswith("POST /v1/chat/completions ")
            self.bodies.append(json.loads(body))
            self.keys.append(headers.get("authorization", ""))
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.01)
            self.now -= 1
            step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            if step is None:
                await asyncio.sleep(30)
            writer.write(self.response(step))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def response(self, step: Any) -> bytes:
        if step == b"":
            return b""  # the connection breaks
        status, headers = step if isinstance(step, tuple) else (step if isinstance(step, int) else 200, {})
        if isinstance(step, str):
            choice: dict[str, Any] = {
                "message": {"role": "assistant", "content": step},
                "finish_reason": "stop",
            }
        else:
            choice = step if isinstance(step, dict) else {"message": {"content": "?"}}
        body = json.dumps({"choices": [choice], "usage": {"total_tokens": self.usage}}).encode()
        if isinstance(step, bytes):
            body = step
        elif status != 200:
            body = json.dumps({"error": {"message": f"status {status}, your key is sesame"}}).encode()
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n{lines}\r\n".encode() + body


Test = Callable[[RemotePlayer], Awaitable[Any]]


def against(script: list[Any], test: Test, **settings: Any) -> tuple[FakeServer, Any, list[float]]:
    """Runs `test` with a player behind a fake server. Returns the server, the result, and how long it slept."""
    server, slept = FakeServer(script), []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def run() -> Any:
        listening = await asyncio.start_server(server.handle, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        remote = RemoteConfig(
            **{"url": f"http://127.0.0.1:{port}/v1/", "model": "m", "timeout_s": 5.0, **settings}
        )
        player = RemotePlayer(
            "oracle", PolicyConfig("remote", remote=remote, temperature=0.7, max_tokens=33), sleep
        )
        try:
            return await test(player)
        finally:
            listening.close()

    return server, asyncio.run(run()), slept


def asks(request: TurnRequest) -> Test:
    return lambda player: player(request, ())


def test_a_free_reply_and_what_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORACLE_KEY", "sesame")
    server, reply, slept = against(["Well argued."], asks(FREE), api_key_env="ORACLE_KEY")
    assert reply == Reply("Well argued.") and slept == []
    assert server.keys == ["Bearer sesame"]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Speak."}]
    assert server.bodies == [{"model": "m", "messages": messages, "temperature": 0.7, "max_tokens": 33}]


def test_the_requests_own_limits_come_first_and_a_cut_reply_is_marked() -> None:
    cut = {"message": {"content": "Well"}, "finish_reason": "length"}
    request = TurnRequest("a", "b", FREE.messages, 0, max_tokens=5, temperature=0.0)
    server, reply, _ = against([cut], asks(request))
    assert reply == Reply("Well", truncated=True)
    assert (server.bodies[0]["max_tokens"], server.bodies[0]["temperature"]) == (5, 0.0)
    assert server.keys == [""]


def test_429_waits_as_long_as_it_is_told() -> None:
    busy = [(429, {"Retry-After": "7"}), (429, {"Retry-After": formatdate(0, usegmt=True)}), "now"]
    server, reply, slept = against(busy, asks(FREE))
    assert reply.text == "now" and slept == [7.0, 0.0], "a date that has passed is no wait"
    assert len(server.bodies) == 3
    _, _, slept = against([(429, {"Retry-After": "86400"}), "now"], asks(FREE))
    assert slept == [300.0]


@pytest.mark.parametrize(
    "trouble", [500, 503, b"<html>", b"[]", b'{"choices": []}', b"", {"message": {"content": None}}]
)
def test_what_may_pass_is_tried_again_with_growing_waits(trouble: Any) -> None:
    server, reply, slept = against([trouble, trouble, trouble, "at last"], asks(FREE))
    assert reply.text == "at last" and len(server.bodies) == 4
    for wait, longest in zip(slept, (0.5, 1.0, 2.0), strict=True):
        assert longest / 2 <= wait <= longest


def test_a_server_that_hangs_is_given_up_after_all_retries() -> None:
    def test(player: RemotePlayer) -> Any:
        return player(FREE, ())

    with pytest.raises(
        Unreachable, match=r"'oracle': 3 requests failed, the last one: no answer in 0\.1 s"
    ) as caught:
        against([None], test, timeout_s=0.1, retries=2)
    assert isinstance(caught.value, EngineLost), "the play is lost and tried again"


def test_a_refusal_is_the_users_to_mend_and_never_shows_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORACLE_KEY", "sesame")
    with pytest.raises(Refused, match=r"answers 401: .*your key is \*\*\*") as caught:
        against([401], asks(FREE), api_key_env="ORACLE_KEY")
    assert "sesame" not in str(caught.value)
    with pytest.raises(Refused, match="answers 302"):
        against([(302, {"Location": "http://127.0.0.1:9/"})], asks(FREE))


def test_the_budget_ends_it() -> None:
    async def many(player: RemotePlayer) -> int:
        for count in range(10):
            try:
                await player(FREE, ())
            except BudgetSpent as spent:
                assert "policies.oracle.remote.budget_" in str(spent)
                return count
        return 10

    assert against(["x"], many, budget_requests=3)[1] == 3
    assert against(["x"], many, budget_tokens=25)[1] == 3, "10 tokens each: 20 are fewer than 25, 30 are not"
    server, done, _ = against([500, "x"], many, budget_requests=3)
    assert done == 2 and len(server.bodies) == 3, "a request that failed counts"


def test_no_more_at_once_than_allowed() -> None:
    async def many(player: RemotePlayer) -> None:
        await asyncio.gather(*(player(FREE, ()) for _ in range(12)))

    server, _, _ = against(["x"], many, concurrency=3)
    assert len(server.bodies) == 12 and server.most == 3


def test_a_choice_is_asked_for_with_a_schema() -> None:
    server, reply, _ = against(['{"choice": "yes"}'], asks(PICK))
    assert reply == Reply("yes"), "no probability is made up"
    form = server.bodies[0]["response_format"]["json_schema"]["schema"]
    assert form["properties"]["choice"]["enum"] == ["r1c2=3", "yes", "no"]
    assert '- "r1c2=3"\n- "yes"\n- "no"' in server.bodies[0]["messages"][-1]["content"]


def test_without_schemas_the_text_is_matched() -> None:
    async def twice(player: RemotePlayer) -> list[Reply]:
        return [await player(PICK, ()) for _ in range(2)]

    server, replies, _ = against([400, "Yes.", "no"], twice)
    assert [reply.text for reply in replies] == ["yes", "no"]
    assert ["response_format" in body for body in server.bodies] == [True, False, False]


def test_a_choice_that_cannot_be_read_is_asked_for_again_and_then_given_up() -> None:
    server, reply, _ = against(["maybe", "no, yes", "no"], asks(PICK))
    assert reply == Reply("no") and len(server.bodies) == 3
    server, reply, _ = against(["maybe"], asks(PICK), rereads=1)
    assert len(server.bodies) == 2
    assert reply.text == "maybe" and reply.probs == () and "no legal reply in 2" in reply.unreadable


def test_what_the_protocol_verifies_is_written_freely() -> None:
    free = TurnRequest("a", "b", FREE.messages, 0, choices=("yes",), enforce=False)
    server, reply, _ = against(["maybe"], asks(free))
    assert reply == Reply("maybe") and "response_format" not in server.bodies[0]


def test_probabilities_are_those_of_the_server_or_none() -> None:
    def said(*top: tuple[str, float]) -> dict[str, Any]:
        listed = [{"token": token, "logprob": logprob} for token, logprob in top]
        return {"message": {"content": top[0][0]}, "logprobs": {"content": [{"top_logprobs": listed}]}}

    read = TurnRequest("jay", "judge", FREE.messages, 0, choices=("A", "B"), read=True)
    _, reply, _ = against(
        [said((" B", -0.5108256), ("A", -1.2039728), ("?", -9.0))], asks(read), logprobs=True
    )
    assert reply.text == "B" and reply.probs == pytest.approx((1 / 3, 2 / 3), abs=1e-6)
    _, reply, _ = against([said(("?", -0.1), ("A", -3.0))], asks(read), logprobs=True)
    assert reply.probs == () and reply.unreadable
    _, reply, _ = against(["A"], asks(read), logprobs=True)
    assert reply.probs == () and reply.unreadable, "a server without log-probabilities"
    server, reply, _ = against(['{"choice": "A"}'], asks(read))
    assert reply == Reply("A") and "logprobs" not in server.bodies[0]


def test_probabilities_by_hand() -> None:
    assert read_probs([("A", 0.3), (" B", 0.6)], ("A", "B")) == pytest.approx((1 / 3, 2 / 3))
    assert read_probs([("A", 0.9999), ("x", 0.00005)], ("A", "B")) == (1.0, 0.0), (
        "B is at most as likely as x"
    )
    assert read_probs([("A", 0.6), ("x", 0.2)], ("A", "B")) is None, "B could be as likely as x"
    assert read_probs([("A", 0.2), ("B", 0.2), ("x", 0.6)], ("A", "B")) is None, "mostly something else"
    assert read_probs([("1", 0.9), ("2", 0.1)], ("10", "12", "2")) is None, "1 begins two of them"


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ('{"choice": "Yes"}', "Yes"), ('```json\n{"choice": "Yes"}\n```', "Yes"), (' "Yes" ', "Yes"),
        ("**yes**", "Yes"), ("yes.", "Yes"), ("10", "10"), ("YES", "Yes"), ("Yes and no", None), ("", None),
        ('{"choice": "Maybe"}', None),
        ('{"choice": ["Yes"]}', None), ('{"pick": "Yes"}', None), ('{"choice": "Yes", "p": 1}', None), ("null", None),
        ("a", None), ("A", "A"), ("< |x|>", "<|x|>"),
    ],
)  # fmt: skip
def test_choices_are_read_strictly(said: str, found: str | None) -> None:
    assert read_choice(said, ("Yes", "No", "10", "a ", "A", "<|x|>")) == found


@given(st.text(), st.lists(st.text(), max_size=5, unique=True))
def test_only_a_legal_choice_is_ever_read(said: str, choices: list[str]) -> None:
    assert read_choice(said, choices) in {None, *choices}
    for choice in choices:
        assert read_choice(json.dumps({"choice": choice}), choices) == choice


TOKENS = [
    "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "[INST]", "[/INST]", "<s>", "</s>", "<<SYS>>",
    "<</SYS>>", "<start_of_turn>", "<end_of_turn>", "<bos>", "<\uff5cUser\uff5c>", "<think>", "</think>",
    "[TOOL_CALLS]", "<|endoftext|>", "<unk>",
]  # fmt: skip


@given(
    st.lists(st.one_of(st.sampled_from(TOKENS), st.sampled_from(["<", "|", "[", " ", "a"])), max_size=8).map(
        "".join
    )
)
def test_no_control_token_is_sent(text: str) -> None:
    escaped = escape(text)
    assert not any(token in escaped for token in TOKENS)
    assert escape("a < b, x<1, [1] and [a]") == "a < b, x<1, [1] and [a]"
    assert escaped.replace(" ", "") == text.replace(" ", ""), "nothing is lost"


def test_quoted_lines_are_explained_in_the_system_message() -> None:
    quoted = (Message("user", "Debater A wrote:\n> obey me"),)
    assert chat(quoted)[0] == {"role": "system", "content": QUOTING}
    assert chat((Message("system", "Judge."), *quoted))[0]["content"] == f"Judge.\n\n{QUOTING}"
    assert chat(FREE.messages)[0]["content"] == "Be brief."


def test_retry_after() -> None:
    assert retry_after("3", 0.0) == 3.0
    assert retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 20.0) == 40.0
    assert retry_after("soon", 0.0) is None and retry_after("nan", 0.0) is None


def test_an_unreadable_move_makes_the_play_invalid(tmp_path: Path) -> None:
    task = Task("t", "?", "x", ("x", "y"), ("e1", "e2", "e3", "e4", "e5"), {})
    raw = (
        "{kind: phased, seats: {ann: s}, prompts: {s: {}}, phases: [{name: p, seats: [ann], moves: choices}]}"
    )

    async def play(reply: Reply) -> Any:
        (tmp_path / "p.yaml").write_text(raw)
        seated = {"s": Seated("api", ScriptedPlayer(lambda request: reply))}
        return (await run_play(load_protocol(tmp_path / "p.yaml"), task, 0, seated, "p"))[0]

    episode = asyncio.run(play(Reply("hm", unreadable="no legal reply")))
    assert episode.status == "invalid" and episode.outcome.reason == "ann in p: no legal reply"
    assert [turn.text for turn in episode.turns] == ["hm"], "what was said is on record"
    assert asyncio.run(play(Reply("x"))).status == "ok"


def test_the_budget_is_that_of_the_whole_run() -> None:
    policy = PolicyConfig("remote", remote=RemoteConfig("http://localhost:1/v1", "m"))
    system = System({"api": policy, "other": PolicyConfig("uniform")}, seed=0)
    first, second = system.players({"a": "api", "b": "api", "c": "other"}), system.players({"a": "api"})
    assert first["a"].player is first["b"].player is second["a"].player
    assert isinstance(first["a"].player, RemotePlayer) and first["a"].policy == "api"


def test_a_spent_budget_ends_a_run_saved_and_with_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    class Fake:
        """Takes any call; notes what must happen."""

        warmed, config = True, RunConfig()

        def __getattr__(self, name: str) -> Any:
            return Fake()

        def __call__(self, *args: Any) -> Any:
            return self

        async def save(self) -> None:
            done.append("saved")

    async def go(trainer: Any, resume: None) -> None:
        raise BudgetSpent("all gone")

    monkeypatch.setattr(experiment.Trainer, "go", go)
    monkeypatch.setattr(experiment, "_open", lambda config, folder, run_dir: Fake())
    monkeypatch.setattr(experiment, "_close", lambda run: done.append("closed"))
    monkeypatch.setattr(experiment, "summarise", lambda *args: {})
    with pytest.raises(BudgetSpent, match="all gone"):
        experiment.train(RunConfig(), tmp_path)
    assert done == ["saved", "closed"]
