"""The base class of teachers: a fixed distribution over K components, given an input."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from certvae.io.random_state import kept_random_state
from certvae.reading.inputs import InputSource, as_floats, index_of, select_inputs
from certvae.teachers.card import TeacherCard
from certvae.teachers.files import write_teacher_file
from certvae.theory.arguments import as_float64
from certvae.theory.information import as_probabilities
from certvae.theory.scores import ScoredRows
from certvae.theory.sums import CertificateSums
from certvae.theory.witness import SimplexWitness

__all__ = ["Teacher", "TeacherCard", "TeacherMismatchError"]

T = TypeVar("T", bound="Teacher")
VALUE_TOLERANCE = 0.01


class TeacherMismatchError(ValueError):
    """The data differs from the data that the teacher was made for."""


class Teacher(nn.Module):
    """Base class of teachers: a fixed distribution over K components, given an input.

    To write your own teacher, subclass it with a ``kind``, :meth:`forward` and :meth:`tensors`. Import the module that
    defines it before you load its files with :func:`certvae.load_teacher`. :meth:`from_tensors` rebuilds the teacher;
    the default calls the class with the card, ``average=`` and each tensor by its name.

    Args:
        card: description of the teacher; see :class:`TeacherCard`.
        average: mean teacher over training rows, float64, shape ``(K,)``; None until :meth:`measure` is called.

    Raises:
        ValueError: if ``average`` is not a distribution over the card's components.

    Attributes:
        kind: name of the subclass in files. A subclass without a kind cannot be saved. A subclass that inherits its
            kind is loaded as the parent class.
    """

    kind: str = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register the subclass under its ``kind``.

        Raises:
            TypeError: if another class already has this kind.
        """
        super().__init_subclass__(**kwargs)
        kind = vars(cls).get("kind")
        if kind is None:
            return
        other = _KINDS.get(kind, cls)
        # A notebook cell that is run again redefines the same class.
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(
                f"`kind = {kind!r}` of {cls.__qualname__} is already used by {other.__module__}.{other.__qualname__}; "
                "give it another."
            )
        _KINDS[kind] = cls

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
            index: position of each row in its data set, int64, shape ``(B,)``; only a :class:`TargetTable` needs it.

        Returns:
            Probabilities, float32 or wider, shape ``(B, K)``.
        """

    def _apply(self: T, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> T:
        # A precision plugin casts the module that holds a teacher. The teacher changes its device only, not its dtype.
        return super()._apply(lambda value: value.to(fn(value).device), recurse)

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a file must hold to rebuild the teacher."""

    @classmethod
    def from_tensors(cls, card: TeacherCard, average: Tensor | None, tensors: dict[str, Tensor]) -> "Teacher":
        """Rebuild the teacher from a file's contents.

        A subclass may take further named arguments, which :func:`certvae.load_teacher` passes on:
        :class:`certvae.teachers.NetworkTeacher` takes ``network``.
        """
        make: Callable[..., Teacher] = cls
        return make(card, average=average, **tensors)

    def prepared(self, images: Tensor) -> Tensor:
        """Convert a batch's images to the teacher's input: uint8 images are scaled to [0, 1]."""
        return as_floats(images)

    def row_weights(self, images: Tensor) -> Tensor | None:
        """Weight of each row, from 0 to 1, float64, shape ``(B,)``; None if all weights are 1.

        Args:
            images: inputs, see :meth:`forward`.
        """
        return None

    @property
    def num_components(self) -> int:
        """K."""
        return self.card.num_components

    def save(self, path: str | Path) -> Path:
        """Write the teacher as a safetensors file with its card in the header, atomically.

        Raises:
            TypeError: if the class has no ``kind``.
        """
        if not self.kind:
            raise TypeError(
                f"{type(self).__name__} has no name for its files; give the class an attribute, as in `kind = 'mine'`."
            )
        tensors = dict(self.tensors())
        if self.average is not None:
            tensors["average"] = self.average
        return write_teacher_file(path, self.kind, self.card.to_dict(), tensors)

    def measured_average(self) -> Tensor:
        """The teacher's mean over training rows.

        Raises:
            ValueError: if :meth:`measure` was never called.
        """
        if self.average is None or self.card.information_train is None:
            raise ValueError(
                "this teacher was never measured on training rows; call teacher.measure(train_dataloader) once, with "
                "the same `images=` as the callback, then save it."
            )
        return self.average

    @torch.no_grad()
    @kept_random_state()
    def measure(self: T, batches: Iterable[Any], images: InputSource = 0) -> T:
        """Compute the average, the information and the energy on training rows; returns the teacher itself.

        The global random state is restored afterwards, even if the loader shuffles.

        Args:
            batches: batches of training rows, such as a dataloader; uint8 images are scaled to [0, 1].
            images: where the teacher's input is in a batch, as for the callbacks: a position, a key or an attribute, or
                a function of the batch.

        Raises:
            TypeError: if ``batches`` is not iterable, or is a single array.
            ValueError: if there is no row with positive weight.
        """
        totals = CertificateSums.unpack(
            torch.zeros(CertificateSums.packed_size(self.num_components), dtype=torch.float64),
            self.num_components,
        )
        log_sums = torch.zeros(self.num_components + 1, dtype=torch.float64)
        if not isinstance(batches, Iterable) or hasattr(batches, "__array__"):
            raise TypeError(
                f"`batches` must be batches, such as a dataloader, got {type(batches).__name__}. Of a DataModule give "
                "its train_dataloader(), of one tensor of all rows a list: [rows]."
            )
        for batch in batches:
            inputs = self.prepared(select_inputs(batch, images))
            probs, weights = self(inputs, index_of(batch)).double().cpu(), self.row_weights(inputs)
            totals = totals + CertificateSums.of(ScoredRows.check(probs, torch.zeros_like(probs), weights))
            log_sums += log_ratio_sums(probs if weights is None else probs[weights.cpu() > 0])
        if totals.num_rows == 0:
            raise ValueError("`batches` must hold at least one row that counts, got none.")
        self.average = totals.teacher_mean
        energy = (
            energy_from_sums(log_sums, totals.num_rows, self.average) if bool((log_sums.isfinite()).all()) else None
        )
        self.card = replace(self.card, information_train=totals.teacher_information(), energy=energy)
        return self

    def witness(self, latent_dim: int, scale: float = 2.0, prior: bool = True) -> SimplexWitness:
        """The simplex witness for this teacher.

        Args:
            latent_dim: size of the latent, at least ``K - 1``.
            scale: factor of the code.
            prior: whether the witness answers the teacher's average at ``z = 0``, instead of the uniform distribution.
        """
        average = self.measured_average() if prior else None
        return SimplexWitness(self.num_components, latent_dim, scale, average)

    def check_data(self, image_shape: tuple[int, ...] | None = None, fingerprint: str | None = None) -> None:
        """Reject data that this teacher was not made for.

        Raises:
            TeacherMismatchError: if shapes or fingerprints are both known and differ.
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
            TeacherMismatchError: if the shape or the value range differs. The message names both.
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


_KINDS: dict[str, type[Teacher]] = {}


def kind_named(kind: str) -> type[Teacher]:
    """The teacher class that is registered under a kind.

    Raises:
        LookupError: if there is none.
    """
    if kind not in _KINDS:
        raise LookupError(
            f"no teacher of kind {kind[:100]!r} is known, only {', '.join(sorted(_KINDS))}. If it is your own, import "
            "the module that defines it first"
        )
    return _KINDS[kind]


def check_average(card: TeacherCard, average: Tensor | None) -> None:
    """Check that an average is a distribution over the card's components.

    Raises:
        ValueError: if it is not.
    """
    if average is None:
        return
    if tuple(average.shape) != (card.num_components,):
        raise ValueError(f"`average` must have shape ({card.num_components},), got {tuple(average.shape)}.")
    as_probabilities(average[None], "average")


def flat_float64(images: Tensor) -> Tensor:
    """Rows of values in float64, shape ``(B, D)``; on the CPU if the device has no float64."""
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
