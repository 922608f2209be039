"""A teacher from any module that gives logits, such as a trained classifier."""

from typing import Any

import torch
from torch import Tensor, nn

from certvae.io.checkpoints import is_diverged
from certvae.teachers.base import Teacher, check_average
from certvae.teachers.card import TeacherCard
from certvae.teachers.mixture import soften

__all__ = ["NetworkTeacher"]


class NetworkTeacher(Teacher):
    """Softmax of a frozen network's logits, at a temperature and with a floor.

    The network is kept in eval mode, without gradients, outside autocast.

    Args:
        network: module that maps inputs ``(B, *image_shape)`` to logits ``(B, K)``.
        num_components: K.
        temperature: divisor of the logits.
        floor: share of the uniform distribution mixed in.
        card_fields: further fields of the :class:`certvae.teachers.TeacherCard`.

    Raises:
        ValueError: if an argument is not valid for the :class:`certvae.teachers.TeacherCard`.
    """

    kind = "network"

    def __init__(
        self,
        network: nn.Module,
        num_components: int,
        temperature: float = 1.0,
        floor: float = 0.0,
        **card_fields: Any,
    ) -> None:
        super().__init__(TeacherCard(num_components, temperature, floor, **card_fields))
        self.network = network.eval().requires_grad_(False)

    @classmethod
    def from_tensors(
        cls, card: TeacherCard, average: Tensor | None, tensors: dict[str, Tensor], network: nn.Module | None = None
    ) -> "NetworkTeacher":
        """Rebuild from a file's tensors and a module of the same architecture.

        Raises:
            ValueError: if ``network`` is missing or the weights do not fit it.
        """
        if network is None:
            raise ValueError(
                "this file holds the weights of a network teacher; give the module that takes them: "
                "load_teacher(path, network=...)."
            )
        check_average(card, average)
        weights = {key.removeprefix("network."): value for key, value in tensors.items() if key.startswith("network.")}
        if len(weights) < len(tensors):
            raise ValueError(f"every tensor must be named 'network....', got {sorted(tensors)[:5]}.")
        _check_weights(weights, network.state_dict())
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"`network` does not take the file's weights: {error}") from None
        teacher = cls(network, card.num_components)
        teacher.card, teacher.average = card, average
        return teacher

    def train(self, mode: bool = True) -> "NetworkTeacher":
        """Stay in eval mode in every case, because a teacher is fixed."""
        super().train(False)
        return self

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            like = next(self.network.parameters(), images)
            logits = self.network(images.to(like if images.is_floating_point() else like.device))
        if logits.ndim != 2 or logits.shape[1] != self.num_components:
            raise ValueError(
                f"`network` must give logits of shape (B, {self.num_components}), got {tuple(logits.shape)}."
            )
        return soften(logits.float(), self.card.temperature, self.card.floor)

    def tensors(self) -> dict[str, Tensor]:
        return {f"network.{key}": value for key, value in self.network.state_dict().items()}


def _check_weights(given: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Reject weights with another dtype or shape, and weights that are not finite where the network's own are."""
    for key in given.keys() & own.keys():
        value, fresh = given[key], own[key]
        if value.dtype != fresh.dtype or value.shape != fresh.shape:
            raise ValueError(
                f"`network` does not take the file's weights: `{key}` is {fresh.dtype} of {tuple(fresh.shape)}, the "
                f"file's is {value.dtype} of {tuple(value.shape)}."
            )
        if is_diverged(value, fresh):
            raise ValueError(f"the file's weights `{key}` hold NaN or infinite values.")
