"""ChatCodec: a seat's chat as token ids, and replies back as text.

Structure and content never mix. The chat template is rendered around sentinels in place of the messages, once
per sequence of speakers; what it writes between them becomes token ids with all special tokens. Content is
encoded by a copy of the tokenizer that knows no added token, so a debater who writes `<|im_end|>` gets
those characters spelled out, never the token: no message can forge a turn. Every text reads back exactly as it
was: the copy does no Unicode normalisation, and what it would still change is spelled in bytes.

Where a chat has only grown since the seat's last turn, its prompt is that turn's prompt ids, the sampled
ids and the new part: sampled tokens are never re-tokenised, the engine's prefix cache hits, and all turns
of a seat pack into one training sequence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocols.errors import UserError
from protocols.types import Message, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]
Speakers = tuple[str, ...]

HARD = ("", "  a  b\n\n", "e\u0301 \ufb01", "\u2581a\u2581", "\x00\u200b\ufffd", "\u6f22\U0001f600")
"""Texts that tokenizers are known to change. One that cannot spell them is refused at the start."""
CACHED_TEXTS = 32768
CACHED_CHOICES = 8192
CACHED_CHARS = 512
"""Longer texts are rarely said twice: they are not kept."""


class ChatTemplateError(UserError):
    """The chat template cannot be used: there is none, or it does not carry every message once."""


class UnsafeTokenizer(UserError):
    """Plain text can spell one of this tokenizer's special tokens even without its added tokens, or there is text
    that it cannot spell at all."""


class ChatCodec:
    """Encodes chats for one tokenizer. Not thread-safe; one per policy in the driver."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template_args: Mapping[str, Any] | None = None):
        """`template_args`: what the chat template takes besides the messages (Qwen3: enable_thinking)."""
        if not tokenizer.chat_template:
            raise ChatTemplateError("the tokenizer has no chat template")
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise UnsafeTokenizer(f"{type(tokenizer).__name__} is not a fast tokenizer (no tokenizer.json)")
        self.tokenizer, self._template_args = tokenizer, dict(template_args or {})
        self._backend: Any = tokenizer.backend_tokenizer
        self._plain = _content_tokenizer(self._backend)
        self._inside = _content_tokenizer(self._backend, prefix=False)
        """For text that stands after other text: a tokenizer may begin every text with a space of its own."""
        self._special = {
            id: token.content for id, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        self._check_plain()

        self._encode: Callable[[str], Ids] = lru_cache(CACHED_TEXTS)(self._encode_text)
        self._decode: Callable[[Ids], str] = lru_cache(CACHED_TEXTS)(self._decode_ids)
        self._structure: Callable[[Speakers], tuple[Ids, ...]] = lru_cache(1024)(self._render_structure)
        self._growth: Callable[[Speakers, int], tuple[Ids, ...] | None] = lru_cache(4096)(self._find_growth)
        self.choices: Callable[[tuple[str, ...]], tuple[Ids, ...]] = lru_cache(CACHED_CHOICES)(self._choices)
        """Token sequences of the legal replies, none a prefix of another: bare where that holds already
        (the closing tokens are added when the chat goes on), else all with the end token."""

        self._merges_system = not self._takes_system()
        self._hides_thinking = self._strips_thinking()
        self.end_id = self._find_end()
        """The token that ends a reply."""
        eos = tokenizer.eos_token_id
        self.stop_ids: Ids = (self.end_id,) if eos in (None, self.end_id) else (self.end_id, eos)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, trust_remote_code: bool = False, template_args: Mapping[str, Any] | None = None
    ) -> ChatCodec:
        """Loads the tokenizer from a folder or by its Hugging Face name."""
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code), template_args)

    # -- chats to tokens

    def prompt(self, messages: Sequence[Message], history: Sequence[Turn] = ()) -> list[int]:
        """Token ids of the chat up to where the next reply begins.

        `history`: the seat's earlier turns. The latest one that this chat continues word for word is
        extended; without one (or where the template rewrites old replies) the whole chat is rendered.
        """
        for turn in reversed(history):
            if turn.trace is not None:
                grown = self._grow(messages, turn)
                if grown is not None:
                    return grown
        return self._full(messages)

    def _full(self, messages: Sequence[Message]) -> list[int]:
        if self._merges_system:
            messages = _merge_system(messages)
        structure = self._structure(_speakers(messages))
        ids = list(structure[0])
        for message, after in zip(messages, structure[1:]):
            ids += self._content(message)
            ids += after
        return ids

    def _grow(self, messages: Sequence[Message], turn: Turn) -> list[int] | None:
        """The turn's prompt and reply and what `messages` adds to them; None when they do not continue it."""
        at = len(turn.messages)
        if len(messages) <= at or messages[at].text != turn.text or tuple(messages[:at]) != turn.messages:
            return None
        if self._hides_thinking and "</think>" in turn.text:
            return None
        speakers = _speakers(messages)
        if self._merges_system and speakers[0] == "system":
            tail = self._growth(speakers[1:], at - 1)
        else:
            tail = self._growth(speakers, at)
        if tail is None:
            return None
        trace = turn.trace
        assert trace is not None
        ids = list(trace.prompt_ids_P)
        ids += trace.output_ids_T or self._content(messages[at])
        closing = tail[0]
        if ids[-1] in self.stop_ids and ids[-1] in closing:
            closing = closing[closing.index(ids[-1]) + 1 :]
        ids += closing
        for message, after in zip(messages[at + 1 :], tail[1:]):
            ids += self._content(message)
            ids += after
        return ids

    def _content(self, message: Message) -> Ids:
        text = message.text
        if self._hides_thinking and message.speaker == "assistant":
            text = text.rpartition("</think>")[2].lstrip("\n")
        return self.encode(text)

    def encode(self, text: str) -> Ids:
        """Token ids of plain text: never a special token."""
        return self._encode(text) if len(text) <= CACHED_CHARS else self._encode_text(text)

    # -- replies

    def text(self, output_ids: Sequence[int]) -> str:
        """The text of a reply, without the token that ended it."""
        ids = tuple(output_ids)
        if ids and ids[-1] in self.stop_ids:
            ids = ids[:-1]
        return self._decode(ids)

    def _choices(self, texts: tuple[str, ...]) -> tuple[Ids, ...]:
        if len(set(texts)) != len(texts):
            raise ValueError(f"the same choice is listed twice: {texts}")
        sequences = [self.encode(text) for text in texts]
        # In sorted order a prefix stands directly before one of its extensions.
        ordered = sorted(sequences)
        if any(longer[: len(shorter)] == shorter for shorter, longer in pairwise(ordered)):
            sequences = [(*sequence, self.end_id) for sequence in sequences]
        if len(set(sequences)) != len(texts):
            raise ValueError(f"two choices have the same tokens: {texts}")
        return tuple(sequences)

    # -- what the caches hold

    def _encode_text(self, text: str) -> Ids:
        # A batch of one: offsets, which `encode` finds too, are a quarter of its time.
        (encoding,) = self._plain.encode_batch_fast([text], add_special_tokens=False)
        ids = tuple(encoding.ids)
        return ids if self._decode_ids(ids) == text else self._spell(text)

    def _spell(self, text: str) -> Ids:
        """Token ids of a text that encoding changes: for a SentencePiece model `▁`, its sign for a space. Every
        character that does not survive by itself is spelled in bytes, the others in runs as usual."""
        ids: list[int] = []
        for kept, run in groupby(text, self._survives):
            part = "".join(run)
            if kept:
                encoder = self._inside if ids else self._plain
                ids += encoder.encode(part, add_special_tokens=False).ids
            else:
                ids += [self._byte(byte) for byte in part.encode()]
        if self._decode_ids(tuple(ids)) != text:
            raise UnsafeTokenizer(f"this tokenizer cannot spell {text[:40]!r} exactly")
        return tuple(ids)

    def _survives(self, char: str) -> bool:
        return self._decode_ids(tuple(self._plain.encode(char, add_special_tokens=False).ids)) == char

    def _byte(self, value: int) -> int:
        id = self._backend.token_to_id(f"<0x{value:02X}>")
        if id is None:
            raise UnsafeTokenizer(
                "this tokenizer has no tokens for bytes: there is text that it cannot spell"
            )
        return int(id)

    def _decode_ids(self, ids: Ids) -> str:
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    def _render_structure(self, speakers: Speakers) -> tuple[Ids, ...]:
        """What the template writes before, between and after the messages: len(speakers) + 1 pieces."""
        pieces: list[Ids] = []
        text = self._render([(speaker, _sentinel(i)) for i, speaker in enumerate(speakers)])
        for i in range(len(speakers)):
            before, found, text = text.partition(_sentinel(i))
            if not found or _sentinel(i) in text:
                raise ChatTemplateError(
                    f"the chat template does not carry each message of {speakers} exactly once"
                )
            pieces.append(self._structural(before))
        pieces.append(self._structural(text))
        return tuple(pieces)

    def _find_growth(self, speakers: Speakers, at: int) -> tuple[Ids, ...] | None:
        """The pieces after the reply at index `at`, if the template leaves everything before it as it was."""
        if speakers[at] != "assistant":
            return None
        before, after = self._structure(speakers[:at]), self._structure(speakers)
        opened, reopened = before[at], after[at]
        if after[:at] != before[:at] or reopened[: len(opened)] != opened:
            return None
        # White space that the template puts before old replies (Mistral) is the model's own to say in a new one.
        return after[at + 1 :] if not self._decode_ids(reopened[len(opened) :]).strip() else None

    def _structural(self, text: str) -> Ids:
        return tuple(self._backend.encode(text, add_special_tokens=False).ids)

    def _render(self, messages: Sequence[tuple[str, str]]) -> str:
        chat = [{"role": speaker, "content": text} for speaker, text in messages]
        return str(
            self.tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=True, **self._template_args
            )
        )

    # -- what kind of template this is, asked once

    def _takes_system(self) -> bool:
        from jinja2.exceptions import TemplateError as JinjaError

        try:
            self._structure(("system", "user"))
            # Some move it along to the last user message (Mistral), so that a chat would not just grow.
            self._structure(("system", "user", "assistant", "user"))
        except (JinjaError, ChatTemplateError):
            return False
        return True

    def _strips_thinking(self) -> bool:
        """Whether old replies lose what stands before `</think>` (Qwen3, DeepSeek-R1)."""
        reply = f"<think>\n{_sentinel(0)}\n</think>\n\n{_sentinel(1)}"
        return _sentinel(0) not in self._render([("user", "u"), ("assistant", reply), ("user", "u")])

    def _find_end(self) -> int:
        """The first special token that the template writes after a reply; else the tokenizer's eos."""
        closing = self._structure(("user", "assistant", "user"))[2]
        eos = self.tokenizer.eos_token_id
        end = next((id for id in closing if id in self._special), eos)
        if end is None:
            raise ChatTemplateError("neither the chat template nor the tokenizer has a token that ends a reply")
        return int(end)

    def _check_plain(self) -> None:
        for id, text in self._special.items():
            if id in self._encode_text(text):
                raise UnsafeTokenizer(f"plain text can spell the special token {text!r}")
        for text in HARD:
            self._encode_text(text)


def _content_tokenizer(backend: Any, prefix: bool = True) -> Any:
    """A copy that knows no added token and changes no character. `prefix` False: and adds none at the beginning."""
    from tokenizers import Tokenizer

    state = json.loads(backend.to_str())
    state.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    lossy = ("NFC", "NFD", "NFKC", "NFKD") if prefix else ("NFC", "NFD", "NFKC", "NFKD", "Prepend")
    state["normalizer"] = _without(state["normalizer"], lossy)
    if not prefix:
        for step in _steps(state["pre_tokenizer"]):
            step.update({"prepend_scheme": "never"} if step["type"] == "Metaspace" else {})
            step.update({"add_prefix_space": False} if "add_prefix_space" in step else {})
    return Tokenizer.from_str(json.dumps(state))


def _without(step: dict[str, Any] | None, types: Collection[str]) -> dict[str, Any] | None:
    """A normaliser of tokenizer.json without the steps of some types."""
    if step is None or step["type"] in types:
        return None
    if step["type"] == "Sequence":
        kept = [_without(inner, types) for inner in step["normalizers"]]
        return {**step, "normalizers": [inner for inner in kept if inner is not None]}
    return step


def _steps(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The pre-tokenisers of a tokenizer.json, one after the other."""
    if step is None:
        return []
    return (
        [part for inner in step["pretokenizers"] for part in _steps(inner)]
        if step["type"] == "Sequence"
        else [step]
    )


def _merge_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """For templates without a system role: its text opens the first user message."""
    if messages[0].speaker != "system":
        return tuple(messages)
    system, first, *rest = messages
    return (Message("user", f"{system.text}\n\n{first.text}"), *rest)


def _speakers(messages: Sequence[Message]) -> Speakers:
    return tuple([message.speaker for message in messages])


def _sentinel(index: int) -> str:
    # Stands in for content only while a template is rendered, when no content is there: need not be secret.
    return f"qX7sentinel{index}endXq"
