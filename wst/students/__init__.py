"""Students: the frozen models that answer."""

from typing import TYPE_CHECKING, Any

from wst.students.accounts import Budget, Prices
from wst.students.base import Student
from wst.students.cache import AnswerCache
from wst.students.endpoint import EndpointStudent

if TYPE_CHECKING:
    from wst.students.local import LocalStudent
    from wst.students.vllm import VLLMStudent

__all__ = ["AnswerCache", "Budget", "EndpointStudent", "LocalStudent", "Prices", "Student", "VLLMStudent"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever is asked for
    # They bring torch and transformers: loaded when they are used.
    if name == "LocalStudent":
        from wst.students.local import LocalStudent

        return LocalStudent
    if name == "VLLMStudent":
        from wst.students.vllm import VLLMStudent

        return VLLMStudent
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
