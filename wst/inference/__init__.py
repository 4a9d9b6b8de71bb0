"""What serves a trained teacher: the artefact it is stored as, and the `Instructor` that writes with it."""

from wst.inference.artefact import Artefact
from wst.inference.instructor import Instructor
from wst.inference.remote import TeacherServer

__all__ = ["Artefact", "Instructor", "TeacherServer"]
