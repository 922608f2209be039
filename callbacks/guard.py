"""The callback that keeps a certificate: by aligning just as much as that needs, or by saying when it is lost."""

from typing import Any, Literal

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from certvae.callbacks.alignment import AlignmentCallback
from certvae.callbacks.certificate import CertificateCallback
from certvae.certificate.certificate import Status
from certvae.monitoring.batch_reader import BatchReader
from certvae.monitoring.dual_controller import DualController
from certvae.theory.arguments import float64_device
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

    Logs each epoch ``certificate/guard_weight``, the weight of its last step (units of the module's loss for each nat),
    and what :class:`certvae.callbacks.AlignmentCallback` logs. The state of the controller is kept in checkpoints, and
    between them on the device: no step waits for it.

    Args:
        target: nats that the margin's lower bound must reach; above 0 and below the teacher information.
        on_loss: ``"rescue"``, ``"stop"``, ``"warn"`` or ``"raise"``.
        certificate: ``name`` of the certificate callback.
        headroom: nats above the target that are aimed at, so that a fluctuation does not cross it.
        controller: how the weight follows the deficit; default: ``DualController()``. Plain SGD, whose steps grow with
            the weight, needs a lower bound on top: ``DualController(high=10)``, for instance; Adam does not.

    Attributes:
        weight_now: the latest weight. Reading it waits for the device.
        reached: whether a validation has found the bound at the target.

    Raises:
        ValueError: if an argument is not as above, or there is no such certificate callback.
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
        self.reached = False
        self._watched: CertificateCallback | None = None
        self._log_weight = torch.tensor(self.controller.log_weight, dtype=torch.float64)
        self._weight_now = self._log_weight.exp()
        self._average: Tensor | None = None
        self._gap = 0.0

    @property
    def weight_now(self) -> float:
        """The latest weight."""
        return float(self._weight_now)

    @property
    def state_key(self) -> str:
        return self._generate_state_key(certificate=self.certificate)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the certificate callback.

        Raises:
            ValueError: if there is none of this name.
        """
        self._watched = CertificateCallback.find(trainer, self.certificate, self)

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

    @torch.no_grad()
    def _weight(self, trainer: Trainer, pl_module: LightningModule, probs: Tensor, log_student: Tensor) -> Tensor:
        margin = self._training_margin(trainer, probs, log_student)
        deficit = (self.target + self.headroom + self._gap - margin) / self.target
        log_weight = self._log_weight.to(margin.device)  # at the first step from the host, later nothing
        self._log_weight, self._weight_now = self.controller.step(log_weight, deficit)
        return self._weight_now.to(log_student)

    def _training_margin(self, trainer: Trainer, probs: Tensor, log_student: Tensor) -> Tensor:
        """``H(Tbar) + E sum_k T_k log S_k`` over the last steps of all processes."""
        score = (probs * log_student).sum(dim=1).mean()[None]
        batch = torch.cat([score, probs.mean(dim=0), torch.ones_like(score)]).detach()
        if trainer.world_size > 1:
            batch = trainer.strategy.reduce(batch, reduce_op="mean")
        batch = batch.to(float64_device(batch.device), torch.float64)
        before = self._average
        self._average = batch if before is None else (1 - 1 / WINDOW) * before.to(batch.device) + batch
        return _margin_of(self._average)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self._term is not None and self._average is not None:
            pl_module.log("certificate/guard_weight", self._weight_now)

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
            # While the margin still rises, its average in training lags behind, which is no distance to a bound.
            self._gap = max(0.0, float(_margin_of(self._average)) - bound)
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
            "log_weight": float(self._log_weight),
            "reached": self.reached,
            "gap": self._gap,
            "average": None if self._average is None else self._average.cpu(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._log_weight = torch.tensor(state_dict["log_weight"], dtype=torch.float64)
        self._weight_now = self._log_weight.exp()
        self.reached, self._gap, self._average = state_dict["reached"], state_dict["gap"], state_dict["average"]


def _margin_of(average: Tensor) -> Tensor:
    """The training margin of running sums: score, probabilities and weight, shape ``(K + 2,)``."""
    score, mean = average[0] / average[-1], average[1:-1] / average[-1]
    return score + entropy(mean)
