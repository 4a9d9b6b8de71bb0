"""Queries: read from files or the hub, split, and handed out in batches. Importing this package loads no torch."""

from wst._moved import lazy_attributes, listed

__getattr__ = lazy_attributes(__name__, listed(__name__))
