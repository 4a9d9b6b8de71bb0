# The names of this package, each once: type checkers read this file, and so does __init__.py, which imports on demand.
from wst.students.accounts import Budget as Budget
from wst.students.accounts import Prices as Prices
from wst.students.base import Student as Student
from wst.students.cache import AnswerCache as AnswerCache
from wst.students.endpoint import EndpointStudent as EndpointStudent
from wst.students.local import LocalStudent as LocalStudent
from wst.students.vllm import VLLMStudent as VLLMStudent
