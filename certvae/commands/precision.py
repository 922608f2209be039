"""``precision: auto``: chooses the precision for the machine on which a run starts."""

from typing import Any, Literal

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from pytorch_lightning import Trainer
from pytorch_lightning.accelerators import Accelerator, CUDAAccelerator

__all__ = ["AutoPrecisionTrainer", "choose_precision"]


def choose_precision(accelerator: str | Accelerator = "auto") -> Literal["bf16-mixed", "32-true"]:
    """``bf16-mixed`` on a CUDA GPU with native bfloat16, else ``32-true``.

    On a CPU it is always ``32-true``: without matrix units bfloat16 is slower there, and many times slower if another
    process runs. To measure it on your machine, run ``python experiments/cost/step.py --precision bf16-mixed``.

    Args:
        accelerator: the argument of :class:`pytorch_lightning.Trainer`.
    """
    cuda = accelerator in ("auto", "gpu", "cuda") or isinstance(accelerator, CUDAAccelerator)
    native = cuda and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if native else "32-true"


class AutoPrecisionTrainer(Trainer):
    """Lightning's Trainer that also accepts ``precision="auto"``: see :func:`choose_precision`.

    Args:
        accelerator: as in Lightning.
        precision: as in Lightning, or ``"auto"``.
        kwargs: Lightning's other arguments.

    Raises:
        ValueError: if Lightning rejects an argument.
    """

    def __init__(
        self,
        *,
        accelerator: str | Accelerator = "auto",
        precision: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        if precision == "auto":
            precision = choose_precision(accelerator)
            rank_zero_info(f"precision: auto is {precision} on this machine")
        super().__init__(accelerator=accelerator, precision=precision, **kwargs)  # type: ignore[arg-type]
