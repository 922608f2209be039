"""Captures the latent code of each batch from any LightningModule."""

import re
from collections.abc import Mapping
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from certvae.reading.captured import Captured, joined, read_latents
from certvae.reading.posteriors import scale_likely, scale_named, worded
from certvae.reading.sources import CodeFunction, CodeReader, FunctionCode, HeadsCode, Latents, StepCode, SubmoduleCode

__all__ = ["Captured", "LatentCapture", "LatentSource", "Latents", "as_latents", "read_latents"]

CodeSource = tuple[str, str] | str | Latents | CodeFunction
LatentSource = Mapping[str, CodeSource] | CodeSource  # groups first, or jsonargparse cannot write them back


class LatentCapture:
    """Captures the latent code of each batch in one of three ways; several codes are concatenated.

    Args:
        source: None: ``outputs["posterior"]`` of the module's own step, as :class:`certvae.VAE` returns it. A dotted
            path or :class:`Latents`: the output of a submodule, captured by a hook. Two paths: the outputs of two
            heads. A function: called with the module and the batch. A dict: named groups of latents, each with one of
            these except None.

    Attributes:
        source: the source with every entry as a :class:`Latents`.
        groups: slice of each group in the code, known after the first batch; empty without groups.

    Raises:
        ValueError: if the dict is empty, or a name has characters other than letters, digits, '_', '-' and '.'.
        TypeError: if a source has none of these forms.
    """

    def __init__(self, source: LatentSource | None) -> None:
        if isinstance(source, Mapping):
            given = {name: _named(one, name) for name, one in _checked(source).items()}
            self.source: LatentSource | None = given
            self._readers: dict[str, CodeReader] = {name: _reader_of(one) for name, one in given.items()}
        else:
            alone = None if source is None else _named(source)
            self.source, self._readers = alone, {"": StepCode() if alone is None else _reader_of(alone)}
        self.groups: dict[str, slice] = {}

    @property
    def names(self) -> list[str]:
        """Names of the groups; empty without groups."""
        return [name for name in self._readers if name]

    @property
    def deterministic(self) -> bool:
        """Whether a source is marked as ``deterministic``."""
        sources = self.source.values() if isinstance(self.source, Mapping) else [self.source]
        return any(isinstance(source, Latents) and source.deterministic for source in sources)

    def attach(self, module: nn.Module) -> None:
        """Register the hooks, before the module is compiled. They capture nothing until :meth:`listen`.

        Raises:
            ValueError: if there is no submodule with a name.
        """
        for reader in self._readers.values():
            reader.attach(module)

    def listen(self, listening: bool = True) -> None:
        """Start or stop capturing, and discard what was captured."""
        for reader in self._readers.values():
            reader.listen(listening)

    def detach(self) -> None:
        """Remove the hooks."""
        for reader in self._readers.values():
            reader.detach()

    def read(self, module: nn.Module, batch: Any, outputs: Any) -> Captured:
        """The latent code of the current batch, with its graph if it has one.

        A function source is called in the module's current mode, without updating batch norm statistics.

        Raises:
            ValueError: if nothing was captured, several calls were captured and ``calls`` selects none, or groups have
                different numbers of rows.
        """
        return joined(self.read_groups(module, batch, outputs))

    def read_groups(self, module: nn.Module, batch: Any, outputs: Any) -> dict[str, Captured]:
        """The codes of the groups by name; a source without groups has the name ``""``.

        Raises:
            ValueError: see :meth:`read`.
        """
        codes = {name: reader.read(module, batch, outputs) for name, reader in self._readers.items()}
        rows = {name: len(code.mean) for name, code in codes.items()}
        if len(set(rows.values())) > 1:
            raise ValueError(f"the groups of `latents` must each give a code for every row of the batch, got {rows}.")
        self.groups = _slices(codes) if self.names else {}
        return codes

    def output(self, module: nn.Module, batch: Any, outputs: Any) -> Any:
        """The raw output of the source for the current batch; with groups, that of the first group.

        Raises:
            ValueError: see :meth:`read`.
        """
        return next(iter(self._readers.values())).output(module, batch, outputs)

    def read_again(self, module: nn.Module, batch: Any, rows: Tensor, count: int) -> Captured:
        """Encode some rows of the current batch again, by the submodule, the function or ``forward``.

        Args:
            module: in eval mode.
            batch: the batch.
            rows: positions in the batch, int64, shape ``(n,)``.
            count: number of rows of the batch.

        Raises:
            TypeError: if the code was the step's own output, and ``forward`` does not return the code for the input.
        """
        return joined({name: reader.read_again(module, batch, rows, count) for name, reader in self._readers.items()})


def _checked(groups: Mapping[str, CodeSource]) -> Mapping[str, CodeSource]:
    if not groups:
        raise ValueError("`latents` must name at least one group, such as {'top': 'encoder.top'}, got an empty dict.")
    for name in groups:
        if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_.-]+", name)):
            raise ValueError(f"a group of `latents` must be named by letters, digits, '_', '-' or '.', got {name!r}.")
    return groups


def _named(source: CodeSource, group: str = "") -> Latents:
    found = as_latents(source)
    if found is None:
        where = f"the group {group!r} of `latents`" if group else "`latents`"
        raise TypeError(
            f"{where} must be the path of a submodule, two of them for two heads, ('fc_mu', 'fc_var'), a Latents or a "
            f"function (pl_module, batch) -> code, got {_worded(source)}. Several codes need names: "
            "latents={'top': 'encoder.top', 'bottom': 'encoder.bottom'}."
        )
    likely = scale_likely(found.scale_path or found.part)
    if found.scale is None and likely is not None and not scale_named(found.part):
        rank_zero_warn(
            f"`latents` takes {found.scale_path or found.part!r} for a log-variance; by its name it is likely to be "
            f"{worded(likely)}. Say which: Latents({found.shown}, ..., scale={likely!r}), or scale='log_variance'."
        )
    return found


def _worded(source: Any) -> str:
    return f"a {type(source).__name__}: name it by its path" if isinstance(source, nn.Module) else repr(source)


def as_latents(source: Any) -> Latents | None:
    """The source as a :class:`Latents`; None if it has none of the accepted forms."""
    if isinstance(source, str):
        path, _, part = source.partition(":")
        return Latents(path, part)
    if isinstance(source, tuple | list) and len(source) == 2 and all(isinstance(name, str) for name in source):
        path, _, part = source[0].partition(":")
        return Latents(path, part, scale_path=source[1])
    if isinstance(source, Latents):
        return source
    # A module is no function of (pl_module, batch).
    return Latents(source) if callable(source) and not isinstance(source, nn.Module) else None


def _reader_of(source: Latents) -> CodeReader:
    """The reader for one source."""
    if callable(source.path):
        return FunctionCode(source)
    return HeadsCode(source) if source.scale_path else SubmoduleCode(source)


def _slices(codes: dict[str, Captured]) -> dict[str, slice]:
    slices, start = {}, 0
    for name, code in codes.items():
        slices[name] = slice(start, start + code.mean.shape[1])
        start += code.mean.shape[1]
    return slices
