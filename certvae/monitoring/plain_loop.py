"""Certifies a model without a Trainer: in a plain PyTorch loop, in Lightning Fabric or in another library."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, distributed, nn

from certvae.certificate.certificate import Certificate
from certvae.certificate.settings import CertificateSettings
from certvae.monitoring.batch_reader import BatchReader
from certvae.monitoring.evaluation import Evaluation
from certvae.monitoring.own_rows import Run, evaluate_rows, runner
from certvae.reading.inputs import InputSource
from certvae.reading.latents import LatentSource
from certvae.teachers import Teacher

__all__ = ["watch"]


def watch(
    model: nn.Module,
    batches: Any,
    teacher: str | Teacher,
    latents: LatentSource,
    images: InputSource = 0,
    witness: nn.Module | None = None,
    run: Run | None = None,
    witness_scale: float = 2.0,
    channel_samples: int = 1,
    information_rows: int = 4096,
    check_encoder: bool = False,
    seed: int = 0,
    **settings: Any,
) -> Certificate:
    """Run a model over validation rows and return the certificate of its code, without a Trainer.

    The model runs in eval mode without an autograd graph. Weights, buffers, modes and random states are unchanged
    afterwards. Numbers and leak tests equal those of :class:`certvae.callbacks.CertificateCallback` on the same rows.
    In a torch process group, as in Fabric, all processes must call it, each with its part of the rows from a
    ``DistributedSampler``.

    Args:
        model: any module.
        batches: a dataloader of validation rows, or a list of batches.
        teacher: a measured teacher, or the path of its file.
        latents: where the code is; see :class:`certvae.callbacks.CertificateCallback`. A function receives the model
            and the batch.
        images: where the teacher's input is in a batch.
        witness: a module from the code to logits; default: the model's ``witness``, else the teacher's.
        run: function of the model and the batch that runs the named submodule; default: the model on the first entry of
            the batch, or nothing if ``latents`` is a function.
        witness_scale: see :class:`certvae.callbacks.CertificateCallback`, also for the next four arguments.
        channel_samples: see there.
        information_rows: see there.
        check_encoder: see there.
        seed: see there.
        settings: arguments of :class:`certvae.CertificateSettings`, such as ``confidence`` or ``safety_margin``.

    Raises:
        ValueError: if an argument is not as above, or codes are not finite.
        TypeError: if a batch has no first tensor, ``run`` is None and ``latents`` is not a function.

    Example:
        >>> import torch
        >>> from certvae import watch
        >>> from certvae.teachers import LabelTeacher
        >>> rows, labels = torch.randn(400, 5), torch.arange(400) % 3
        >>> teacher = LabelTeacher(3).measure([labels])
        >>> watch(torch.nn.Linear(5, 2), [(rows, labels)], teacher, latents=lambda m, b: m(b[0]), images=1).certified
        False
    """
    processes: Any = _Processes(next((value.device for value in model.parameters()), torch.device("cpu")))
    placed: Any = SimpleNamespace(device=processes.root_device)  # a plain module has no device of its own
    reader = BatchReader(teacher, latents, images, witness, witness_scale)
    reader.setup(processes, model)  # type: ignore[arg-type]
    try:
        chosen = CertificateSettings.for_teacher(reader.teacher.card.floor, **settings)
        length = len(batches) if hasattr(batches, "__len__") else float("inf")
        evaluation = Evaluation(
            reader, chosen, processes, placed, batches, length, channel_samples, seed, check_encoder, information_rows
        )
        evaluate_rows(evaluation, model, processes.moved(batches), runner(model, reader.capture.source, run))
        certificate = evaluation.finish(processes)
    finally:
        reader.capture.detach()
    if certificate is None:
        raise ValueError(f"{evaluation.fault}: the model has diverged, and there is no certificate of it.")
    return certificate


class _Processes:
    """Replaces the trainer in an evaluation: the processes of torch's process group, or a single process."""

    def __init__(self, device: torch.device) -> None:
        self._many = distributed.is_available() and distributed.is_initialized()
        self.global_rank = distributed.get_rank() if self._many else 0
        self.world_size = distributed.get_world_size() if self._many else 1
        self.root_device, self.strategy, self.current_epoch, self.datamodule = device, self, 0, None

    def moved(self, batches: Any) -> Iterator[Any]:
        """Yield batches on the model's device; a loader draws from the random state at its first batch."""
        for batch in batches:
            yield apply_to_collection(batch, Tensor, lambda value: value.to(self.root_device))

    def all_gather(self, values: Tensor) -> Tensor:
        """The tensors of all processes, stacked."""
        if not self._many:
            return values[None]
        gathered = [torch.empty_like(values) for _ in range(self.world_size)]
        distributed.all_gather(gathered, values.contiguous())
        return torch.stack(gathered)

    def broadcast(self, value: Any, src: int = 0) -> Any:
        """The object of process ``src``, on all processes."""
        values = [value]
        if self._many:
            distributed.broadcast_object_list(values, src=src)
        return values[0]

    def reduce(self, values: Tensor, reduce_op: str = "sum") -> Tensor:
        """The sum over processes."""
        return self.all_gather(values).sum(dim=0)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Whether the decision is true on all processes, or on any."""
        votes = self.all_gather(torch.tensor([int(decision)], device=self.root_device))
        return bool(votes.all() if all else votes.any())
