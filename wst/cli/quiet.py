"""Readies a process for models, and silences third-party output that tells the user nothing."""

from __future__ import annotations

import logging
import warnings

_IGNORED = (
    "Using ModelCheckpoint with manual optimization",
    ".*does not have many workers.*",
    "LightningCLI's args parameter is intended",  # for use as here
    ".*in eval mode at the start of training.*",  # on purpose: no dropout
    ".*sync_dist=True.*when logging on epoch level.*",  # all ranks log the same value
    ".*isinstance.treespec, LeafSpec.*",
    ".*is_gradient_checkpointing.*",
)


def prepare() -> None:
    """Keep freed memory; hide progress bars of weights, warnings that do not apply, advertisements. Imports torch."""
    from wst.modeling.allocator import keep_freed_blocks

    keep_freed_blocks()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at import it advertises optional packages
    from transformers.utils import logging as transformers_logging  # heavy, so not at the top

    transformers_logging.disable_progress_bar()
    for message in _IGNORED:
        warnings.filterwarnings("ignore", message=message)
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    rank_zero.addFilter(lambda record: "💡" not in record.getMessage())
