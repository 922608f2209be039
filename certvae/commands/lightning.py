"""Lightning's command line for runs from YAMLs: ``certvae fit``, ``validate``, ``test`` and ``predict``."""

import os
import signal
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.cli import LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException

from certvae.io.files import write_atomic

__all__ = ["main", "run_lightning"]


class _SaveConfig(SaveConfigCallback):
    """Lightning's, but ``config.yaml`` is written whole or not at all."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder = trainer.log_dir or trainer.default_root_dir  # a broadcast, which every process must reach
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        write_atomic(Path(self._folder) / self.config_filename, self.parser.dump(self.config, skip_none=False))


class _CommandLine(LightningCLI):
    """Lightning's, but a resumed run keeps the ``metrics.csv`` of its first part, which ``CSVLogger`` deletes."""

    def before_fit(self) -> None:
        if not (self.config["fit"].get("ckpt_path") and self.trainer.is_global_zero):
            return
        for logger in self.trainer.loggers:
            path = Path(logger.log_dir) / "metrics.csv" if isinstance(logger, CSVLogger) else None
            if path is not None and path.is_file():
                free = (path.with_name(f"metrics-{number}.csv") for number in count(1))
                os.rename(path, next(other for other in free if not other.exists()))


def run_lightning(args: Sequence[str] | dict[str, Any] | None = None, run: bool = True) -> LightningCLI:
    """Lightning's command line in subclass mode: any model and any DataModule by ``class_path``.

    Args:
        args: arguments, or a configuration as a dict; default: those of the process.
        run: whether to run the subcommand, or only to build trainer, model and data.
    """
    return _CommandLine(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=_SaveConfig,
        save_config_kwargs={"save_to_log_dir": False},
        args=list(args) if isinstance(args, tuple) else args,  # type: ignore[arg-type]
        run=run,
    )


def main(args: Sequence[str] | None = None) -> int:
    """``certvae fit`` and Lightning's other subcommands; returns the exit status."""
    try:
        run_lightning(args)
    except SIGTERMException:  # of Lightning, which would end with status 0
        print("certvae: stopped by SIGTERM; the same command with `--ckpt_path last` goes on.", file=sys.stderr)
        return 128 + signal.SIGTERM
    return 0
