"""Students: the frozen models that answer."""

from typing import TYPE_CHECKING

from wst._moved import lazy_attributes
from wst.students.accounts import Budget, Prices
from wst.students.base import Student
from wst.students.cache import AnswerCache
from wst.students.endpoint import EndpointStudent

if TYPE_CHECKING:
    from wst.students.local import LocalStudent
    from wst.students.vllm import VLLMStudent

__all__ = ["AnswerCache", "Budget", "EndpointStudent", "LocalStudent", "Prices", "Student", "VLLMStudent"]

# Their modules import torch and transformers.
__getattr__ = lazy_attributes(__name__, {"LocalStudent": "wst.students.local", "VLLMStudent": "wst.students.vllm"})
