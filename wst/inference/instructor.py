"""`Instructor`: a trained teacher that writes instructions, wherever its artefact was taken."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, overload

from wst.errors import ConfigError, DataError, ModelError
from wst.files import expanded
from wst.inference.artefact import Artefact
from wst.inference.gate import Gate
from wst.inference.hub import download, portable, upload
from wst.inference.remote import RemoteTeacher, TeacherServer
from wst.settings import check_arguments, check_counts
from wst.types import Instruction, Message, Query

if TYPE_CHECKING:
    import torch

    from wst.teacher import Teacher

_ROLES = ("system", "user", "assistant")
#: Several queries. Not ``Sequence[str]``, which a single text is as well.
Texts = list[str] | tuple[str, ...]
#: An OpenAI message: ``{"role": ..., "content": ...}``.
ChatMessage = Mapping[str, Any]


class Instructor:
    """Writes the instruction for a query.

    Torch and the weights are loaded once, at the first call. Threads may share an instructor: it writes one batch at a
    time.

    Args:
        artefact: The trained teacher's settings.
        device: "auto" (the GPU if there is one), "cpu", "cuda" or "cuda:N".
        base: Where the base model lies on this machine; None: where the artefact says.
        batch_size: Queries written for at once.
        server: A server that writes the words, in place of weights on this machine; a text is its base URL. The teacher
            is then called "teacher" there. See `TeacherServer` for other names, keys and limits.

    Examples:
        >>> teacher = Instructor.from_pretrained("runs/quickstart/version_0/teacher/best")  # doctest: +SKIP
        >>> teacher("The kettle leaks.")  # doctest: +SKIP
    """

    def __init__(
        self,
        artefact: Artefact,
        device: str = "auto",
        base: str | None = None,
        batch_size: int = 32,
        server: TeacherServer | str | None = None,
    ) -> None:
        check_arguments(Instructor, locals())
        check_counts("Instructor", batch_size=batch_size)
        self.artefact = artefact
        self.device = device
        self.base = base
        self.batch_size = batch_size
        self._gate = None if artefact.gate is None else Gate.from_dict(artefact.gate)
        self._remote = (
            None
            if server is None
            else RemoteTeacher(artefact, TeacherServer(server) if isinstance(server, str) else server)
        )
        self._teacher: Teacher | None = None
        self._lock = threading.Lock()  # the model writes one batch at a time

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        device: str = "auto",
        *,
        base: str | None = None,
        revision: str | None = None,
        batch_size: int = 32,
        server: TeacherServer | str | None = None,
    ) -> Self:
        """Read the artefact in a folder, or under an id on the hub.

        Args:
            name: A folder that `wst fit` exported, or a hub id (org/name).
            device: See `Instructor`.
            base: See `Instructor`. An artefact from the hub may name a hub id or an installed package alone; for any
                other base this says where it lies.
            revision: Branch, tag or commit on the hub.
            batch_size: See `Instructor`.
            server: See `Instructor`.

        Raises:
            ModelError: If it is not there, or is not a trained teacher.
        """
        folder = expanded(name)
        if folder.is_dir():
            if revision is not None:
                raise ConfigError(f"teacher {name!r}: it is a folder here; a revision is of a teacher on the hub")
            return cls(Artefact.read(folder), device, base, batch_size, server)
        if name.count("/") != 1 or name[0] in "./~":
            raise ModelError(f"teacher {name!r}: no such folder; give an exported folder or a hub id (org/name)")
        artefact = Artefact.read(download(name, revision))
        model = artefact.base["model"]
        if base is None and server is None and model is not None and not portable(model):
            raise ModelError(f"teacher {name!r}: its base {model!r:.100} is a path of another machine; give base")
        return cls(artefact, device, base, batch_size, server)

    @overload
    def __call__(self, query: str, *, history: Sequence[ChatMessage] = (), sample: bool = False) -> str: ...

    @overload
    def __call__(self, query: Texts, *, history: Sequence[ChatMessage] = (), sample: bool = False) -> list[str]: ...

    def __call__(
        self, query: str | Texts, *, history: Sequence[ChatMessage] = (), sample: bool = False
    ) -> str | list[str]:
        """Write the instruction for a query, or one for each of several.

        Args:
            query: The text; a list of texts gives a list.
            history: Turns before the query, as OpenAI messages; the same for each query of a list.
            sample: Whether to sample at the temperature of training; by default the most probable tokens are taken.

        Raises:
            DataError: If a query is not text, or a turn is not a message.
        """
        turns = _turns(history)
        if isinstance(query, Mapping) or not isinstance(query, Iterable):
            raise DataError(f"query: expected text or a list of texts, got a {type(query).__name__}")
        texts = [query] if isinstance(query, str) else list(query)
        found = [
            written.text for written in self.write([_query(i, text, turns) for i, text in enumerate(texts)], sample)
        ]
        return found[0] if isinstance(query, str) else found

    def messages(
        self, query: str, system: str | None = None, *, history: Sequence[ChatMessage] = (), sample: bool = False
    ) -> list[dict[str, str]]:
        """Return OpenAI messages for any model, with the instruction where training put it.

        Args:
            query: The text.
            system: A system message of your own; None: the one of training, if it had one.
            history: Turns before the query, as OpenAI messages.
            sample: See `__call__`.
        """
        asked = _query(0, query, _turns(history))
        prompt = self.artefact.student_prompt
        if system is not None:
            prompt = replace(prompt, system=system)
        chat = prompt(asked, self.write([asked], sample)[0])
        return [{"role": message.role, "content": message.content} for message in chat.messages]

    async def instruct(
        self, query: str | Texts, *, history: Sequence[ChatMessage] = (), sample: bool = False
    ) -> str | list[str]:
        """Do as `__call__` does, in a thread, for asyncio."""
        return await asyncio.to_thread(self.__call__, query, history=history, sample=sample)

    @property
    def batches(self) -> dict[str, int]:
        """How to write for many at once: ``batch_size`` queries in a call, ``workers`` calls at a time."""
        if self._remote is not None:  # it has batches of its own
            return {"batch_size": 1, "workers": self._remote.server.concurrency}
        return {"batch_size": self.batch_size, "workers": 1}

    def write(self, queries: Sequence[Query], sample: bool = False) -> list[Instruction]:
        """Write one instruction for each query, ``batch_size`` at a time.

        An instruction that the artefact's gate does not let through has an empty text: the student is on its own.
        """
        if self._remote is not None:
            return self._remote.sample(queries, greedy=not sample)
        with self._lock:
            teacher = self._loaded()
            parts = [queries[i : i + self.batch_size] for i in range(0, len(queries), self.batch_size)]
            return [written for part in parts for written in self._gated(teacher.sample(part, greedy=not sample))]

    def confidences(self, instructions: Sequence[Instruction]) -> list[float]:
        """Return each instruction's mean log-probability a token under the teacher, in nats: what a gate looks at."""
        import torch

        with torch.no_grad():
            found = self._loaded().log_probs(instructions)
        return [float(mean) for mean in found.values.sum(dim=1) / found.mask.sum(dim=1)]

    def _gated(self, written: list[Instruction]) -> list[Instruction]:
        if self._gate is None:
            return written
        pairs = zip(written, self.confidences(written), strict=True)
        return [one if self._gate.opens(confidence) else replace(one, text="") for one, confidence in pairs]

    def load(self) -> Self:
        """Load the weights now rather than at the first call; there are none if a server writes.

        Raises:
            ModelError: If the base cannot be loaded, or the adapter does not fit it.
        """
        if self._remote is not None:
            return self
        with self._lock:
            self._loaded()
        return self

    @property
    def placed(self) -> torch.device:
        """The device that the weights are on, or will be.

        Raises:
            ConfigError: If there is no such device.
        """
        from wst.modeling.loading import resolve_device

        return resolve_device(self.device)

    def push_to_hub(self, repo: str, **options: Any) -> str:  # noqa: ANN401 - those of upload
        """Upload the teacher to the hub, where ``from_pretrained(repo)`` finds it, and return the commit's URL.

        Args:
            repo: Hub id (user/name); the repository is created if need be.
            options: ``base``, ``private``, ``token`` and ``message``; see `wst.inference.hub.upload`.

        Raises:
            ModelError: If no reader could load the base, or the hub refuses.
        """
        return upload(self.artefact, repo, **options)

    def close(self) -> None:
        """Free the weights, which the next call loads again, or close the connections to the server."""
        with self._lock:
            self._teacher = None
        if self._remote is not None:
            self._remote.close()

    def _loaded(self) -> Teacher:
        if self._remote is not None:
            raise ConfigError("Instructor: a server writes, and its log-probabilities are not known; leave out server")
        if self._teacher is None:
            from wst.teacher import Teacher

            stored, base = self.artefact, self.artefact.base
            whole = base["model"] is None  # the folder holds all weights
            teacher = Teacher(
                str(stored.folder) if whole else self.base or base["model"],
                prompt=stored.prompt,
                lora=None,
                adapter=None if whole else str(stored.folder),
                quantization=base["quantization"] or "none",
                dtype=base["dtype"] or "auto",
                revision=None if whole or self.base else base["revision"],
                temperature=stored.temperature,
                max_new_tokens=stored.max_new_tokens,
                max_prompt_tokens=stored.max_prompt_tokens,
                chat_template_options=stored.chat_template_options,
            )
            teacher.load(self.placed)
            self._teacher = teacher
        return self._teacher


def _query(place: int, text: object, history: tuple[Message, ...]) -> Query:
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"query {place + 1}: expected text that is not blank, got {text!r:.60}")
    return Query(str(place), text, history=history)


def _turns(history: Sequence[ChatMessage]) -> tuple[Message, ...]:
    turns = []
    if isinstance(history, str) or not isinstance(history, Sequence):
        raise DataError(f"history: expected a list of messages, got a {type(history).__name__}")
    for place, turn in enumerate(history):
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, None)
        if role not in _ROLES or not isinstance(content, str):
            raise DataError(
                f"history[{place}]: expected role ({', '.join(_ROLES)}) and content as text, got {turn!r:.80}"
            )
        turns.append(Message(role, content))
    return tuple(turns)
