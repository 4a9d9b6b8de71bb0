"""Entry point of the ``wst`` command."""

from __future__ import annotations

import sys

from wst.terminal import protect_output


def main() -> int:
    """Run the command line and give its exit code. Nothing heavy is imported for ``--version`` and ``cache``."""
    protect_output()
    if sys.argv[1:] == ["--version"]:
        from wst import __version__

        print(f"wst {__version__}")
        return 0
    if sys.argv[1:2] == ["cache"]:
        from wst.cli.cache import run as run_cache

        return run_cache(sys.argv[2:])
    import logging
    import os

    # As with `python -m`: classes in files of the current folder can be named in a config.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at import it advertises optional packages
    from wst.modeling.allocator import keep_freed_blocks

    keep_freed_blocks()
    if sys.argv[1:2] == ["compare"]:
        from wst.cli.compare import run as run_compare

        return run_compare(sys.argv[2:])
    if sys.argv[1:2] == ["check"]:
        from wst.cli.check import run as run_check

        return run_check(sys.argv[2:])
    from wst.cli.lightning import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
