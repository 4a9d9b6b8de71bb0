"""Rewards: what the teacher is trained to maximise. Importing this package loads neither torch nor transformers."""

from wst._moved import lazy_attributes, listed

__getattr__ = lazy_attributes(__name__, listed(__name__))
