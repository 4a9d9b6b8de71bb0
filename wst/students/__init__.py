"""Students: the frozen models that answer."""

from wst._moved import lazy_attributes, listed

__getattr__ = lazy_attributes(__name__, listed(__name__))
