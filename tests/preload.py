"""Imported once by the process that the runs of `runs.start` are forked from: what each run would otherwise repeat.

No thread may be started here, since threads do not survive a fork: modules are imported, and caches are filled.
"""

from importlib import import_module
from pathlib import Path

from lightning import LightningModule

from wst.cli.lightning import SETTINGS, WSTCommandLine

MODULES = """
    wst.callbacks wst.cli.check wst.cli.compare wst.data wst.evaluation wst.module wst.preference wst.rewards
    wst.students wst.students.local bitsandbytes fsspec.implementations.local peft.auto rich.progress
    torch.utils.tensorboard transformers.models.auto.modeling_auto transformers.models.auto.tokenization_auto
    transformers.models.llama.modeling_llama
"""
for name in MODULES.split():
    import_module(name)


class _ParseOnly(WSTCommandLine):
    """Parses a config, which fills jsonargparse's caches, and stops."""

    def instantiate_classes(self) -> None:
        raise InterruptedError


config = Path(__file__).parent.parent / "lightning_configs" / "quickstart.yaml"
try:
    _ParseOnly(LightningModule, None, save_config_callback=None, args=["fit", "--config", str(config)], **SETTINGS)
except InterruptedError:
    pass
else:
    raise AssertionError("the config was not parsed")
