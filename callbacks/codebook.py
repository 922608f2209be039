"""A callback that measures the use of a codebook and the information in its codes."""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, OneHotCategorical
from torch.utils.data import DataLoader

from certvae.io.files import append_json
from certvae.monitoring.divergence import OnDivergence
from certvae.monitoring.watching import RowsCallback
from certvae.reading.latents import LatentCapture, LatentSource
from certvae.theory.arguments import float64_device
from certvae.theory.codebook import CodebookInformation, information_of_sums
from certvae.theory.codebook_sums import CodebookSums, CodeKind, Positions, codebook_sums

__all__ = ["CodebookCallback"]

LOGGED = {"used": "used", "perplexity": "perplexity", "information": "estimate", "lower": "lower", "upper": "upper"}


class CodebookCallback(RowsCallback):
    """Log how many entries of a codebook are used, and how much the codes carry about the input.

    For VQ-VAEs and categorical codes. It needs no teacher and no second forward pass. At each validation epoch it logs
    ``codebook/used``, the number of entries in use; ``codebook/perplexity``; ``codebook/information``, the information
    of one code in nats; and ``codebook/lower`` and ``codebook/upper``, proved bounds in nats on the information of all
    codes of a row. See :func:`certvae.codebook_information`. The confidence holds for each epoch separately: over many
    epochs some bounds will fail.

    It prints one line when the result changes by 10 %, with the number of dead entries if at most half are used. The
    sums are exact: results do not depend on the batch size or the number of processes. Memory is O(size).

    Args:
        latents: where the codes are: a submodule and the part of its output, as in ``"quantizer:2"``, or a function
            ``(pl_module, batch) -> codes``; see :class:`certvae.callbacks.CertificateCallback`. Codes are indices ``(B,
            ...)``, probabilities, logits, or a categorical ``torch.distributions`` object. Flattened codes of a batch,
            ``(B*h*w,)`` or ``(B*h*w, 1)``, are split into B rows, with a warning.
        size: number of entries of the codebook, at least 2. Required for indices.
        kind: ``"indices"``, ``"logits"`` or ``"probs"``; None reads integers as indices and floats as probabilities,
            which must sum to 1.
        axis: axis of the entries, for probabilities and logits; None: the last axis or axis 1, whichever has ``size``
            entries.
        positions: ``"shared"`` if all codes of a row use one codebook, ``"each"`` if each position has its own.
        confidence: confidence of each bound, in (0, 1).
        dataloader: position or name of the measured dataloader among several validation dataloaders. Or a dataloader of
            validation rows, for a module without a ``validation_step``; see
            :class:`certvae.callbacks.CertificateCallback`.
        name: first part of the logged keys; letters, digits, '_', '-' or '.'.
        save_dir: folder for ``{name}_val.jsonl``, with one line per validation of a run; None writes nothing.
        on_divergence: action if codes are not finite: ``"warn"`` gives no numbers for this epoch and one
            warning that names the row; ``"raise"`` ends the run with a ValueError.

    Attributes:
        information: result of the latest validation, the same on all processes; None before, and for codes that are not
            finite.

    Raises:
        ValueError: if ``size`` is below 2 or missing, ``kind`` or ``positions`` is another word, ``confidence`` is not
            in (0, 1), or ``name`` has other characters.

    Example:
        >>> from certvae.callbacks import CodebookCallback
        >>> watch = CodebookCallback(latents="quantizer:2", size=512)  # the third output of `quantizer`: indices
    """

    def __init__(
        self,
        latents: LatentSource,
        size: int | None = None,
        kind: CodeKind | None = None,
        axis: int | None = None,
        positions: Positions = "shared",
        confidence: float = 0.95,
        dataloader: int | str | DataLoader[Any] = 0,
        name: str = "codebook",
        save_dir: str | Path | None = None,
        on_divergence: OnDivergence = "warn",
    ) -> None:
        self.capture: _CodeCapture
        super().__init__(_CodeCapture(latents), dataloader, on_divergence)
        if size is not None and size < 2:
            raise ValueError(f"`size` must be at least 2 entries, got {size}.")
        if kind not in (None, "indices", "logits", "probs"):
            raise ValueError(f"`kind` must be 'indices', 'logits', 'probs' or None, got {kind!r}.")
        if kind == "indices" and size is None:
            raise ValueError("`size` must be given with kind='indices': how many entries the codebook has.")
        if positions not in ("shared", "each"):
            raise ValueError(f"`positions` must be 'shared' or 'each', got {positions!r}.")
        if not 0 < confidence < 1:
            raise ValueError(f"`confidence` must lie between 0 and 1, got {confidence}.")
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise ValueError(f"`name` must be letters, digits, '_', '-' or '.', got {name!r}.")
        self.size, self.kind, self.axis, self.positions = size, kind, axis, positions
        self.confidence, self.name, self.save_dir = confidence, name, save_dir
        self.information: CodebookInformation | None = None
        self._said: CodebookInformation | None = None
        self._cut = False
        self._sums: CodebookSums | None = None

    @property
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    def _start(self) -> None:
        self._sums = None

    def _read(self, pl_module: LightningModule, batch: Any, outputs: Any) -> None:
        found = self.capture.read_codes(pl_module, batch)
        codes = self._cut_into_rows(found.values.detach(), batch)
        positions, weights = self._next(len(codes), batch)
        counted = weights > 0
        if bool(counted.any()):
            kind, axis = found.kind or self.kind, self.axis if found.axis is None else found.axis
            self._add(codes[counted.to(codes.device)], positions[counted], kind, axis)

    def _cut_into_rows(self, codes: Tensor, batch: Any) -> Tensor:
        """Codes whose first axis has one entry per batch row; the batch's first tensor gives the number of rows."""
        sizes: list[int] = []
        apply_to_collection(batch, Tensor, lambda tensor: sizes.extend(tensor.shape[:1]))
        if codes.ndim == 0 or len(codes) in sizes or not any(sizes):
            return codes
        rows = next(filter(None, sizes))
        if len(codes) % rows:
            raise ValueError(
                f"`latents` must give codes of each of the batch's {rows} rows, got {tuple(codes.shape)}. Give a "
                "function (pl_module, batch) -> codes of shape (B, ...)."
            )
        if not self._cut:
            rank_zero_warn(
                f"{type(self).__name__} takes codes of shape {tuple(codes.shape)} as {rows} rows of "
                f"{len(codes) // rows} codes, row after row. If they are laid out otherwise, give a function "
                "(pl_module, batch) -> codes."
            )
        self._cut = True
        return codes.view(rows, -1) if codes.shape[1:] in ((), (1,)) else codes.unflatten(0, (rows, -1))

    def _add(self, codes: Tensor, positions: Tensor, kind: CodeKind | None, axis: int | None) -> None:
        faulty = ~codes.flatten(start_dim=1).isfinite().all(dim=1).cpu() if codes.is_floating_point() else None
        if faulty is not None and bool(faulty.any()):
            row = int(positions[faulty][0])
            self.fault = (
                self.fault or f"the codes of row {row} are NaN or infinite (logits masked by -inf count as such)"
            )
            return
        sums = codebook_sums(codes, self.size, kind=kind, axis=axis, positions=self.positions)
        self._sums = sums if self._sums is None else self._sums + sums

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the results over the rows of all processes; collectives that every rank must reach.

        Raises:
            ValueError: if there are fewer than two rows, processes have codes of different shapes, or codes are not
                finite and ``on_divergence`` is ``"raise"``.
        """
        if self._positions is None:
            return
        self.capture.listen(False)
        device = float64_device(pl_module.device)
        self.information = None
        if self._diverged(trainer, device):
            return
        sums, missing = self._gathered(trainer, device)
        if sums is None:
            raise ValueError("the measured dataloader gave no row; choose another with `dataloader`.")
        self.information = information_of_sums(sums, self.confidence)
        self._publish(trainer, pl_module, self.information, missing, device)

    def _gathered(self, trainer: Trainer, device: torch.device) -> tuple[CodebookSums | None, bool]:
        """Sums over all processes, and whether rows are missing; collectives."""
        assert self._attendance is not None
        strategy, own = trainer.strategy, self._sums
        shape = [0] * 4 if own is None else [*reversed(own.weights.shape), own.codes, int(own.soft)]
        seen = torch.tensor([self._attendance.missing, *shape], device=device)
        table = strategy.all_gather(seen).view(-1, 5)
        shapes = {tuple(line) for line in table[:, 1:].tolist() if line[0]}
        missing = bool(table[:, 0].any())
        if len(shapes) > 1:
            raise ValueError(f"`latents` must give codes of one shape on all processes, got {sorted(shapes)}.")
        if not shapes:
            return None, missing
        size, books, codes, soft = shapes.pop()
        empty = torch.zeros(1 + 2 * books * (size + 1), dtype=torch.float64, device=device)
        total = strategy.reduce(empty if own is None else own.pack().to(device), reduce_op="sum")
        return CodebookSums.unpack(total, size, books, codes, bool(soft)), missing

    def _publish(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        found: CodebookInformation,
        missing: bool,
        device: torch.device,
    ) -> None:
        for key, field in LOGGED.items():
            value = torch.tensor(getattr(found, field), dtype=torch.float64, device=device)
            pl_module.log(f"{self.name}/{key}", value, on_step=False, on_epoch=True, sync_dist=True)
        if self._said is None or _differ(found, self._said):
            self._said = found
            name = "" if self.name == "codebook" else f"{self.name}: "
            dead = f"; {found.dead:,} codes are dead: restart them or take fewer" if found.few_used else ""
            partial = "; a part of the validation set is missing" if missing else ""
            pl_module.print(f"epoch {trainer.current_epoch}: {name}{found.line()}{dead}{partial}")
        if self.save_dir is not None and trainer.is_global_zero:
            record = {"epoch": trainer.current_epoch, "global_step": trainer.global_step, "partial": missing}
            append_json(Path(self.save_dir) / f"{self.name}_val.jsonl", record | found.to_dict())


class _Codes(NamedTuple):
    """Codes of a batch, with their kind and the axis of the entries if their type implies these, else None."""

    values: Tensor
    kind: CodeKind | None = None
    axis: int | None = None


class _CodeCapture(LatentCapture):
    """Reads codes unchanged: they may be integers and have several axes."""

    def read_codes(self, module: nn.Module, batch: Any) -> _Codes:
        """The codes of the latest batch.

        Raises:
            TypeError: if they are neither a tensor nor a categorical distribution.
            ValueError: if the submodule was not called, or was called several times and no call is selected.
        """
        value = self.output(module, batch, None)
        while isinstance(value, Independent):
            value = value.base_dist
        if isinstance(value, Categorical | OneHotCategorical):
            return _Codes(value.logits, "logits", -1)
        if isinstance(value, Tensor):
            return _Codes(value)
        kind = "distribution" if isinstance(value, Distribution) else "object"
        has = f" of {len(value)}" if isinstance(value, tuple | list) else ""
        raise TypeError(
            "`latents` must give a tensor of codes or a categorical torch.distributions object, got the "
            f"{kind} {type(value).__name__}{has}. Name the part after a colon, as in 'quantizer:2', or give a function "
            "(pl_module, batch) -> codes."
        )


def _differ(new: CodebookInformation, old: CodebookInformation) -> bool:
    """Whether the result changed: in its kind, or a number by a tenth."""
    if (new.lower == 0, new.few_used) != (old.lower == 0, old.few_used):
        return True
    pairs = [(getattr(new, name), getattr(old, name)) for name in LOGGED.values()]
    return any(not math.isclose(one, other, rel_tol=0.1, abs_tol=1e-3) for one, other in pairs)
