"""The callback that keeps a certificate: by aligning just as much as that needs, or by saying when it is lost."""

from typing import Any, Literal

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from certvae.callbacks.alignment import AlignmentCallback
from certvae.callbacks.certificate import CertificateCallback
from certvae.callbacks.lookup import find_certificate
from certvae.certificate.certificate import Status
from certvae.monitoring.batch_reader import BatchReader
from certvae.monitoring.dual_controller import DualController
from certvae.theory.information import entropy

__all__ = ["CertificateGuard", "CertificateLostError"]

WINDOW = 50  # steps over which the training margin is averaged
ANSWERS = ("rescue", "stop", "warn", "raise")


class CertificateLostError(RuntimeError):
    """The margin's lower bound fell below the guard's target."""


class CertificateGuard(AlignmentCallback):
    """Keep the lower bound of a certificate's margin above a target, with a weight that a controller seeks.

    With ``on_loss="rescue"`` the alignment term of :class:`certvae.callbacks.AlignmentCallback` is added to the loss,
    with a weight that :class:`certvae.callbacks.DualController` sets at each step: up while the margin on training rows
    is below what the target needs, down while it is above. What it needs is learned at each validation: the target,
    plus the distance between the margin in training and the lower bound in validation. No weight is set by hand, and a
    collapsed model is taken out of its collapse. The other answers leave training alone and act when a validation finds
    the bound below a target that it had reached: ``"stop"`` ends the run, ``"warn"`` warns, ``"raise"`` raises
    :class:`CertificateLostError`.

    It needs a :class:`certvae.callbacks.CertificateCallback` in the same run, from which it takes teacher, latents,
    images and witness. A module that needs ``latents`` to be None has to return ``"posterior"`` from its
    ``training_step`` too, as :class:`certvae.VAE` does.

    Logs ``certificate/guard_weight`` (units of the module's loss for each nat) at steps, and what
    :class:`certvae.callbacks.AlignmentCallback` logs. The state of the controller is kept in checkpoints.

    Args:
        target: nats that the margin's lower bound must reach; above 0 and below the teacher information.
        on_loss: ``"rescue"``, ``"stop"``, ``"warn"`` or ``"raise"``.
        certificate: ``name`` of the certificate callback.
        headroom: nats above the target that are aimed at, so that a fluctuation does not cross it.
        controller: how the weight follows the deficit; default: ``DualController()``. Plain SGD, whose steps grow with
            the weight, needs a lower bound on top: ``DualController(high=10)``, for instance; Adam does not.

    Attributes:
        weight_now: the latest weight.
        reached: whether a validation has found the bound at the target.

    Raises:
        ValueError: if an argument is out of its range, or there is no such certificate callback.
    """

    def __init__(
        self,
        target: float,
        on_loss: Literal["rescue", "stop", "warn", "raise"] = "rescue",
        certificate: str = "certificate",
        headroom: float = 0.05,
        controller: DualController | None = None,
    ) -> None:
        super().__init__()
        if not target > 0:
            raise ValueError(f"`target` must be above 0 nats, got {target}.")
        if on_loss not in ANSWERS:
            raise ValueError(f"`on_loss` must be one of {', '.join(ANSWERS)}, got {on_loss!r}.")
        if not headroom >= 0:
            raise ValueError(f"`headroom` must be at least 0 nats, got {headroom}.")
        self.target, self.on_loss, self.certificate, self.headroom = target, on_loss, certificate, headroom
        self.controller = controller or DualController()
        self.reader = None
        self.weight_now = self.controller.weight
        self.reached = False
        self._watched: CertificateCallback | None = None
        self._average: Tensor | None = None
        self._gap = 0.0

    @property
    def state_key(self) -> str:
        return self._generate_state_key(certificate=self.certificate)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the certificate callback.

        Raises:
            ValueError: if there is none of this name.
        """
        self._watched = find_certificate(trainer, self.certificate, self)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the alignment term in place, if the answer is to rescue.

        Raises:
            ValueError: if the target is not below the teacher information, or the module optimizes by hand.
        """
        information = self._ready_reader(trainer).teacher.card.information_train
        if information is not None and self.target + self.headroom >= information:
            raise ValueError(
                f"`target` must be below {information - self.headroom:.3f} nats, the teacher information of "
                f"{information:.3f} less `headroom`, got {self.target}. No code can reach more than the teacher varies."
            )
        if self.on_loss == "rescue":
            super().on_fit_start(trainer, pl_module)

    def _ready_reader(self, trainer: Trainer) -> BatchReader:
        assert self._watched is not None
        return self._watched.reader  # set up by the certificate callback, whichever comes first in the list

    def _weight(self, trainer: Trainer, pl_module: LightningModule, probs: Tensor, log_student: Tensor) -> float:
        deficit = self.target + self.headroom + self._gap - self._training_margin(trainer, probs, log_student)
        self.weight_now = self.controller.step(deficit / self.target)
        weight = torch.tensor(self.weight_now, dtype=torch.float64, device=probs.device)
        pl_module.log("certificate/guard_weight", weight, on_step=True, on_epoch=False)
        return self.weight_now

    @torch.no_grad()
    def _training_margin(self, trainer: Trainer, probs: Tensor, log_student: Tensor) -> float:
        """``H(Tbar) + E sum_k T_k log S_k`` over the last steps of all processes."""
        score = (probs * log_student).sum(dim=1).mean()[None]
        batch = torch.cat([score, probs.mean(dim=0), torch.ones_like(score)]).detach()
        if trainer.world_size > 1:
            batch = trainer.strategy.reduce(batch, reduce_op="mean")
        batch = batch.cpu().double()
        self._average = batch if self._average is None else (1 - 1 / WINDOW) * self._average + batch
        score, mean = self._average[0] / self._average[-1], self._average[1:-1] / self._average[-1]
        return float(score + entropy(mean))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learn the distance from training to the bound, or answer to a loss.

        Raises:
            CertificateLostError: if the target was reached before and is not now, and ``on_loss`` is ``"raise"``.
        """
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        assert self._watched is not None
        certificate = self._watched.certificate
        assert certificate is not None
        if certificate.status in (Status.PARTIAL, Status.LEAKING):
            return  # its numbers are of a part of the set, or not of the code
        bound = certificate.margin_lower
        if self._average is not None:
            average = self._average / self._average[-1]
            # While the margin still rises, its average in training lags behind, which is no distance to a bound.
            self._gap = max(0.0, float(average[0] + entropy(average[1:-1])) - bound)
        lost, self.reached = self.reached and bound < self.target, self.reached or bound >= self.target
        if lost:
            self._answer(
                trainer,
                f"epoch {trainer.current_epoch}: the margin's lower bound, {bound:.3f} nats, is below the guard's "
                f"target of {self.target:g}",
            )

    def _answer(self, trainer: Trainer, loss: str) -> None:
        if self.on_loss == "raise":
            raise CertificateLostError(f"{loss}.")
        if self.on_loss == "stop":
            rank_zero_info(f"{loss}; the run ends.")
            trainer.should_stop = True
        elif self.on_loss == "warn":
            rank_zero_warn(f"{loss}.")
        else:
            rank_zero_info(f"{loss}; the guard's weight is {self.weight_now:.3g}.")

    def state_dict(self) -> dict[str, Any]:
        return {
            "log_weight": self.controller.log_weight,
            "reached": self.reached,
            "gap": self._gap,
            "average": self._average,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.controller.log_weight = state_dict["log_weight"]
        self.weight_now = self.controller.weight
        self.reached, self._gap, self._average = state_dict["reached"], state_dict["gap"], state_dict["average"]
