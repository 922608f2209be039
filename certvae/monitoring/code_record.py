"""Records where the outputs of submodules are in the autograd graph of one training batch."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.hooks import RemovableHandle

from certvae.reading.captured import select_part
from certvae.reading.loss_graph import Edge, edge_of
from certvae.reading.posteriors import Scale, mean_and_scale, scale_named
from certvae.reading.sources import Latents

__all__ = ["CodeEdges", "CodeRecord"]


class CodeEdges(NamedTuple):
    """Position of a code in the autograd graph.

    Attributes:
        mean: position of the mean, or of both halves with ``":chunk"``.
        log_variance: position of the log-variance; None if it is not a separate tensor.
        halved: whether the source has ``":chunk"``.
        scale: form of the second value; None: a log-variance.
    """

    mean: Edge
    log_variance: Edge | None
    halved: bool
    scale: Scale | None = None


class CodeRecord:
    """Records the outputs of all submodules from :meth:`begin` to :meth:`end`.

    Args:
        sources: the codes to record.

    Attributes:
        outputs: graph position of each submodule output, by a name that ``latents`` accepts.
        dropouts: graph positions of dropout outputs.
    """

    def __init__(self, sources: Iterable[Latents]) -> None:
        given = list(sources)
        self.sources = given + [source.scale_head for source in given if source.scale_head is not None]
        self.outputs: dict[str, Edge] = {}
        self.dropouts: set[Edge] = set()
        self._codes: dict[Latents, list[CodeEdges | None]] = {}
        self._handles: list[RemovableHandle] = []

    def begin(self, module: nn.Module) -> None:
        """Clear the record and register the hooks."""
        self.forget()
        if self._handles:
            return
        for name, part in module.named_modules():
            if name and not isinstance(part, torch.jit.ScriptModule):
                self._handles.append(part.register_forward_hook(self._hook(name)))

    def code(self, source: Latents) -> CodeEdges | None:
        """Graph position of the code from the selected call; None if it is not in the graph or not recorded."""
        code, head = self._chosen(source), source.scale_head
        scale = None if head is None else self._chosen(head)
        return code if code is None or scale is None else code._replace(log_variance=scale.mean, scale=source.scale)

    def _chosen(self, source: Latents) -> CodeEdges | None:
        calls = self._codes.get(source, [])
        return calls[-1 if source.calls == "last" else 0] if calls else None

    def forget(self) -> None:
        """Release the graph."""
        self.outputs, self.dropouts, self._codes = {}, set(), {}

    def end(self) -> None:
        """Clear the record and remove the hooks."""
        self.forget()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(part: nn.Module, inputs: Any, output: Any) -> None:
            # A copy of the module keeps the hooks.
            if self._handles and torch.is_grad_enabled() and not torch.compiler.is_compiling():
                self._add(name, part, output)

        return hook

    def _add(self, name: str, part: nn.Module, output: Any) -> None:
        for label, tensor in _tensors(name, output):
            edge = edge_of(tensor)
            if edge is not None:
                self.outputs.setdefault(label, edge)
                if isinstance(part, _DropoutNd) and part.training and part.p > 0:
                    self.dropouts.add(edge)
        for source in self.sources:
            if source.path == name:
                self._codes.setdefault(source, []).append(_code_edges(output, source))


def _tensors(name: str, output: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of an output, each with the name that ``latents`` accepts for it."""
    if isinstance(output, Tensor):
        yield name, output
    elif isinstance(output, dict):
        yield from ((f"{name}:{key}", value) for key, value in output.items() if isinstance(value, Tensor))
    elif isinstance(output, tuple | list):
        yield from ((f"{name}:{place}", value) for place, value in enumerate(output) if isinstance(value, Tensor))


def _code_edges(output: Any, source: Latents) -> CodeEdges | None:
    """Graph position of the selected part of an output; None for a property that computes a new tensor."""
    kind = source.scale or scale_named(source.part)
    try:
        if source.part == "chunk":
            found = [output]
        else:
            (found, own), (again, _) = (_pair(select_part(output, source.part)) for _ in range(2))
            kind = kind or own
            if any(one is not other for one, other in zip(found, again, strict=True)):
                return None
    except (ValueError, TypeError):
        return None  # reading the code reports the error
    edges = [edge_of(tensor) if isinstance(tensor, Tensor) else None for tensor in found]
    if not edges or edges[0] is None:
        return None
    return CodeEdges(edges[0], edges[1] if len(edges) == 2 else None, source.part == "chunk", kind)


def _pair(value: Any) -> tuple[list[Any], Scale | None]:
    """Mean of the selected part, its scale if there is one, and the form of the scale."""
    if isinstance(value, Distribution):
        gaussian = value.base_dist if isinstance(value, Independent) else value
        return ([gaussian.loc] if isinstance(gaussian, Normal) else []), None
    if not isinstance(value, Tensor) and (found := mean_and_scale(value)) is not None:
        mean, kind, scale = found
        return [mean, scale], kind
    return (list(value) if isinstance(value, tuple | list) and len(value) <= 2 else [value]), None
