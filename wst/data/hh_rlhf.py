"""HH-RLHF: dialogues with a preferred and a rejected answer (Bai et al. 2022, arXiv 2204.05862)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain

from wst.data.benchmark import Benchmark
from wst.data.sources import Row, hub_rows
from wst.errors import ConfigError, DataError
from wst.types import Message, Query, Role

TRANCHES = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


class HHRLHF(Benchmark):
    """``Anthropic/hh-rlhf``: the last human turn is the query, the turns before it are its history.

    `Query.extra` holds the two answers, ``chosen`` and ``rejected``, for preference training; there is no target.
    Dropped, and counted aloud, are pairs that are equal, that part before the last answer, or that have no answer at
    their end or no words in the human turn before it, and training rows whose first turn also begins a dialogue of
    the test set. The data hold offensive text.

    Args:
        source: Folder with the hub's files, ``TRANCHE/train.jsonl.gz`` and ``TRANCHE/test.jsonl.gz``; None: the hub.
        train: File or files to train on, instead of the source's.
        test: File or files to test on, instead of the source's.
        tranches: Which parts of the data set; with files named, they are what is read.
        max_turns: Dialogues of more human turns are left out, and counted; None: none is.
        max_characters: Dialogues of more characters before the answer are left out, and counted; None: none is.
        val_share: Share of the training rows to validate on.
        split_seed: Chooses the rows to validate on, and those that the limits leave.
        batch_size: Queries a training step, in each process.
        eval_batch_size: Queries a batch in validation, test and prediction.
        shuffle: Whether to shuffle the training queries, anew for each epoch.
        shuffle_seed: Seed of the shuffling.
        limit_train: At most so many training queries.
        limit_val: At most so many validation queries.
        limit_test: At most so many test queries.
        resume_changed: Whether a run may go on with other training queries than it began with.

    Raises:
        ConfigError: If a setting is impossible, or a tranche is unknown.
        DataError: If a file or folder named is not there.
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
        val_share: float = 0.05,
        split_seed: int = 0,
        batch_size: int = 8,
        eval_batch_size: int = 32,
        shuffle: bool = True,
        shuffle_seed: int = 0,
        limit_train: int | None = None,
        limit_val: int | None = None,
        limit_test: int | None = None,
        resume_changed: bool = False,
    ) -> None:
        super().__init__(
            source,
            train,
            test,
            val_share,
            split_seed,
            batch_size,
            eval_batch_size,
            shuffle,
            shuffle_seed,
            limit_train,
            limit_val,
            limit_test,
            resume_changed,
        )
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
        """Give the tranches' folders."""
        return self.tranches

    @property
    def remedy(self) -> str:
        """What to do without a hub."""
        return (
            f"put {self.tranches[0]}/train.jsonl.gz and {self.tranches[0]}/test.jsonl.gz (fields {self.columns}) into "
            "a folder and name it in data.init_args.source, or name the files in data.init_args.train and test"
        )

    def hub(self, split: str) -> Iterator[Row]:
        """Go through a split's rows on the hub."""
        return chain.from_iterable(
            hub_rows("Anthropic/hh-rlhf", split, data_dir=tranche, needs=self.remedy) for tranche in self.tranches
        )

    @cached_property
    def _tested(self) -> set[str]:
        return {turns(row, "chosen")[0].content for row in self.rows("test")}

    def read(self, row: Row, split: str) -> Query | str:
        """Make a query of a pair, or say why the pair is dropped.

        Raises:
            DataError: If a field is missing, or a dialogue does not begin with a human.
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
            return "the dialogues part before the last answer"
        if not last.content:
            return "no words in the last human turn"
        if self.max_turns is not None and sum(turn.role == "user" for turn in chosen) > self.max_turns:
            return f"more than {self.max_turns} human turns"
        if self.max_characters is not None and sum(len(turn.content) for turn in chosen[:-1]) > self.max_characters:
            return f"more than {self.max_characters} characters"
        extra = {"chosen": chosen[-1].content, "rejected": rejected[-1].content}
        return Query(row.id, last.content, history=tuple(before), extra=extra)


def turns(row: Row, field: str) -> list[Message]:
    r"""Read a dialogue, ``\n\nHuman: ...\n\nAssistant: ...``; turns of one speaker that follow each other become one.

    Raises:
        DataError: If it does not begin with a human.
    """
    head, *pieces = _TURN.split(row.text(field))
    if head.strip() or not pieces or pieces[0] != "Human":
        raise DataError(
            f"{row.place}: the dialogue in {field!r} does not begin with 'Human:'; mend the row, or take it out"
        )
    dialogue: list[Message] = []
    for speaker, words in zip(pieces[::2], pieces[1::2], strict=True):
        role, text = _ROLES[speaker], words.strip()
        if dialogue and dialogue[-1].role == role:
            text = "\n\n".join(filter(None, [dialogue.pop().content, text]))
        dialogue.append(Message(role, text))
    return dialogue
