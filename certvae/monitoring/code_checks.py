"""Checks on the graph of the first training loss whether ``latents`` names the code."""

from collections.abc import Iterator, Mapping

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.autograd.graph import Node

from certvae.monitoring.code_record import CodeEdges, CodeRecord
from certvae.reading.latents import Latents, LatentSource, as_latents
from certvae.reading.loss_graph import POSITIVE, Draw, Edge, LossGraph, back_to_layer, is_named
from certvae.reading.posteriors import Scale, worded

__all__ = ["CodeChecks", "check_log_variance"]

PATIENCE = 20  # training batches after which a code that no loss depends on is reported
HALVES = ("Split", "SplitWithSizes", "UnsafeSplit", "Slice", "Unbind", "Narrow", "Select", "Index")
DROPOUTS = ("NativeDropout", "FusedDropout")
FACTORS = ("Mul", "Div", "Pow", "Sqrt")
SOFTPLUS = "2 * softplus(scale).log()"
WORDS: dict[Scale, tuple[str, str]] = {
    "std": ("the standard deviation itself", "2 * std.log()"),
    "variance": ("the variance itself", "variance.log()"),
    "log_std": ("the logarithm of the standard deviation", "2 * log_std"),
    "log_variance": ("the log-variance", "log_variance"),
}


class CodeChecks:
    """Warns once if ``latents`` does not name the code from which the decoder receives a draw.

    It reads the graph of the loss before the first backward pass, and finds: a backbone in front of the heads; the
    scale in place of the mean; mean and log-variance in one tensor; a draw, the decoder or its output; a code that no
    loss depends on; a standard deviation given as a log-variance; dropout on the code. Nothing is computed, drawn or
    run a second time.

    It searches for ``mean + scale * noise`` with a positive scale, followed by a layer. It gives no warning if it finds
    none: for a function or None as source, a compiled module, a frozen encoder, and draws of another form.

    Args:
        source: the validated ``latents`` of a callback.

    Attributes:
        sound: whether the step drew from every code that ``latents`` names, with nothing to warn about.
    """

    def __init__(self, source: LatentSource | None) -> None:
        sources = list(source.values()) if isinstance(source, Mapping) else [source]
        named = [item for item in map(as_latents, sources) if item is not None]
        # A function and the module itself cannot be located in a graph.
        self._waiting = [item for item in named if item.path and not callable(item.path)]
        self._record = CodeRecord(self._waiting)
        self._batches, self._unseen = 0, max(1, len(sources))

    @property
    def sound(self) -> bool:
        return self._unseen == 0

    def begin(self, module: nn.Module) -> None:
        """Start recording; call it in ``on_train_batch_start``."""
        if self._waiting and _is_compiled(module):
            self._waiting = []  # a hook added later would cause a recompilation
        if self._waiting:
            self._record.begin(module)

    def before_backward(self, loss: Tensor) -> None:
        """Check the loss's graph; call it in ``on_before_backward``."""
        if not self._waiting:
            return
        graph = LossGraph(loss)
        for source in list(self._waiting):
            code = self._record.code(source)
            if not graph.complete or (code is not None and graph.reaches(code.mean)):
                self._waiting.remove(source)
            if graph.complete and code is not None and graph.reaches(code.mean):
                finding = _finding(source, code, graph, self._record)
                self._unseen -= not finding and _draws_whole(code, graph)
                _say(source, finding)

    def end(self) -> None:
        """Stop recording; call it in ``on_train_batch_end``."""
        if not self._waiting:
            self._record.end()
            return
        self._batches += 1
        if self._batches >= PATIENCE:
            for source in self._waiting:
                if self._record.code(source) is not None:
                    _say(source, UNREAD)
            self.stop()
        self._record.forget()

    def stop(self) -> None:
        """End all checks; call it in ``on_exception`` and ``teardown``."""
        self._waiting = []
        self._record.end()


UNREAD = (
    f"gives a code on which no loss of the first {PATIENCE} training batches depends, so the decoder does not receive "
    "it. Name the submodule from whose output the step draws the code."
)


def _is_compiled(module: nn.Module) -> bool:
    marks = ("_compiled_call_impl", "_orig_mod", "_compiler_ctx")
    return any(getattr(part, mark, None) is not None for part in module.modules() for mark in marks)


def _say(source: Latents, finding: str) -> None:
    if finding:
        path = f"{source.path}{':' * bool(source.part)}{source.part}"
        rank_zero_warn(f"`latents={(path, source.scale_path) if source.scale_path else path!r}` {finding}")


def _finding(source: Latents, code: CodeEdges, graph: LossGraph, record: CodeRecord) -> str:
    """The problem of a code that the loss depends on, as text; empty if there is none."""
    near = graph.after(code.mean, through_layers=False)
    own = next(_own_draws(code, near, graph), None)
    if own is not None:
        return _wrong_scale(source, code, own, near) or _dropped(source, code, record)
    draws, before, after = graph.draws, graph.before(code.mean[0]), graph.after(code.mean)
    before.add(code.mean[0])
    behind = next((draw for draw in draws if draw.total in before and graph.apart(draw)), None)
    if behind is not None:
        return _after_the_draw(code, behind, graph, record)
    swapped = next((draw for draw in draws if code.mean in draw.scale and graph.apart(draw)), None)
    if swapped is not None:
        return f"gives what the scale of the draw is made from, not its mean. {_cure(swapped, graph, record)}"
    ahead = next((draw for draw in draws if _feeds(draw, after) and graph.apart(draw)), None)
    if ahead is not None:
        return _backbone(ahead, graph, record)
    return _dropped(source, code, record)


def _own_draws(code: CodeEdges, near: set[Node], graph: LossGraph) -> Iterator[Draw]:
    """Draws of this code; a scale without a positive function is found by the scale that ``latents`` names."""
    for draw in graph.sums:
        own = _made_from(draw.mean, code.mean, near)
        if own and (draw.scale[0] == code.log_variance or (draw.positive and graph.apart(draw))):
            yield draw


def _draws_whole(code: CodeEdges, graph: LossGraph) -> bool:
    """Whether a draw takes its mean and its scale from this code."""
    draws = _own_draws(code, graph.after(code.mean, through_layers=False), graph)
    return any(code.halved or code.log_variance in draw.scale for draw in draws)


def _made_from(edge: Edge, origin: Edge, after: set[Node]) -> bool:
    return edge == origin or edge[0] in after


def _feeds(draw: Draw, after: set[Node]) -> bool:
    return draw.mean[0] in after and any(node in after for node, _ in draw.scale)


def _wrong_scale(source: Latents, code: CodeEdges, draw: Draw, near: set[Node]) -> str:
    """Check for a drawn code without a log-variance, or with a scale of another form."""
    if source.deterministic:
        return (
            "is declared deterministic, but the step adds noise to it before a layer reads it. Leave out "
            "`deterministic=True`, and name mean and log-variance."
        )
    if code.log_variance is not None:
        return _not_a_log_variance(source, code, draw)
    halves = [node for node in near if is_named([(node, 0)], HALVES)]
    if code.halved or not halves or not any(_made_from(edge, code.mean, near) for edge in draw.scale):
        return ""
    return (
        "gives mean and log-variance side by side in one tensor, and both are read as the mean. Split them: "
        f"latents='{source.path}:chunk', if the mean is the first half of axis 1; else give a function (pl_module, "
        "batch) -> (mean, log_variance)."
    )


def _not_a_log_variance(source: Latents, code: CodeEdges, draw: Draw) -> str:
    if code.log_variance not in draw.scale:
        return ""
    told, is_ = code.scale or "log_variance", _scale_at(code.log_variance, draw)
    if is_ == told:
        return ""
    what, formula = WORDS[is_] if is_ else ("what a softplus makes the standard deviation from", SOFTPLUS)
    say = "Give" if is_ is None else f"Say so, Latents({source.shown}, ..., scale={is_!r}), or give"
    read = worded(told).removeprefix("a ").removeprefix("the ")
    return (
        f"gives {what} where the {read} is read. Rate, bracket and channel margin are then wrong; the margin is not. "
        f"{say} a function instead: latents=lambda pl_module, batch: (mean, {formula})."
    )


def _scale_at(edge: Edge, draw: Draw) -> Scale | None:
    """What stands at a place from which a draw's scale is made; None for what a softplus makes the deviation from."""
    between = draw.scale[: draw.scale.index(edge)]
    if not is_named(between, POSITIVE):
        return "std"
    if not is_named(between, ("Exp", "Exp2", "Expm1", "Softplus")):
        return "variance"
    if is_named(between, ("Softplus",)):
        return None
    return "log_std" if is_named(between, ("Exp",)) and not is_named(between, FACTORS) else "log_variance"


def _after_the_draw(code: CodeEdges, draw: Draw, graph: LossGraph, record: CodeRecord) -> str:
    drawn = _made_from(code.mean, (draw.total, 0), graph.after((draw.total, 0), through_layers=False))
    what = "gives a draw of the code in training, not its mean" if drawn else "comes after the draw of the code"
    other = "In eval mode it may be the mean: then the two differ." if drawn else "Is it the decoder, or a part of it?"
    return f"{what}. {other} {_cure(draw, graph, record)}"


def _backbone(draw: Draw, graph: LossGraph, record: CodeRecord) -> str:
    return (
        "gives features from which later layers make the mean and the scale of the code: a backbone in front of the "
        "heads. Its features can be informative where the code has collapsed. " + _cure(draw, graph, record)
    )


def _cure(draw: Draw, graph: LossGraph, record: CodeRecord) -> str:
    """Advice with the names of a draw's mean and, if possible, its log-variance."""
    path = back_to_layer(draw.mean)
    names = {edge: name for name, edge in sorted(record.outputs.items(), key=_depth, reverse=True)}
    named = [edge for edge in path if edge in names]
    if not named:
        return "Name what gives the mean, such as latents='encoder.fc_mu', or a function (pl_module, batch) -> code."
    mean = names[named[0]]
    if named[0] in draw.scale:
        halved = is_named(path[: path.index(named[0])], HALVES)
        return f"Name the code: latents='{mean}{':chunk' if halved else ''}'."
    return f"Name the code: latents='{mean}'{_both(mean, draw, names)}."


def _both(mean: str, draw: Draw, names: Mapping[Edge, str]) -> str:
    """How to name the log-variance beside the mean; empty where no part gives it."""
    edge = next((edge for edge in draw.scale if edge in names), None)
    if edge is None or _scale_at(edge, draw) != "log_variance":
        return ""
    (path, _, part), (other, _, scale) = mean.partition(":"), names[edge].partition(":")
    if part and scale and path == other:
        return f"; with its log-variance, which the reading needs, latents='{path}:{part},{scale}'"
    return "" if part or scale else f"; with its log-variance, which the reading needs, latents={(path, other)}"


def _depth(output: tuple[str, Edge]) -> tuple[int, int]:
    return output[0].count("."), len(output[0])


def _dropped(source: Latents, code: CodeEdges, record: CodeRecord) -> str:
    path = back_to_layer(code.mean)
    if not (is_named(path, DROPOUTS) or any(edge in record.dropouts for edge in path)):
        return ""
    return (
        "gives a code that dropout changes in training and not in eval mode, where it is measured: the decoder has "
        "learned from another code. Put the dropout before the last layer of the encoder, or leave it out."
    )


def check_log_variance(log_variance: Tensor | None) -> None:
    """Warn if every log-variance of a batch is positive: they may be standard deviations.

    Args:
        log_variance: log-variance of the posterior, shape ``(B, latent_dim)``, or None.
    """
    # A collapsed posterior is as wide as the prior: its log-variances are around 0.
    if log_variance is not None and bool((log_variance > 0).all()) and float(log_variance.mean()) > 0.1:
        rank_zero_warn(
            "Every log-variance that `latents` gave is positive: a posterior wider than N(0, 1) everywhere, as in some "
            "first epochs. Is it a standard deviation? Give (mean, log_variance), such as (mean, 2 * std.log()): the "
            "margin does not depend on it, but rate and channel margin do."
        )
