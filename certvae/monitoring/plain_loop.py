"""The certificate of a model in a plain training loop, in Lightning Fabric or in another library: without a Trainer."""

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
    """Run a model over validation rows, and certify how much its code carries: for loops without a Trainer.

    The model runs in eval mode without a graph. Weights, buffers, modes and random states are afterwards as they were.
    The numbers and the leak tests are those of :class:`certvae.callbacks.CertificateCallback` on the same rows. In a
    process group of torch, as that of Fabric, all processes must call it, each with its part of the rows as a
    ``DistributedSampler`` deals them out.

    Args:
        model: any module.
        batches: a dataloader of validation rows, or a list of batches.
        teacher: a teacher that was measured, or the path of its file.
        latents: where the code is; see :class:`certvae.callbacks.CertificateCallback`. A function gets the model and
            the batch.
        images: where the teacher's input stands in a batch.
        witness: a module from the code to logits; default: the model's ``witness``, else the teacher's.
        run: called with the model and the batch, so that a submodule gives the code; default: the model on the first
            entry of the batch, and nothing if ``latents`` is a function.
        witness_scale: see :class:`certvae.callbacks.CertificateCallback`, as for the next four.
        channel_samples: see there.
        information_rows: see there.
        check_encoder: see there.
        seed: see there.
        settings: of :class:`certvae.CertificateSettings`, such as ``confidence`` or ``safety_margin``.

    Raises:
        ValueError: if an argument is not as above, or codes are not finite.
        TypeError: if a batch has no first tensor, and there is neither ``run`` nor a function as ``latents``.

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
    """What an evaluation asks a trainer: the processes of torch's process group, or the only one."""

    def __init__(self, device: torch.device) -> None:
        self._many = distributed.is_available() and distributed.is_initialized()
        self.global_rank = distributed.get_rank() if self._many else 0
        self.world_size = distributed.get_world_size() if self._many else 1
        self.root_device, self.strategy, self.current_epoch, self.datamodule = device, self, 0, None

    def moved(self, batches: Any) -> Iterator[Any]:
        """Batches on the model's device. A loader draws from the random state when its first batch is asked for."""
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
        """What process ``src`` has, on all of them."""
        values = [value]
        if self._many:
            distributed.broadcast_object_list(values, src=src)
        return values[0]

    def reduce(self, values: Tensor, reduce_op: str = "sum") -> Tensor:
        """The sum over processes."""
        return self.all_gather(values).sum(dim=0)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Whether all processes say so, or any."""
        votes = self.all_gather(torch.tensor([int(decision)], device=self.root_device))
        return bool(votes.all() if all else votes.any())
