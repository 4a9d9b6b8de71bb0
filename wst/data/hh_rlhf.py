"""HH-RLHF: dialogues with a preferred and a rejected answer (Bai et al. 2022, arXiv 2204.05862)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

from wst.data.benchmark import Benchmark
from wst.data.fields import Row
from wst.data.sources import hub_rows
from wst.errors import ConfigError, DataError
from wst.settings import check_arguments
from wst.types import Message, Query, Role

TRANCHES = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


class HHRLHF(Benchmark):
    """``Anthropic/hh-rlhf``: the last human turn is the query, the turns before it are its history.

    `Query.extra` holds the two answers, ``chosen`` and ``rejected``, for preference training; there is no target.
    Dropped and counted in the log are: pairs of equal dialogues, pairs that differ before the last answer, pairs
    without an answer at the end or without words in the human turn before it, and training rows whose first turn also
    begins a dialogue of the test set. The data contain offensive text.

    Args:
        source: Folder with the hub's files, ``TRANCHE/train.jsonl.gz`` and ``TRANCHE/test.jsonl.gz``; None: the hub.
        train: File or files to train on, instead of the source's.
        test: File or files to test on, instead of the source's.
        tranches: Which parts of the data set to load; named files take their place.
        max_turns: Dialogues with more human turns are dropped and counted; None: no limit.
        max_characters: Dialogues with more characters before the answer are dropped and counted; None: no limit.
        options: The other options of `Benchmark`.

    Raises:
        ConfigError: If a setting is impossible, or a tranche is unknown.
        DataError: If a named file or folder does not exist.
    """

    columns = "chosen, rejected"

    def __init__(
        self,
        source: str | None = None,
        train: str | list[str] | None = None,
        test: str | list[str] | None = None,
        tranches: Sequence[str] = ("helpful-base",),
        max_turns: int | None = None,
        max_characters: int | None = None,
        **options: Any,  # noqa: ANN401 - the command line takes names and types from Benchmark
    ) -> None:
        check_arguments(HHRLHF, locals())
        super().__init__(source, train, test, **options)
        unknown = [tranche for tranche in tranches if tranche not in TRANCHES]
        if unknown or not tranches:
            got = f"{unknown[0]!r} is none of them" if unknown else "none is named"
            raise ConfigError(f"HHRLHF: tranches are {', '.join(TRANCHES)}; {got}")
        for option, value in (("max_turns", max_turns), ("max_characters", max_characters)):
            if value is not None and value < 1:
                raise ConfigError(f"HHRLHF: {option} must be at least 1, or null for no limit, got {value}")
        self.tranches = list(tranches)
        self.max_turns = max_turns
        self.max_characters = max_characters

    def parts(self) -> list[str]:
        """Return the folders of the tranches."""
        return self.tranches

    @property
    def remedy(self) -> str:
        """What to do without a hub."""
        return (
            f"put {self.tranches[0]}/train.jsonl.gz and {self.tranches[0]}/test.jsonl.gz (fields {self.columns}) into "
            "a folder and name it in data.init_args.source, or name the files in data.init_args.train and test"
        )

    def hub(self, split: str) -> Iterator[Row]:
        """Iterate over a split's rows on the hub."""
        return chain.from_iterable(
            hub_rows("Anthropic/hh-rlhf", split, data_dir=tranche, needs=self.remedy) for tranche in self.tranches
        )

    @cached_property
    def _tested(self) -> set[str]:
        return {turns(row, "chosen")[0].content for row in self.rows("test")}

    def read(self, row: Row, split: str) -> Query | str:
        """Return a pair as a query, or the reason why it is dropped.

        Raises:
            DataError: If a field is missing, or a dialogue does not begin with a human turn.
        """
        chosen, rejected = turns(row, "chosen"), turns(row, "rejected")
        if chosen == rejected:
            return "chosen equals rejected"
        if split == "train" and chosen[0].content in self._tested:
            return "first turn also in the test set"
        if any(dialogue[-1].role != "assistant" or not dialogue[-1].content for dialogue in (chosen, rejected)):
            return "no answer at the end"
        *before, last = chosen[:-1]
        if chosen[:-1] != rejected[:-1] or last.role != "user":
            return "the dialogues differ before the last answer"
        if not last.content:
            return "no words in the last human turn"
        if self.max_turns is not None and sum(turn.role == "user" for turn in chosen) > self.max_turns:
            return f"more than {self.max_turns} human turns"
        if self.max_characters is not None and sum(len(turn.content) for turn in chosen[:-1]) > self.max_characters:
            return f"more than {self.max_characters} characters"
        extra = {"chosen": chosen[-1].content, "rejected": rejected[-1].content}
        return Query(row.id, last.content, history=tuple(before), extra=extra)


def turns(row: Row, field: str) -> list[Message]:
    r"""Read a dialogue, ``\n\nHuman: ...\n\nAssistant: ...``; consecutive turns of one speaker are joined.

    Raises:
        DataError: If it does not begin with a human turn.
    """
    head, *pieces = _TURN.split(row.text(field))
    if head.strip() or not pieces or pieces[0] != "Human":
        raise DataError(
            f"{row.place}: the dialogue in {field!r} does not begin with 'Human:'; fix the row, or remove it"
        )
    dialogue: list[Message] = []
    for speaker, words in zip(pieces[::2], pieces[1::2], strict=True):
        role, text = _ROLES[speaker], words.strip()
        if dialogue and dialogue[-1].role == role:
            text = "\n\n".join(filter(None, [dialogue.pop().content, text]))
        dialogue.append(Message(role, text))
    return dialogue
