"""Token ids of chats: templates, control tokens in untrusted text, length limits."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from wst.types import Message, Query

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    template_options: dict[str, Any] | None = None,
    answered: bool = False,
) -> list[int]:
    """Return the token ids of a chat up to where the model continues; of an ``answered`` one, up to its end.

    Without a chat template the turns' texts are joined by blank lines. If the template ignores or refuses system turns,
    the system text is put at the head of the first user turn. Control tokens inside a text are neutralized, so that no
    text can end its turn or begin another one.
    """
    messages = [Message(message.role, neutralize_control_tokens(tokenizer, message.content)) for message in messages]
    if not tokenizer.chat_template:
        text = "\n\n".join(message.content for message in messages)
        return _ids(tokenizer(text if answered else text + "\n\n"))
    if messages[0].role == "system" and not _knows_system(tokenizer):
        merged = f"{messages[0].content}\n\n{messages[1].content}" if len(messages) > 1 else messages[0].content
        messages = [Message("user", merged), *messages[2:]]
    chat = [{"role": message.role, "content": message.content} for message in messages]
    options = template_options or {}
    return _ids(
        tokenizer.apply_chat_template(
            chat, tokenize=True, add_generation_prompt=not answered, return_dict=True, **options
        )
    )


def _ids(encoding: Any) -> list[int]:  # noqa: ANN401 - transformers' BatchEncoding
    return list(encoding["input_ids"])


def _knows_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    known = getattr(tokenizer, "_wst_knows_system", None)
    if known is None:
        probe = [{"role": "system", "content": "probe-7f3a"}, {"role": "user", "content": "x"}]
        try:
            known = "probe-7f3a" in str(tokenizer.apply_chat_template(probe, tokenize=False))
        except Exception:
            known = False
        tokenizer._wst_knows_system = known
    return bool(known)


def neutralize_control_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return the text with a space inside each control token, so that the tokenizer reads it as plain characters.

    Queries, instructions and responses are untrusted: one that holds ``<|im_end|>`` must not end a turn.
    """
    pattern, control = _control_tokens(tokenizer)
    text = pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
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
    ids = encode(text)
    if len(ids) <= limit:
        return ids, False
    words = _ids(tokenizer(text, add_special_tokens=False))
    keep = len(words)
    while len(ids) > limit and keep > 0:
        keep = max(0, keep - max(1, len(ids) - limit))
        ids = encode(str(tokenizer.decode(words[:keep], skip_special_tokens=False)))
    return ids[-limit:], True


@dataclass
class ChatEncoder:
    """Encode chats within a token limit; count those that had to be cut, and warn of them.

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
        self, tokenizer: PreTrainedTokenizerBase, chat: Callable[[str], Sequence[Message]], text: str, name: str
    ) -> list[int]:
        """Encode the prompt that ``chat`` makes of a text. If it is too long, cut the text's end and warn.

        Args:
            tokenizer: The model's.
            chat: Returns the prompt's turns for the text, or for the part of it that fits.
            text: What may be cut.
            name: What the warning calls the prompt.
        """
        ids, cut = encode_truncated(
            tokenizer, lambda words: encode_chat(tokenizer, chat(words), self.template_options), text, self.limit
        )
        self._report(int(cut), f"{name} was cut")
        return ids

    def dialogues(
        self, tokenizer: PreTrainedTokenizerBase, dialogues: Sequence[Sequence[Message]], name: str | None = None
    ) -> list[list[int]]:
        """Encode dialogues that are whole, answer included. Of one that is too long, keep the last tokens.

        Args:
            tokenizer: The model's.
            dialogues: The turns of each.
            name: What the warning calls the model; None: no warning.
        """
        rows = [encode_chat(tokenizer, turns, self.template_options, answered=True) for turns in dialogues]
        cut = sum(len(row) > self.limit for row in rows)
        self._report(cut, name and f"{name}: {cut} of {len(rows)} dialogues were cut")
        return [row[-self.limit :] for row in rows]

    def _report(self, cut: int, what: str | None) -> None:
        self.shortened += cut
        if cut and what:
            warnings.warn(f"{what} to fit {self.option}={self.limit} ({self.shortened} so far)", stacklevel=4)


def dialogue(query: Query, answer: str) -> list[Message]:
    """Return a query's dialogue with an answer at its end."""
    return [*query.history, Message("user", query.text), Message("assistant", answer)]
