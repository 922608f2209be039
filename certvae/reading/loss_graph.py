"""Reads the autograd graph of a loss: which operations depend on which, and where a posterior is sampled.

Only the names and links of the operations are read. Nothing is computed, and no saved tensor is used.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.graph import Node

from certvae.reading.sources import OURS

__all__ = ["Draw", "Edge", "LossGraph", "edge_of"]

Edge = tuple[Node, int]  # an operation and the number of its output
MOST_NODES = 200_000  # enough for an unrolled network over a long sequence; a larger graph is not read completely
# Operations whose every output value depends on many input values: layers, attention, opaque operations.
MIXING = ("Addmm", "Mm", "Bmm", "Baddbmm", "Addbmm", "Addmv", "Mv", "Convolution", "Linear", "Embedding", "Mkldnn")
OPAQUE = ("Cudnn", "Miopen", "Thnn", "Lstm", "Gru", "Rnn", "ScaledDotProduct", "CheckpointFunction", "CompiledFunction")
POSITIVE = ("Exp", "Expm1", "Exp2", "Softplus", "Sqrt")  # turn a network's output into a standard deviation


class Draw(NamedTuple):
    """A place in the graph where ``mean + scale * noise`` was computed.

    Attributes:
        total: the sum.
        mean: the first summand.
        scale: the factor of the noise and the operations that it was computed by, back to a layer or a branch.
    """

    total: Node
    mean: Edge
    scale: list[Edge]

    @property
    def positive(self) -> bool:
        """Whether the scale was made positive, for example by ``exp`` or ``softplus``."""
        return is_named(self.scale, POSITIVE)


def edge_of(tensor: Tensor) -> Edge | None:
    """The tensor's place in the graph; None if it has no graph."""
    return None if tensor.grad_fn is None else (tensor.grad_fn, tensor.output_nr)


class LossGraph:
    """The operations that a loss depends on, without those of certvae's own terms.

    Args:
        loss: before its backward pass.

    Attributes:
        complete: whether the whole graph was read. If not, nothing can be concluded from it.
        sums: places before a layer where noise may have been added.
        draws: the ``sums`` that sample from a posterior: their noise has a positive factor.
    """

    def __init__(self, loss: Tensor) -> None:
        self._users: dict[Node, list[tuple[Node, int]]] = {}
        root = loss.grad_fn
        self.complete = root is not None and self._walk(root)
        self.sums = [draw for node in self._users for draw in _sums_at(node) if self._layer_follows(draw.total)]
        self.draws = [draw for draw in self.sums if draw.positive]

    def _walk(self, root: Node) -> bool:
        self._users[root], waiting = [], [root]
        while waiting:
            node = waiting.pop()
            for source, number in _inputs(node):
                marks: Any = source.metadata
                if OURS in marks:
                    continue
                if source not in self._users:
                    self._users[source] = []
                    waiting.append(source)
                self._users[source].append((node, number))
            if len(self._users) > MOST_NODES:
                return False
        return True

    def reaches(self, edge: Edge) -> bool:
        """Whether the loss depends on this output."""
        return any(number == edge[1] for _, number in self._users.get(edge[0], []))

    def after(self, edge: Edge, through_layers: bool = True) -> set[Node]:
        """The operations that depend on this output: all, or only those before the next layer."""
        return set(self._following(edge, through_layers))

    def before(self, node: Node) -> set[Node]:
        """The operations that a given one depends on."""
        found, waiting = set[Node](), [node]
        while waiting:
            for source, _ in _inputs(waiting.pop()):
                if source in self._users and source not in found:
                    found.add(source)
                    waiting.append(source)
        return found

    def apart(self, draw: Draw) -> bool:
        """Whether the scale was not computed from the mean; in a residual block it is."""
        scale = {node for node, _ in draw.scale}
        return not any(node in scale for node in self._following(draw.mean, through_layers=True))

    def _following(self, edge: Edge, through_layers: bool) -> Iterator[Node]:
        waiting = [user for user, number in self._users.get(edge[0], []) if number == edge[1]]
        found = set(waiting)
        while waiting:
            node = waiting.pop()
            if not through_layers and is_mixing(node):
                continue
            yield node
            fresh = {user for user, _ in self._users[node]} - found
            found |= fresh
            waiting += fresh

    def _layer_follows(self, node: Node) -> bool:
        return any(is_mixing(user) for user in self._following((node, 0), through_layers=True))


def _name(node: Node) -> str:
    return node.name().lstrip("_").partition("Backward")[0]


def _inputs(node: Node) -> list[Edge]:
    return [(source, number) for source, number in node.next_functions if source is not None]


def is_mixing(node: Node) -> bool:
    """Whether each output value of an operation depends on many input values."""
    name = _name(node)
    return name.startswith(MIXING + OPAQUE) and "BatchNorm" not in name


def is_named(edges: Iterable[Edge], names: tuple[str, ...]) -> bool:
    """Whether any of these operations has one of these names."""
    return any(_name(node) in names for node, _ in edges)


def back_to_layer(edge: Edge) -> list[Edge]:
    """The chain of edges back from this one, up to a layer's output or a branch."""
    path = [edge]
    while not is_mixing(path[-1][0]):
        sources = _inputs(path[-1][0])
        if len(sources) != 1:
            break
        path.append(sources[0])
    return path


def _sums_at(node: Node) -> list[Draw]:
    sources, name = _inputs(node), _name(node)
    if len(sources) != 2 or name not in ("Add", "Addcmul"):
        return []
    if name == "Addcmul":
        return [Draw(node, sources[0], back_to_layer(sources[1]))]
    pairs = [(mean, _scale_of(noisy)) for mean, noisy in (sources, sources[::-1])]
    return [Draw(node, mean, scale) for mean, scale in pairs if scale]


def _scale_of(noisy: Edge) -> list[Edge]:
    """The factor of a product whose other factor does not depend on parameters, such as noise; empty if none."""
    path = back_to_layer(noisy)
    for place, (node, _) in enumerate(path):
        if _name(node) == "Mul" and len(_inputs(node)) == 1:
            return path[place + 1 :]
        if _name(node) in POSITIVE:
            break
    return []
