"""Reads the code, the input and the outputs of teacher and witness from the batches of a run."""

from functools import reduce
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import CombinedLoader
from torch import Tensor, nn
from torch.func import functional_call

from certvae.reading.inputs import InputSource, index_of, select_inputs
from certvae.reading.latents import Captured, LatentCapture, LatentSource
from certvae.teachers import Teacher, load_teacher
from certvae.theory.arguments import float64_device
from certvae.theory.witness import SimplexWitness, own_witness

__all__ = ["BatchReader", "choose_loader"]


class BatchReader:
    """Gives the code of a batch, the teacher's probabilities and the witness.

    Args:
        teacher: a teacher or the path of its file, which rank 0 reads and sends to the other ranks; None: the module's
            attribute ``teacher``.
        latents: where the code is; see :class:`certvae.callbacks.CertificateCallback`.
        images: where the teacher's input is in the batch: a position, a key, an attribute or a function of the batch.
        witness: a module from the code to logits; None: the module's attribute ``witness``, else the teacher's.
        witness_scale: scale of the teacher's simplex witness.
    """

    def __init__(
        self,
        teacher: str | Path | Teacher | None = None,
        latents: LatentSource | None = None,
        images: InputSource = 0,
        witness: nn.Module | None = None,
        witness_scale: float = 2.0,
    ) -> None:
        self.given_teacher, self.images = teacher, images
        self._given_witness, self.witness_scale = witness, witness_scale
        self.capture = LatentCapture(latents)
        self._teacher: Teacher | None = None
        self._witness: nn.Module | None = None

    @property
    def teacher(self) -> Teacher:
        """The teacher, available after :meth:`setup`."""
        assert self._teacher is not None
        return self._teacher

    @property
    def witness(self) -> nn.Module | None:
        """The witness; a teacher's simplex witness is created at the first code."""
        return self._witness

    @property
    def scale(self) -> float | None:
        """Scale of the simplex witness, also on a process that has seen no code; None for other witnesses."""
        if self._witness is None:
            return self.witness_scale
        return self._witness.scale if isinstance(self._witness, SimplexWitness) else None

    def setup(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find teacher and witness, and register the hook.

        Raises:
            ValueError: if there is no teacher, it does not fit the data, or the submodule does not exist. TypeError: if
                ``teacher`` is neither a teacher nor a path.
        """
        given = self.given_teacher if self.given_teacher is not None else getattr(pl_module, "teacher", None)
        if given is None:
            raise ValueError("`teacher` must be a teacher or the path of its file: the module has no `teacher`.")
        self._teacher = _read_once(trainer, given) if isinstance(given, str | Path) else given
        if not isinstance(self._teacher, Teacher):
            raise TypeError(f"`teacher` must be a teacher or the path of its file, got {given!r}.")
        data = getattr(trainer, "datamodule", None)
        self._teacher.check_data(getattr(data, "image_shape", None), getattr(data, "fingerprint", None))
        given_witness = self._given_witness
        self._witness = own_witness(pl_module, self._teacher.num_components) if given_witness is None else given_witness
        self.capture.attach(pl_module)

    def start(self, pl_module: LightningModule) -> torch.device:
        """Move teacher and witness to the module's device; return the device for float64 sums."""
        device = float64_device(pl_module.device)
        self.teacher.to(device)
        if self._given_witness is not None:
            self._given_witness.to(pl_module.device).eval()
        return device

    def code(self, pl_module: LightningModule, batch: Any, outputs: Any) -> Captured:
        """The code of the latest batch.

        Raises:
            ValueError: if it has another number of rows than the inputs.
        """
        return self.checked(self.capture.read(pl_module, batch, outputs), batch)

    def checked(self, captured: Captured, batch: Any) -> Captured:
        """Return ``code`` unchanged after checking its number of rows.

        Raises:
            ValueError: if it has another number of rows than the inputs.
        """
        rows, came = self.inputs(batch).shape[0], captured.mean.shape[0]
        if rows == came:
            return captured
        samples = f" Are they {came // rows} samples of each row? Give a function that takes one of them: code[0]."
        raise ValueError(
            f"`latents` gave {came} rows for a batch of {rows} inputs.{samples if rows and came % rows == 0 else ''}"
        )

    def code_again(self, pl_module: LightningModule, batch: Any, rows: Tensor) -> Captured:
        """Encode some rows of the latest batch again, and return their code.

        Args:
            pl_module: the module, in eval mode.
            batch: the batch.
            rows: positions in the batch, int64, shape ``(n,)``.

        Raises:
            TypeError: if the code was the step's own output, and the module's ``forward`` does not return it.
        """
        return self.capture.read_again(pl_module, batch, rows, len(self.inputs(batch)))

    def inputs(self, batch: Any) -> Tensor:
        """The teacher's input.

        Raises:
            TypeError: if it is not a tensor.
            ValueError: if ``images`` is not in the batch.
        """
        return self.teacher.prepared(select_inputs(batch, self.images))

    def teacher_probs(self, batch: Any) -> Tensor:
        """Teacher probabilities of the batch, shape ``(B, K)``."""
        return self.teacher(self.inputs(batch), index_of(batch))

    def row_weights(self, batch: Any) -> Tensor | None:
        """The teacher's weight of each row, float64, shape ``(B,)``; None: all rows count the same."""
        return self.teacher.row_weights(self.inputs(batch))

    def witness_for(self, codes: Tensor) -> nn.Module:
        """The witness for codes ``(B, latent_dim)``, computed in their precision or wider."""
        if self._witness is None:
            self._witness = self.teacher.witness(codes.shape[1], self.witness_scale)
        floats = _floats(self._witness).values()
        same = all(value.dtype == codes.dtype for value in floats)
        # FSDP2 gathers parameters only when the sharded module itself is called, not in `functional_call`.
        if any(hasattr(value, "full_tensor") for value in floats) and not (same and hasattr(self._witness, "unshard")):
            raise ValueError(
                "`witness` has parameters that are sharded over processes; make it a separate unit in float32, "
                "`fully_shard(module.witness)`, or do not shard it."
            )
        return self._witness if same else _Widened(self._witness)


def _read_once(trainer: Trainer, path: str | Path) -> Teacher:
    """Read the teacher's file on rank 0 and send the teacher to the other ranks; a collective.

    So the other ranks need no file, and no node can use an older file of the same name.
    """
    found: Any = None
    if trainer.is_global_zero:
        try:
            found = load_teacher(path)
        except (OSError, ValueError) as error:  # sent too, because the other ranks wait
            found = error
    found = trainer.strategy.broadcast(found)
    if isinstance(found, Exception):
        raise found
    return found


class _Widened(nn.Module):
    """A witness whose parameters have another precision than its codes, as in ``bf16-true``.

    Everything is computed in the widest dtype: in bfloat16, a row's logits would change with the batch size by more
    than the leak tests allow for rounding.
    """

    def __init__(self, witness: nn.Module) -> None:
        super().__init__()
        self.witness = witness

    def forward(self, codes: Tensor) -> Tensor:
        floats = _floats(self.witness)
        dtype = reduce(torch.promote_types, (value.dtype for value in floats.values()), codes.dtype)
        return functional_call(self.witness, {name: value.to(dtype) for name, value in floats.items()}, codes.to(dtype))


def _floats(module: nn.Module) -> dict[str, Tensor]:
    values = [*module.named_parameters(), *module.named_buffers()]
    return {name: value for name, value in values if value.is_floating_point()}


def choose_loader(loaders: Any, which: int | str) -> tuple[int, Any]:
    """Position and dataloader from a trainer's collection, selected by position or by name.

    Raises:
        ValueError: if the collection has no such dataloader.
    """
    flat = CombinedLoader(loaders).flattened
    names = list(loaders) if isinstance(loaders, dict) and len(loaders) == len(flat) else []
    position = names.index(which) if which in names else which
    if not isinstance(position, str) and 0 <= position < len(flat):
        return position, flat[position]
    raise ValueError(
        f"`dataloader={which!r}` is none of the {len(flat)} dataloaders{f' {names}' if names else ''}; give a position "
        "or, for a dict of dataloaders, a name."
    )
