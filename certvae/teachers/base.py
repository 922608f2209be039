"""What every teacher is: a fixed distribution over K components, with a card that says what it was made from."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from certvae.reading.inputs import InputSource, as_floats, index_of, inputs_and_index, select_inputs
from certvae.theory.arguments import as_float64, as_fraction, as_number, as_whole_number
from certvae.theory.information import as_probabilities
from certvae.theory.scores import ScoredRows
from certvae.theory.sums import CertificateSums
from certvae.theory.witness import SimplexWitness

__all__ = ["Teacher", "TeacherCard", "TeacherMismatchError", "index_of", "inputs_and_index"]

T = TypeVar("T", bound="Teacher")
VALUE_TOLERANCE = 0.01
MAX_COMPONENTS = 2**15  # the sums of a certificate have K^2 numbers: 8 GiB here
TEXT_LIMIT = 2000  # characters of the card's texts


class TeacherMismatchError(ValueError):
    """The teacher was made for other data than it was given."""


@dataclass(frozen=True)
class TeacherCard:
    """What a teacher file says about its teacher.

    Attributes:
        num_components: K.
        temperature: divisor of the log-posteriors; higher is softer.
        floor: every probability is at least ``floor / K``.
        seed: seed of the search, if there was one.
        image_shape: shape of one input, without the batch axis; None fits any.
        value_range: smallest and largest value that an input may have; None fits any.
        fingerprint: digest of the data set that the teacher was made from; None fits any.
        information_train: teacher information on training rows, nats; None until measured.
        information_held_out: teacher information on held-out rows, nats.
        energy: mean energy of the inverse code at witness scale 1 with the average as prior, nats. Divide by the
            square of the scale.
        largest_eigenvalue: of the data's covariance: a plain VAE with ``beta * s2`` above it collapses fully in the
            linear theory (Lucas et al., 2019, https://arxiv.org/abs/1911.02469).
        choice: one sentence on why the search chose this teacher.

    Raises:
        TypeError: if a value is not of its type.
        ValueError: if it is out of its range.
    """

    num_components: int
    temperature: float = 1.0
    floor: float = 0.0
    seed: int | None = None
    image_shape: tuple[int, ...] | None = None
    value_range: tuple[float, float] | None = None
    fingerprint: str | None = None
    information_train: float | None = None
    information_held_out: float | None = None
    energy: float | None = None
    largest_eigenvalue: float | None = None
    choice: str | None = None

    def __post_init__(self) -> None:
        as_whole_number(self.num_components, "num_components", 2, MAX_COMPONENTS)
        if not 1e-6 <= as_number(self.temperature, "temperature") <= 1e6:
            raise ValueError(f"`temperature` must be positive, from 1e-6 to 1e6, got {self.temperature}.")
        as_fraction(self.floor, "floor")
        if self.seed is not None:
            as_whole_number(self.seed, "seed", -(2**63), 2**64)
        for name in ("information_train", "information_held_out"):
            _check_nats(getattr(self, name), name, math.log(self.num_components) + 1e-6)
        for name in ("energy", "largest_eigenvalue"):
            _check_nats(getattr(self, name), name, 1e12)
        self._check_inputs()

    def _check_inputs(self) -> None:
        shape, values = self.image_shape, self.value_range
        if shape is not None:
            if not isinstance(shape, tuple) or not 1 <= len(shape) <= 8:
                raise ValueError(f"`image_shape` must hold 1 to 8 sizes, got {shape!r}.")
            for size in shape:
                as_whole_number(size, "image_shape", 1)
        if values is not None:
            if not isinstance(values, tuple) or len(values) != 2:
                raise ValueError(f"`value_range` must be the smallest and the largest value, got {values!r}.")
            low, high = (as_number(value, "value_range") for value in values)
            if not -1e12 <= low < high <= 1e12:
                raise ValueError(f"`value_range` must be two growing values of at most 1e12, got {low}, {high}.")
        for name in ("fingerprint", "choice"):
            text = getattr(self, name)
            if text is not None and not (isinstance(text, str) and text.isprintable() and len(text) <= TEXT_LIMIT):
                raise ValueError(f"`{name}` must be printable text of at most {TEXT_LIMIT} characters.")


def _check_nats(value: float | None, name: str, most: float) -> None:
    if value is not None and not -1e-6 <= as_number(value, name) <= most:
        raise ValueError(f"`{name}` must be at least 0 and at most {most:.4g}, got {value}.")


class Teacher(nn.Module):
    """A fixed distribution over components given an input.

    Args:
        card: what the teacher is; see :class:`TeacherCard`.
        average: its mean over training rows, float64, shape ``(K,)``; None until :meth:`measure` was called.

    Raises:
        ValueError: if ``average`` is not a distribution over the card's components.
    """

    kind: str

    def __init__(self, card: TeacherCard, average: Tensor | None = None) -> None:
        super().__init__()
        check_average(card, average)
        self.card = card
        self.average = average
        self.requires_grad_(False)

    @abstractmethod
    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Teacher probabilities.

        Args:
            images: inputs, shape ``(B, *image_shape)``.
            index: position of each row in its data set, shape ``(B,)``; only a :class:`TargetTable` needs it.

        Returns:
            Probabilities, float32 or wider, shape ``(B, K)``.
        """

    def _apply(self: T, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> T:
        # A precision plugin casts the module that holds a teacher; a fixed teacher moves, and keeps its numbers.
        return super()._apply(lambda value: value.to(fn(value).device), recurse)

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a file must hold to rebuild the teacher."""

    @classmethod
    def from_tensors(
        cls, card: TeacherCard, average: Tensor | None, tensors: dict[str, Tensor], network: nn.Module | None = None
    ) -> "Teacher":
        """Rebuild from what a file holds; ``network`` takes a :class:`certvae.teachers.NetworkTeacher`'s weights."""
        make: Callable[..., Teacher] = cls
        return make(card, average=average, **tensors)

    def prepared(self, images: Tensor) -> Tensor:
        """What a batch holds as the teacher's input: uint8 images are scaled to [0, 1]."""
        return as_floats(images)

    @property
    def num_components(self) -> int:
        """K."""
        return self.card.num_components

    def save(self, path: str | Path) -> Path:
        """Write the teacher as a safetensors file with its card in the header, atomically."""
        from certvae.teachers.files import save_teacher

        return save_teacher(self, path)

    def measured_average(self) -> Tensor:
        """The teacher's mean over training rows.

        Raises:
            ValueError: if the teacher was never measured.
        """
        if self.average is None or self.card.information_train is None:
            raise ValueError(
                "this teacher was never measured on training rows; call teacher.measure(train_dataloader) once, "
                "then save it."
            )
        return self.average

    @torch.no_grad()
    def measure(self: T, batches: Iterable[Any], images: InputSource = 0) -> T:
        """Record the average, the information and the energy on training rows; returns the teacher itself.

        Args:
            batches: batches of training rows, such as a dataloader; uint8 images are scaled to [0, 1].
            images: where the teacher's input stands in a batch, as for the callbacks: a position, a key or an
                attribute, or a function of the batch.

        Raises:
            TypeError: if ``batches`` are none.
            ValueError: if they hold no row.
        """
        totals = CertificateSums.unpack(
            torch.zeros(CertificateSums.packed_size(self.num_components), dtype=torch.float64),
            self.num_components,
        )
        log_sums = torch.zeros(self.num_components + 1, dtype=torch.float64)
        if not isinstance(batches, Iterable):
            raise TypeError(
                f"`batches` must be batches, such as a dataloader, got {type(batches).__name__}. Of a DataModule give "
                "its train_dataloader()."
            )
        for batch in batches:
            probs = self(self.prepared(select_inputs(batch, images)), index_of(batch)).double().cpu()
            totals = totals + CertificateSums.of(ScoredRows.check(probs, torch.zeros_like(probs)))
            log_sums += log_ratio_sums(probs)
        if totals.num_rows == 0:
            raise ValueError("`batches` must hold at least one row, got none.")
        self.average = totals.teacher_mean
        energy = (
            energy_from_sums(log_sums, totals.num_rows, self.average) if bool((log_sums.isfinite()).all()) else None
        )
        self.card = replace(self.card, information_train=totals.teacher_information(), energy=energy)
        return self

    def witness(self, latent_dim: int, scale: float = 2.0, prior: bool = True) -> SimplexWitness:
        """The simplex witness that belongs to this teacher.

        Args:
            latent_dim: size of the latent, at least ``K - 1``.
            scale: factor of the code.
            prior: whether the zero code answers the teacher's average instead of the uniform distribution.
        """
        average = self.measured_average() if prior else None
        return SimplexWitness(self.num_components, latent_dim, scale, average)

    def check_data(self, image_shape: tuple[int, ...] | None = None, fingerprint: str | None = None) -> None:
        """Reject data that this teacher was not made for.

        Raises:
            TeacherMismatchError: if shape or fingerprint are known on both sides and differ.
        """
        card = self.card
        known = isinstance(image_shape, tuple | list)
        if card.image_shape and known and tuple(card.image_shape) != tuple(image_shape or ()):
            raise TeacherMismatchError(
                f"the teacher was made for inputs of shape {tuple(card.image_shape)}, got {tuple(image_shape or ())}. "
                "Search a teacher on this data."
            )
        if card.fingerprint and fingerprint and card.fingerprint != fingerprint:
            raise TeacherMismatchError(
                f"the teacher was made from data with fingerprint {card.fingerprint[:12]}, got data with "
                f"{fingerprint[:12]}. Search a teacher on this data."
            )

    def check_values(self, images: Tensor) -> None:
        """Reject inputs of another shape or value range.

        Raises:
            TeacherMismatchError: naming what was expected and what came.
        """
        self.check_data(tuple(images.shape[1:]))
        if self.card.value_range is None or images.numel() == 0:
            return
        low, high = self.card.value_range
        seen = (float(images.min()), float(images.max()))
        slack = VALUE_TOLERANCE * (high - low)
        if seen[0] < low - slack or seen[1] > high + slack:
            raise TeacherMismatchError(
                f"the teacher was made for values in [{low:g}, {high:g}], got [{seen[0]:.3g}, {seen[1]:.3g}]. "
                "Give the teacher the images before normalization."
            )


def check_average(card: TeacherCard, average: Tensor | None) -> None:
    """Reject an average that is not a distribution over the card's components.

    Raises:
        ValueError: saying what came.
    """
    if average is None:
        return
    if tuple(average.shape) != (card.num_components,):
        raise ValueError(f"`average` must have shape ({card.num_components},), got {tuple(average.shape)}.")
    as_probabilities(average[None], "average")


def flat_float64(images: Tensor) -> Tensor:
    """Rows of values in float64, shape ``(B, D)``; on the CPU where the device has no float64."""
    return as_float64(images.flatten(start_dim=1))


def log_ratio_sums(probs: Tensor) -> Tensor:
    """``sum_i c(T_i)`` and ``sum_i |c(T_i)|^2`` over rows, shape ``(K + 1,)``; see :func:`energy_from_sums`."""
    log_probs = probs.log()
    ratios = log_probs - log_probs.mean(dim=1, keepdim=True)
    return torch.cat([ratios.sum(dim=0), (ratios**2).sum()[None]])


def energy_from_sums(log_sums: Tensor, rows: float, prior: Tensor) -> float:
    r"""Mean energy :math:`E |c(T) - c(prior)|^2 / 2` in nats at witness scale 1, from :func:`log_ratio_sums`."""
    log_prior = prior.log()
    center = (log_prior - log_prior.mean()).to(log_sums)
    mean = log_sums / rows
    return float(mean[-1] - 2 * mean[:-1] @ center + center @ center) / 2
