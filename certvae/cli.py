"""The command line: Lightning's fit, validate, test and predict, and the commands of this project."""

import sys
from collections.abc import Callable, Sequence

from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.cli import LightningCLI

__all__ = ["main", "run_lightning"]

USAGE = """usage: certvae COMMAND ...

  fit | validate | test | predict   run a model from a YAML:   certvae fit --config experiments/digits/full.yaml
  protocol                          search, full, no_align, rescue for each seed, then a table, a summary and a figure

certvae COMMAND --help tells the options of each."""


def run_lightning(args: Sequence[str] | None = None, run: bool = True) -> LightningCLI:
    """Lightning's command line in subclass mode: any model and any DataModule by ``class_path``.

    Args:
        args: arguments; default: those of the process.
        run: whether to run the subcommand, or only to build trainer, model and data.
    """
    return LightningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},
        args=None if args is None else list(args),
        run=run,
    )


def _protocol(args: Sequence[str]) -> None:
    from certvae.protocol import main as run_protocol

    run_protocol(args)


_COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {"protocol": _protocol}


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of ``certvae``; returns the exit status.

    An error that the user can mend is printed in one line; ``CERTVAE_TRACEBACK=1`` shows where it came from.
    """
    from certvae.errors import user_errors

    given = list(sys.argv[1:] if args is None else args)
    if not given or given[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    with user_errors() as outcome:
        if given[0] in _COMMANDS:
            _COMMANDS[given[0]](given[1:])
        else:
            run_lightning(args)
    return outcome.status


if __name__ == "__main__":
    sys.exit(main())
