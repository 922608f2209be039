"""A teacher from class labels: the label itself, smoothed."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from certvae.reading.inputs import InputSource
from certvae.teachers.base import Teacher, check_average
from certvae.teachers.card import TeacherCard
from certvae.theory.arguments import float64_device

__all__ = ["LabelTeacher"]


class LabelTeacher(Teacher):
    r"""Class labels, smoothed: :math:`T(\cdot|x) = (1 - \epsilon)\, onehot(y) + \epsilon / K`.

    Its input is the label, so the argument ``images`` of callbacks and of ``measure`` is the place of the label in the
    batch: ``LabelTeacher(10).measure(train_dataloader, images=1)``. A tensor of all training labels works too:
    ``LabelTeacher(10).measure([labels])``. With class shares :math:`p` and :math:`a = 1 - \epsilon + \epsilon / K`,
    :math:`b = \epsilon / K`, its information is :math:`H((1 - \epsilon) p + b) + a \log a + (K - 1)\, b \log b` nats.

    The certificate is then about everything that the encoder receives. If the encoder receives the label, as in a
    conditional VAE, it is certified for copying the label.

    Args:
        num_classes: K.
        smoothing: share :math:`\epsilon` of the uniform distribution, in [0, 1). With 0, no code of finite energy
            predicts the labels exactly.
        names: of the classes, in the order of their labels, such as torchvision's ``data.classes``. Certificates use
            them for the components.
        ignore: label of rows without a class, such as -1. These rows get weight 0 in the teacher's average, in the
            certificate and in alignment. It must not be the label of a class.

    Raises:
        TypeError: if an argument is not a number, or ``names`` is not a list of text.
        ValueError: if ``num_classes`` is below 2, ``smoothing`` is not in [0, 1), ``ignore`` is a class, or ``names``
            are not ``num_classes`` printable texts of at most 100 characters.
    """

    kind = "labels"

    def __init__(
        self,
        num_classes: int,
        smoothing: float = 0.1,
        names: Sequence[str] | None = None,
        ignore: int | None = None,
    ) -> None:
        if isinstance(names, str):
            raise TypeError(f"`names` must be a list of text, one for each class, got the text {names!r}.")
        given = None if names is None else tuple(names)
        super().__init__(TeacherCard(num_classes, floor=smoothing, names=given, ignore=ignore))

    @classmethod
    def from_tensors(cls, card: TeacherCard, average: Tensor | None, tensors: dict[str, Tensor]) -> "LabelTeacher":
        """Rebuild from a file's card.

        Raises:
            ValueError: if the file holds tensors other than the average.
        """
        if tensors:
            raise ValueError(f"a label teacher has no tensors but its average, got {sorted(tensors)[:5]}.")
        check_average(card, average)
        teacher = cls(card.num_components, card.floor)
        teacher.card, teacher.average = card, average
        return teacher

    def measure(self, batches: Iterable[Any], images: InputSource = 0) -> "LabelTeacher":
        """As of every teacher; warns of classes that no row has."""
        super().measure(batches, images)
        floor = self.card.floor / self.num_components
        absent = [number for number, share in enumerate(self.measured_average().tolist()) if share <= floor + 1e-12]
        if absent:
            shown = ", ".join(map(str, absent[:5])) + ", ..." * (len(absent) > 5)
            rank_zero_warn(f"`num_classes={self.num_components}`, but no row of `batches` has the label {shown}.")
        return self

    def prepared(self, images: Tensor) -> Tensor:
        """The labels, unchanged: uint8 labels are not scaled like pixels."""
        return images

    def check_values(self, images: Tensor) -> None:
        """Check that the input is one class label a row.

        Raises:
            TypeError: if the labels are not whole numbers.
            ValueError: if the shape is not ``(B,)``, or a label is not in ``0 ... K - 1``.
        """
        if images.is_floating_point() or images.is_complex():
            raise TypeError(
                "a label teacher needs class labels, whole numbers of shape (B,), got "
                f"{images.dtype} of shape {tuple(images.shape)}. Say where they stand in the batch, `images=1` or "
                "`images='label'`; labels in floats need `images=lambda batch: batch[1].long()`."
            )
        if _column(images).ndim != 1:
            raise ValueError(
                f"class labels must have shape (B,), got {tuple(images.shape)}. One-hot labels need "
                "`images=lambda batch: batch[1].argmax(dim=1)`, a column of labels `batch[1][:, 0]`."
            )
        labels = _column(images).long()
        outside = labels[((labels < 0) | (labels >= self.num_components)) & (labels != self._ignore)]
        if len(outside):
            label = int(outside[0])
            raise ValueError(
                f"class labels must lie in 0 ... {self.num_components - 1}, got {label}. Give the right `num_classes`; "
                "of labels that start at 1, `images=lambda batch: batch[1] - 1`; rows without a label need "
                f"LabelTeacher({self.num_components}, ignore={label})."
            )

    @property
    def _ignore(self) -> int:
        return self.num_components - 1 if self.card.ignore is None else self.card.ignore

    def row_weights(self, images: Tensor) -> Tensor | None:
        """Weights: 0 for rows with the ignored label, else 1; None if no label is ignored."""
        if self.card.ignore is None:
            return None
        return (_column(images).to(float64_device(images.device)) != self.card.ignore).double()

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        self.check_values(images)
        labels = _column(images).to(float64_device(images.device)).long()
        if self.card.ignore is not None:
            labels = labels.where(labels != self.card.ignore, 0)  # these rows have weight 0, so any answer will do
        hard = nn.functional.one_hot(labels, self.num_components).to(torch.float64)
        return (1 - self.card.floor) * hard + self.card.floor / self.num_components

    def tensors(self) -> dict[str, Tensor]:
        return {}


def _column(labels: Tensor) -> Tensor:
    """Labels ``(B, 1)`` as ``(B,)``."""
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
