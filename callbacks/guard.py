"""A callback that keeps a lower bound above a target, or warns or stops when it falls below."""

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from certvae.callbacks.alignment import NEEDS_LOG_VARIANCE, AlignmentCallback
from certvae.callbacks.certificate import CertificateCallback
from certvae.callbacks.information import InformationCallback
from certvae.certificate.certificate import Status
from certvae.monitoring.batch_reader import BatchReader
from certvae.monitoring.dual_controller import DualController
from certvae.monitoring.kl_weight import FreeBitsFloor, KLWeight, ModuleNumber
from certvae.monitoring.pursuit import Pursuit, training_number
from certvae.monitoring.running_means import RunningMeans
from certvae.monitoring.watching import find_named
from certvae.reading.latents import LatentCapture

__all__ = ["CertificateGuard", "CertificateLostError"]

ANSWERS = ("rescue", "stop", "warn", "raise")


class CertificateLostError(RuntimeError):
    """The lower bound fell below the guard's target."""


class CertificateGuard(AlignmentCallback):
    """Keep a lower bound on the information in a code above a target, with an automatically adjusted weight.

    ===================================== ============================= ======================= ======================
    arguments                             bound of each validation      number at each step     weighted term
    ===================================== ============================= ======================= ======================
    ``on="certificate"``, ``path="draw"`` ``channel_margin_lower``      the margin of draws     the alignment term
    ``on="certificate"``, ``path="mean"`` ``margin_lower``              the margin of means     the alignment term
    ``on="bracket"``                      the bracket's ``lower``       the rate                the module's KL term
    ===================================== ============================= ======================= ======================

    With ``on_loss="rescue"`` and ``on="certificate"``, the guard adds the term of
    :class:`certvae.callbacks.AlignmentCallback` to the loss. :class:`certvae.callbacks.DualController` sets its weight
    at each step. The weight rises while the margin on training rows is below a set value, and falls while it is above.
    This value is the target plus the gap between the training margin and the lower bound in validation, measured at
    each validation. You set no weight, and a collapsed model recovers. By default the margin is that of draws, which
    are **what the decoder receives**. A decoder can ignore a code whose mean is certified (``path="mean"``), because
    the mean may be small relative to the noise.

    With ``on="bracket"`` no teacher is needed. The guard keeps the information in the code above the target in one of
    two ways. It lowers the module's KL weight, the attribute ``kl_weight``: its own value divided by the controller's
    weight, in (0, own value]. Or it raises the free rate, the attribute ``free_bits``: its own value multiplied by that
    weight. When the code carries enough, the attribute returns to the module's own value. The number at each step is
    the rate, an upper bound on the information; reading it waits for the device. After the run the attribute keeps its
    last value. A compiled module is recompiled when the value changes.

    The guard gives up a target that is reached on training rows but not on validation rows: if neither three
    validations nor ten times the weight give a better bound, the weight returns to its value at the best bound and
    stays there. It warns once (:class:`certvae.monitoring.pursuit.Pursuit`).

    The other values of ``on_loss`` do not change training. They act when the bound falls below a target that it has
    reached: ``"stop"`` ends the run, ``"warn"`` warns, ``"raise"`` raises :class:`CertificateLostError`.

    It needs a :class:`certvae.callbacks.CertificateCallback` in the same run, and uses its teacher, latents, images and
    witness. With ``on="bracket"`` it needs a :class:`certvae.callbacks.InformationCallback`, and uses its latents. If
    ``latents`` is None, the module's ``training_step`` must return ``"posterior"`` too, as in :class:`certvae.VAE`.

    At each epoch it logs ``certificate/guard_weight``, the weight of the last step (units of the module's loss per
    nat), and the keys of :class:`certvae.callbacks.AlignmentCallback`; with ``on="bracket"`` it logs
    ``information/kl_weight`` or ``information/free_bits`` instead. Checkpoints contain the state of the controller.
    During training it stays on the device: with ``on="certificate"`` no step waits for it.

    Args:
        target: target of the lower bound in nats; above 0, and below the teacher information or the bracket's cap.
        on_loss: ``"rescue"``, ``"stop"``, ``"warn"`` or ``"raise"``.
        certificate: ``name`` of the callback that measures the bound; default: ``"certificate"`` or ``"information"``.
        headroom: nats above the target to aim at, so that fluctuations stay above the target.
        controller: controller of the weight; default: ``DualController()``. With plain SGD, steps grow with the weight,
            so give a smaller maximum, such as ``DualController(high=10)``. Adam does not need it.
        path: ``"draw"`` or ``"mean"``, with ``on="certificate"``.
        on: ``"certificate"`` or ``"bracket"``.
        kl_weight: dotted name of the float attribute by which the module multiplies its KL term.
        free_bits: alternative to ``kl_weight``: dotted name of the floor below which the rate costs nothing, such as
            ``"objective.floor"`` of :class:`certvae.models.FreeBits`; above 0.

    Attributes:
        weight_now: the current weight. Reading it waits for the device.
        reached: whether a validation has found the bound at the target.

    Raises:
        ValueError: if ``target`` is not above 0, an option is not as above, the callback or attribute does not exist,
            or the code has no log-variance and ``path`` is ``"draw"``.
        TypeError: if the attribute is not a number.

    Example:
        Keep half a nat on draws, with an automatic weight:

        >>> from certvae.callbacks import CertificateCallback, CertificateGuard, InformationCallback
        >>> watch = CertificateCallback("teacher.safetensors", latents="encoder:chunk")
        >>> callbacks = [watch, CertificateGuard(target=0.5)]

        Without a teacher, by lowering the module's attribute ``beta``:

        >>> measure = InformationCallback("encoder:chunk")
        >>> callbacks = [measure, CertificateGuard(target=2.0, on="bracket", kl_weight="beta")]
    """

    def __init__(
        self,
        target: float,
        on_loss: Literal["rescue", "stop", "warn", "raise"] = "rescue",
        certificate: str | None = None,
        headroom: float = 0.05,
        controller: DualController | None = None,
        path: Literal["draw", "mean"] = "draw",
        on: Literal["certificate", "bracket"] = "certificate",
        kl_weight: str | None = None,
        free_bits: str | None = None,
    ) -> None:
        super().__init__(path=path)
        numbers = {KLWeight.argument: kl_weight, FreeBitsFloor.argument: free_bits}
        _check_arguments(target, on_loss, headroom, on, {key: name for key, name in numbers.items() if name})
        self.target, self.on_loss, self.headroom = target, on_loss, headroom
        self.on, self.kl_weight, self.free_bits = on, kl_weight, free_bits
        self.certificate = certificate or ("information" if on == "bracket" else "certificate")
        self.controller = controller or DualController()
        if on == "bracket":  # a weight below 1 would raise the KL weight above the module's own
            self.controller = replace(self.controller, low=max(1.0, self.controller.low))
        self.reader = None
        self.reached = False
        self._pursuit = Pursuit(target, headroom, self.controller)
        self._watched: CertificateCallback | InformationCallback | None = None
        self._means = RunningMeans()
        self._seen: Any = None
        self._capture: LatentCapture | None = None
        self._kl: ModuleNumber | None = None
        self._kl_before: tuple[float, float] | None = None

    @property
    def weight_now(self) -> float:
        """The current weight."""
        return float(self._pursuit.weight)

    @property
    def rescues(self) -> bool:
        """Whether it raises the code's information by itself, and has not given up."""
        return self.on_loss == "rescue" and not self._pursuit.given_up

    @property
    def state_key(self) -> str:
        return self._generate_state_key(certificate=self.certificate)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the callback that measures the bound.

        Raises:
            ValueError: if no such callback has this name, or its latents name no submodule.
        """
        if self.on == "certificate":
            self._watched = CertificateCallback.find(trainer, self.certificate, self)
            return
        asking, add = "CertificateGuard(on='bracket')", "InformationCallback(latents=...)"
        self._watched = find_named(trainer, InformationCallback, self.certificate, asking, add)
        if stage == "fit" and self.on_loss == "rescue":
            self._capture = LatentCapture(self._watched.capture.source)
            self._capture.attach(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """With ``on_loss="rescue"``, add the alignment term or read the module's KL weight.

        Raises:
            ValueError: if the target cannot be reached, or the module uses manual optimization and ``latents`` names no
                submodule.
        """
        if isinstance(self._watched, InformationCallback):
            self._check_cap(self._watched)
            if self.on_loss == "rescue":
                kind, name = (KLWeight, self.kl_weight) if self.kl_weight else (FreeBitsFloor, self.free_bits)
                self._kl = kind(pl_module, str(name), *(self._kl_before or ()))
            return
        self._check_target(trainer)
        if self.on_loss == "rescue":
            super().on_fit_start(trainer, pl_module)

    def _check_target(self, trainer: Trainer) -> None:
        information = self._ready_reader(trainer).teacher.card.information_train
        if information is not None and self.target + self.headroom >= information:
            raise ValueError(
                f"`target` must be below {information - self.headroom:.3f} nats, the teacher information of "
                f"{information:.3f} less `headroom`, got {self.target}. No code can carry more about the teacher."
            )
        assert isinstance(self._watched, CertificateCallback)
        if self.path == "draw" and self._watched.channel_samples == 0:
            raise ValueError(
                "`path='draw'` needs the channel margin, which the CertificateCallback does not measure with "
                "`channel_samples=0`. Use CertificateCallback(channel_samples=1) or path='mean'."
            )

    def _check_cap(self, watched: InformationCallback) -> None:
        block = min(watched.block, watched.rows)
        if self.target + self.headroom >= math.log(block):
            raise ValueError(
                f"`target` must be below {math.log(block) - self.headroom:.2f} nats, the cap of blocks of {block} rows "
                f"less `headroom`, got {self.target}. Give the InformationCallback a larger `block`, or a lower target."
            )

    def _ready_reader(self, trainer: Trainer) -> BatchReader:
        assert isinstance(self._watched, CertificateCallback)
        return self._watched.reader  # the certificate callback sets it up, whatever the order of the callbacks

    @torch.no_grad()
    def _weight(
        self, trainer: Trainer, pl_module: LightningModule, probs: Tensor, log_student: Tensor, weights: Tensor
    ) -> Tensor:
        score = (probs * log_student).sum(dim=1, keepdim=True)
        means = weights @ torch.cat([score, probs], dim=1) / weights.sum().clamp(min=1)
        means = self._means.add(trainer, means, weights.mean())
        return self._pursuit.step(training_number(means)).to(log_student)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._kl is not None and self._capture is not None:
            self._capture.listen()
            # Before the step, because the module may set its KL weight at the start of an epoch or a batch.
            self._kl.apply(self.weight_now)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._kl is None or self._capture is None:
            return
        rate = self._capture.read(pl_module, batch, outputs).rate
        self._capture.listen(False)
        if rate is None:
            raise ValueError(NEEDS_LOG_VARIANCE.replace("`path='draw'`", "`on='bracket'`").partition("; or")[0] + ".")
        self._pursuit.step(training_number(self._means.add(trainer, rate.mean()[None])))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self._term is not None and self._means.sums is not None:
            pl_module.log("certificate/guard_weight", self._pursuit.weight)
        if self._kl is not None:
            pl_module.log(f"{self.certificate}/{self._kl.argument}", self._kl.now)
        if self._watched is not None and self._watched.own_rows is not None:
            self._look(trainer)  # no validation comes

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update the gap between training margin and bound, or act if the target was lost.

        Raises:
            CertificateLostError: if the target was reached before and is not now, and ``on_loss`` is ``"raise"``.
            ValueError: if the code has no log-variance to draw with.
        """
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        bound, name = self._bound()
        if bound is None:
            return
        means = self._means.means
        reason = None if means is None else self._pursuit.look(bound, float(training_number(means)))
        if reason is not None:
            rank_zero_warn(f"epoch {trainer.current_epoch}: the guard stops raising its weight: {reason}.")
        lost, self.reached = self.reached and bound < self.target, self.reached or bound >= self.target
        if lost:
            self._answer(
                trainer,
                f"epoch {trainer.current_epoch}: the {name}, {bound:.3f} nats, is below the guard's target of "
                f"{self.target:g}",
            )

    def _bound(self) -> tuple[float | None, str]:
        """The bound of a new validation (None if there is none) and its name."""
        watched, before = self._watched, self._seen
        if isinstance(watched, InformationCallback):
            bracket = self._seen = watched.bracket
            return (None if bracket is None or bracket is before else bracket.lower), "information's lower bound"
        assert watched is not None
        certificate = self._seen = watched.certificate
        if certificate is None or certificate is before or certificate.status in (Status.PARTIAL, Status.LEAKING):
            return None, ""  # no certificate, or it covers a part of the set, or a leak test failed
        if self.path == "mean":
            return certificate.margin_lower, "margin's lower bound"
        if certificate.channel_margin_lower is None:
            raise ValueError(NEEDS_LOG_VARIANCE)
        return certificate.channel_margin_lower, "channel margin's lower bound"

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

    def _stop(self) -> None:
        super()._stop()
        if self._kl is not None:
            self._kl_before = self._kl.own, self._kl.now
        self._kl = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        if self._capture is not None:
            self._capture.detach()

    def state_dict(self) -> dict[str, Any]:
        kl = self._kl_before if self._kl is None else (self._kl.own, self._kl.now)
        average = None if self._means.sums is None else self._means.sums.cpu()
        return {**self._pursuit.state(), "reached": self.reached, "average": average, "kl_weight": kl}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._pursuit.restore(state_dict)
        self.reached, self._means.sums = state_dict["reached"], state_dict["average"]
        self._kl_before = state_dict.get("kl_weight")


def _check_arguments(target: float, on_loss: str, headroom: float, on: str, numbers: dict[str, str]) -> None:
    if not target > 0:
        raise ValueError(f"`target` must be above 0 nats, got {target}.")
    if on_loss not in ANSWERS:
        raise ValueError(f"`on_loss` must be one of {', '.join(ANSWERS)}, got {on_loss!r}.")
    if not headroom >= 0:
        raise ValueError(f"`headroom` must be at least 0 nats, got {headroom}.")
    if on not in ("certificate", "bracket"):
        raise ValueError(f"`on` must be 'certificate' or 'bracket', got {on!r}.")
    for argument, name in numbers.items():
        if on == "certificate":
            raise ValueError(
                f"`{argument}={name!r}` goes with on='bracket', which changes it. With on='certificate' the guard "
                "weighs the alignment term; use two guards for both."
            )
    if on == "bracket" and on_loss == "rescue" and len(numbers) != 1:
        raise ValueError(
            "`kl_weight` must name the float attribute by which the module multiplies its KL term, as in "
            "CertificateGuard(target=1.0, on='bracket', kl_weight='beta'); or `free_bits` must name the floor below "
            f"which the rate costs nothing. Give one of them, got {numbers or 'none'}."
        )
