"""A hook that puts a trained teacher before every provider of a LiteLLM proxy.

LiteLLM loads an instance from a file beside its config::

    # teacher.py
    from wst.inference.litellm import TeacherHook

    hook = TeacherHook("runs/quickstart/version_0/teacher/best")

    # config.yaml
    litellm_settings:
      callbacks: [teacher.hook]

Chat completions are instructed, streamed or not; other calls go through as they are. It fails open as `wst serve` does:
whatever happens to the teacher, the request goes on, unaided, and the response header ``x-wst-status`` says so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from wst.errors import ConfigError
from wst.inference.batching import Batcher, Outcome
from wst.inference.chat import BadRequest, ChatRequest
from wst.inference.instructor import Instructor

try:
    from litellm.integrations.custom_logger import CustomLogger
except ImportError as error:
    raise ConfigError(f"TeacherHook: {error.name} is not installed; pip install 'litellm[proxy]'") from error

_CALLS = ("completion", "acompletion")
_KEY = "wst"  #: of the request's metadata, which LiteLLM logs and sends to no provider
_log = logging.getLogger(__name__)


class _About(dict[str, Any]):
    """What the hook itself wrote into the metadata; a client's own can only be a plain dict."""


class TeacherHook(CustomLogger):
    """Writes an instruction for the last user message of a chat and puts it where training put it.

    The teacher is loaded here, so that a proxy without one does not start.

    Args:
        teacher: Folder that `wst fit` exported, or a hub id.
        deadline: Seconds that a request waits for its instruction at most.
        options: Those of `Instructor.from_pretrained`: ``device``, ``server``, ...

    Raises:
        ConfigError: If the deadline is not above 0.
        ModelError: If the teacher cannot be loaded.
    """

    def __init__(self, teacher: str, deadline: float = 2.0, **options: Any) -> None:  # noqa: ANN401
        super().__init__()
        if not deadline > 0:
            raise ConfigError(f"TeacherHook: deadline must be above 0 seconds, got {deadline}")
        instructor = Instructor.from_pretrained(teacher, **options).load()
        instructor("Hello")  # the first call is slower than any other; no client should wait for it
        self.prompt = instructor.artefact.student_prompt
        self.batcher = Batcher(instructor.write, deadline=deadline, **instructor.batches)

    async def async_pre_call_hook(
        self,
        user_api_key_dict: Any,  # noqa: ANN401 - LiteLLM's own
        cache: Any,  # noqa: ANN401
        data: dict[str, Any],
        call_type: str,
    ) -> dict[str, Any] | None:
        """Return the request with the instruction, or None to let it go as it came."""
        del user_api_key_dict, cache
        if call_type not in _CALLS:
            return None
        try:
            asked = ChatRequest.of(data)
        except BadRequest:  # the provider will say what is wrong with it
            return None
        try:
            outcome = await self.batcher.ask(asked.query) if asked.query.text.strip() else Outcome("empty", None, 0.0)
            instructed = asked.instructed(self.prompt, outcome.instruction)
        except Exception as error:  # nothing here may cost the client its answer
            _log.warning("no instruction: %s", type(error).__name__)
            outcome, instructed = Outcome("error", None, 0.0), dict(data)
        words = None if outcome.instruction is None else outcome.instruction.text
        metadata = data.get("metadata")
        known = dict(metadata) if isinstance(metadata, Mapping) else {}
        return instructed | {"metadata": known | {_KEY: _About(status=outcome.status, instruction=words)}}

    async def async_post_call_response_headers_hook(
        self,
        data: dict[str, Any],
        *_: Any,  # noqa: ANN401 - LiteLLM's own
        **__: Any,  # noqa: ANN401
    ) -> dict[str, str] | None:
        """Return the header that says what came of the instruction."""
        metadata = data.get("metadata")
        about = metadata.get(_KEY) if isinstance(metadata, Mapping) else None
        return {"x-wst-status": str(about["status"])} if isinstance(about, _About) else None
