"""Weak-to-Strong Transfer: train a small teacher to write the instructions a frozen student needs."""

from wst._moved import install, lazy_attributes, listed

__version__ = "0.1.0"

install()

# `__init__.pyi` lists the public names. Each is imported on first access, so that `import wst` does not load torch.
_HOMES = listed(__name__)
__all__ = ["__version__", *_HOMES]
__getattr__ = lazy_attributes(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
