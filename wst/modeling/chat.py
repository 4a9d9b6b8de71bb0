"""Token ids of chats: templates, control tokens in untrusted text, length limits."""

from __future__ import annotations

import re
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from wst.errors import ConfigError, DataError, first_line
from wst.types import Message, Query, Role

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Characters a token, more than in any usual text.
_CHARACTERS = 8


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    template_options: dict[str, Any] | None = None,
    answered: bool = False,
    limit: int | None = None,
) -> list[int]:
    """Return the token ids of a chat up to where the model continues; of an ``answered`` one, up to its end.

    Without a chat template the turns' texts are joined by blank lines. If the template ignores or refuses system turns,
    the system text is put at the head of the first user turn. Control tokens inside a text are neutralized, so that no
    text can end its turn or begin another one.

    Args:
        tokenizer: The model's.
        messages: The turns.
        template_options: Further arguments for the chat template.
        answered: Whether the last turn is the model's own.
        limit: Number of tokens at the chat's end that the caller needs; None: all. What is surely before them may be
            left out, so that a text of megabytes is not tokenized.

    Raises:
        DataError: If the chat template refuses the turns, or leaves out the last user turn's text.
    """
    if limit is not None:
        messages = [Message(m.role, _part(tokenizer, m.content, limit, tail=True)) for m in messages]
    options = template_options or {}
    messages = prepared_turns(tokenizer, messages, options)
    if not tokenizer.chat_template:
        text = "\n\n".join(message.content for message in messages)
        if answered:
            return _ids(tokenizer(text))
        ids = _ids(tokenizer(text + "\n\n"))
        while ids and ids[-1] in _control_tokens(tokenizer)[1]:  # some tokenizers append their end token
            ids.pop()
        return ids
    try:
        rendered = _render(tokenizer, messages, options, _wants_parts(tokenizer, options), not answered)
    except Exception as error:  # whatever the template's code raises
        roles = ", ".join(message.role for message in messages)
        raise DataError(f"the model's chat template refuses the turns {roles} ({first_line(error)})") from error
    asked = next((message.content.strip() for message in reversed(messages) if message.role == "user"), "")
    if asked not in rendered:
        raise DataError(
            f"the model's chat template leaves out the user turn {asked!r:.60}; set another chat_template in the "
            "model's folder, or chat_template_options"
        )
    return _ids(tokenizer(rendered, add_special_tokens=False))


def prepared_turns(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], options: dict[str, Any]
) -> list[Message]:
    """Return the turns as the chat template is to read them.

    Control tokens in them are neutralized, and a system turn that the template would not show stands at the head of the
    first user turn.
    """
    messages = [Message(m.role, neutralize_control_tokens(tokenizer, m.content)) for m in messages]
    if tokenizer.chat_template and messages[0].role == "system" and not _knows_system(tokenizer, options):
        system, *turns = messages
        first = next((i for i, turn in enumerate(turns) if turn.role == "user"), len(turns))
        asked = [system.content, *(turn.content for turn in turns[first : first + 1])]
        messages = [*turns[:first], Message("user", "\n\n".join(asked)), *turns[first + 1 :]]
    return messages


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    options: dict[str, Any],
    parts: bool,
    generation_prompt: bool = False,
) -> str:
    """Return the chat as text, each turn's content a plain string or a list of one text part."""
    chat: Any = [
        {"role": m.role, "content": [{"type": "text", "text": m.content}] if parts else m.content} for m in messages
    ]
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=generation_prompt, **options))


def _ids(encoding: Any) -> list[int]:  # noqa: ANN401 - transformers' BatchEncoding
    return list(encoding["input_ids"])


def _keeps(tokenizer: PreTrainedTokenizerBase, role: Role, options: dict[str, Any], parts: bool) -> bool:
    """Return whether the template shows the text of a first turn of this role."""
    probe = [Message(role, "probe-7f3a"), *([] if role == "user" else [Message("user", "x")])]
    known = tokenizer.__dict__.setdefault("_wst_probes", {})
    key = (str(tokenizer.chat_template), role, repr(options), parts)
    if key not in known:
        try:
            known[key] = "probe-7f3a" in _render(tokenizer, probe, options, parts)
        except Exception:  # whatever the template's code raises
            known[key] = False
    return bool(known[key])


def _wants_parts(tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]) -> bool:
    """Return whether the template reads content only as a list of parts; given a string, it would drop every text."""
    return not _keeps(tokenizer, "user", options, parts=False) and _keeps(tokenizer, "user", options, parts=True)


def _knows_system(tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]) -> bool:
    return _keeps(tokenizer, "system", options, _wants_parts(tokenizer, options))


def _part(tokenizer: PreTrainedTokenizerBase, text: str, limit: int, tail: bool = False) -> str:
    """Return the head or tail of a text that surely holds more than ``limit`` tokens, or all of a shorter text."""
    size = _CHARACTERS * limit
    while size < len(text):
        part = text[-size:] if tail else text[:size]
        # Tokens near the cut may be others than in the whole text, so have twice as many as needed.
        if len(_ids(tokenizer(_encodable(part), add_special_tokens=False))) > 2 * limit:
            return part
        size *= 2
    return text


def _encodable(text: str) -> str:
    """Return the text with lone surrogates, which no tokenizer takes, replaced by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def neutralize_control_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return the text with a space inside each control token, so that the tokenizer reads it as plain characters.

    Queries, instructions and responses are untrusted: one that holds ``<|im_end|>`` must not end a turn.
    """
    pattern, control = _control_tokens(tokenizer)
    text = pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", _encodable(text))
    tokens = _ids(tokenizer(text, add_special_tokens=False))
    if control.isdisjoint(tokens):
        return text
    # A tokenizer that normalises may read other characters as a control token, and one token may hold another.
    return str(tokenizer.decode([token for token in tokens if token not in control]))


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[re.Pattern[str], frozenset[int]]:
    """Return a pattern of the control tokens' words, and their ids."""
    known = getattr(tokenizer, "_wst_control", None)
    if known is None:
        special = {i: str(token.content) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        words = sorted(filter(None, special.values()), key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, words)) or "(?!)")
        # The token for unknown characters is special as well, yet stands for text.
        named = {name: getattr(tokenizer, f"{name}_token_id") for name in ("unk", "bos", "eos", "pad")}
        unknown = {named.pop("unk")} - set(named.values())
        known = tokenizer._wst_control = (pattern, frozenset(special) - unknown)
    return cast("tuple[re.Pattern[str], frozenset[int]]", known)


def encode_truncated(
    tokenizer: PreTrainedTokenizerBase, encode: Callable[[str], list[int]], text: str, limit: int
) -> tuple[list[int], bool]:
    """Encode a prompt that holds ``text``, cutting the text's end off until the prompt has at most ``limit`` tokens.

    Args:
        tokenizer: Counts what is cut off.
        encode: Returns the whole prompt's token ids for a text.
        text: What may be cut.
        limit: Largest number of tokens in the prompt.

    Returns:
        The token ids, and whether the text was cut. If the prompt is too long even without the text, its first tokens
        are dropped.
    """
    head = _part(tokenizer, text, limit)
    ids = encode(head)
    if len(ids) <= limit and head == text:
        return ids, False
    text = _encodable(head)
    words = _ids(tokenizer(text, add_special_tokens=False))
    keep = len(words)
    while len(ids) > limit and keep > 0:
        keep = max(0, keep - max(1, len(ids) - limit))
        ids = encode(str(tokenizer.decode(words[:keep], skip_special_tokens=False)))
    return ids[-limit:], True


@dataclass
class ChatEncoder:
    """Encode chats within a token limit; count those that had to be cut, and warn of the first.

    Args:
        limit: Largest number of tokens.
        option: The option that sets the limit, as the warning names it.
        template_options: Further arguments for the tokenizer's chat template.

    Attributes:
        shortened: Chats cut so far.
    """

    limit: int
    option: str
    template_options: dict[str, Any] | None = None
    shortened: int = 0

    def prompt(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat: Callable[[str, int], Sequence[Message]],
        text: str,
        name: str,
        starts: Sequence[int] = (0,),
    ) -> list[int]:
        """Encode the prompt that ``chat`` makes of a text. If it is too long, shorten it and warn.

        First the oldest turns before the text are left out, as many as it takes; then the text's end is cut.

        Args:
            tokenizer: The model's.
            chat: Returns the prompt's turns for the text, or for the part of it that fits, given the number of turns
                before it to leave out.
            text: What may be cut.
            name: What the warning, or the error, calls the prompt.
            starts: How many turns may be left out, in increasing order; 0 first.

        Raises:
            DataError: If the chat template does not take the turns.
        """

        def encode(words: str, start: int) -> list[int]:
            return encode_chat(tokenizer, chat(words, start), self.template_options, limit=self.limit + 1)

        with _named(name):
            start = starts[0]
            if len(starts) > 1:
                if len(whole := encode(text, start)) <= self.limit:
                    return whole
                place = bisect_left(starts, True, lo=1, key=lambda n: len(encode(text, n)) <= self.limit)
                start = starts[min(place, len(starts) - 1)]
            ids, cut = encode_truncated(tokenizer, lambda words: encode(words, start), text, self.limit)
        self._report(int(cut or start != starts[0]), f"{name} was cut")
        return ids

    def check_room(self, tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message]) -> None:
        """Check that a prompt without its query leaves room for one.

        Raises:
            ConfigError: If it does not.
        """
        size = len(encode_chat(tokenizer, turns, self.template_options, limit=self.limit))
        if size >= self.limit:
            raise ConfigError(
                f"{self.option}={self.limit} leaves no room for a query: the prompt's own text and examples take "
                f"{size} tokens; raise it, or shorten them"
            )

    def dialogues(
        self, tokenizer: PreTrainedTokenizerBase, dialogues: Sequence[Sequence[Message]], name: str | None = None
    ) -> list[list[int]]:
        """Encode dialogues that are whole, answer included. Of one that is too long, keep the last tokens.

        Args:
            tokenizer: The model's.
            dialogues: The turns of each.
            name: What the warning calls the model; None: no warning.

        Raises:
            DataError: If the chat template does not take the turns.
        """
        with _named(name or "preference model"):
            rows = [encode_chat(tokenizer, turns, self.template_options, True, self.limit) for turns in dialogues]
        cut = sum(len(row) > self.limit for row in rows)
        self._report(cut, name and f"{name}: {cut} of {len(rows)} dialogues were cut")
        return [row[-self.limit :] for row in rows]

    def _report(self, cut: int, what: str | None) -> None:
        first = not self.shortened
        self.shortened += cut
        if cut and what and first:
            warnings.warn(
                f"{what} to fit {self.option}={self.limit}, and so will others; raise it, or shorten the texts",
                stacklevel=4,
            )


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Prefix a `DataError` with a name."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def dialogue(query: Query, answer: str) -> list[Message]:
    """Return a query's dialogue with an answer at its end."""
    return [*query.history, Message("user", query.text), Message("assistant", answer)]
