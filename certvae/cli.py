"""The command ``certvae``, which imports a subcommand only when it runs, so that help appears at once."""

import os
import sys
from collections.abc import Callable, Sequence

__all__ = ["main"]

USAGE = """usage: certvae COMMAND ...

  fit | validate | test | predict   run a model from a YAML:   certvae fit --config experiments/digits/full.yaml
  protocol                          search, full, no_align, rescue for each seed, then a table, a summary and a figure
  certify                           certificate.json from a checkpoint, a teacher and a YAML, on rows kept for it
  verify                            recompute a certificate.json; exit status 0 only if it holds
  diagnose                          what a certificate.json shows about the code, why, and what to do
  report                            one HTML file on a run, or a comparison of several

certvae COMMAND --help lists the options of each; certvae --version prints the version."""

Main = Callable[[Sequence[str]], int | None]


def _protocol() -> Main:
    from certvae.commands.protocol import main

    return main


def _certify() -> Main:
    from certvae.commands.certify import main

    return main


def _verify() -> Main:
    from certvae.commands.verify import main

    return main


def _diagnose() -> Main:
    from certvae.commands.diagnose import main

    return main


def _report() -> Main:
    from certvae.report.command import main

    return main


def _lightning() -> Main:
    from certvae.commands.lightning import main

    return main


_COMMANDS: dict[str, Callable[[], Main]] = {
    "protocol": _protocol,
    "certify": _certify,
    "verify": _verify,
    "diagnose": _diagnose,
    "report": _report,
}
_SUBCOMMANDS = ("fit", "validate", "test", "predict")


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of ``certvae``; returns the exit status.

    An error that the user can fix is printed in one line; ``CERTVAE_TRACEBACK=1`` shows its traceback.
    """
    given = list(sys.argv[1:] if args is None else args)
    if not given or given[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if given[0] == "--version":
        from certvae import __version__

        print(f"certvae {__version__}")
        return 0
    if given[0] in _COMMANDS:
        return _run(_COMMANDS[given[0]], given[1:])
    if given[0] in _SUBCOMMANDS or given[0].startswith("-"):
        return _run(_lightning, given)
    from certvae.commands.mistakes import nearest

    hint = nearest(given[0], [*_COMMANDS, *_SUBCOMMANDS]) or " certvae --help lists them."
    print(f"certvae: there is no command {given[0]!r}.{hint}", file=sys.stderr)
    return 2


def _run(command: Callable[[], Main], args: Sequence[str]) -> int:
    from certvae.terminal import quiet, user_errors

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a YAML may name classes of the user
    with user_errors() as outcome:
        start = command()
        if command is not _lightning:
            quiet()  # after the import of Lightning, which sets the level of its own logger
        outcome.status = int(start(args) or 0)
    return outcome.status


if __name__ == "__main__":
    sys.exit(main())
