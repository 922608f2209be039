"""A teacher from a Gaussian mixture on principal components."""

import math

import torch
from torch import Tensor

from certvae.teachers.base import Teacher
from certvae.teachers.card import TeacherCard
from certvae.theory.arguments import float64_device

__all__ = ["GaussianMixtureTeacher", "gaussian_log_joint"]

MAX_VALUE = 1e30  # limit on values and on 1 / variance: products of five of them are finite in float64
LARGE = ("center", "projection")  # as large as one input, and as many inputs
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def gaussian_log_joint(features: Tensor, log_weights: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    r""":math:`\log \pi_k + \log N(y; m_k, diag(v_k))` for every row and component, in nats.

    Args:
        features: shape ``(B, d)``.
        log_weights: shape ``(K,)``.
        means: shape ``(K, d)``.
        variances: shape ``(K, d)``, positive.

    Returns:
        Shape ``(B, K)``.
    """
    precision = 1 / variances
    linear = means * precision
    normalizer = (means * linear + variances.log()).sum(dim=1) + means.shape[1] * math.log(2 * math.pi)
    return (features @ linear.T).add_(log_weights - normalizer / 2).sub_(features**2 @ precision.T, alpha=0.5)


class GaussianMixtureTeacher(Teacher):
    r"""Component probabilities of a diagonal Gaussian mixture on principal components.

    .. math::
        T_k(x) = (1 - \epsilon)\, softmax_k\left(\tfrac1\tau \log \pi_k N(y; m_k, v_k)\right)
        + \epsilon / K, \qquad y = W^T (x - \bar x)

    with temperature :math:`\tau` and floor :math:`\epsilon`. A spherical mixture has equal variances in each row.

    Args:
        card: has temperature, floor and K.
        center: mean input, shape ``(D,)``.
        projection: principal directions ``W``, shape ``(D, d)``.
        log_weights: log mixture weights, shape ``(K,)``.
        means: component means, shape ``(K, d)``.
        variances: component variances, shape ``(K, d)``.
        average: mean teacher over training rows, shape ``(K,)``.

    Raises:
        ValueError: if shapes do not match each other or the card, or a value is not finite or above 1e30.
    """

    kind = "gaussian_mixture"
    center: Tensor
    projection: Tensor
    log_weights: Tensor
    means: Tensor
    variances: Tensor

    def __init__(
        self,
        card: TeacherCard,
        center: Tensor,
        projection: Tensor,
        log_weights: Tensor,
        means: Tensor,
        variances: Tensor,
        average: Tensor | None = None,
    ) -> None:
        super().__init__(card, average)
        tensors = {
            "center": center,
            "projection": projection,
            "log_weights": log_weights,
            "means": means,
            "variances": variances,
        }
        _check_shapes(tensors, card)
        _check_values(tensors)
        for name, value in tensors.items():
            self.register_buffer(name, value.to(torch.float64))

    def features(self, images: Tensor) -> Tensor:
        """Principal components of inputs, shape ``(B, d)``."""
        # The buffers are float64, so the difference is float64 without another copy.
        flat = images.to(float64_device(images.device)).flatten(start_dim=1)
        if flat.shape[1] != self.center.shape[0]:
            raise ValueError(f"`images` must have {self.center.shape[0]} values a row, got {flat.shape[1]}.")
        return (flat - self.center) @ self.projection

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            log_joint = gaussian_log_joint(self.features(images), self.log_weights, self.means, self.variances)
            return soften(log_joint, self.card.temperature, self.card.floor)

    def tensors(self) -> dict[str, Tensor]:
        """Tensors for the file, float64; large ones in the smallest float type that keeps their values."""
        return {name: _narrowed(value) if name in LARGE else value for name, value in self.named_buffers()}


def soften(log_joint: Tensor, temperature: float, floor: float) -> Tensor:
    """Probabilities at a temperature, mixed with the uniform distribution; shape as given."""
    probs = (log_joint / temperature).softmax(dim=-1)
    return (1 - floor) * probs + floor / log_joint.shape[-1]


def _narrowed(value: Tensor) -> Tensor:
    narrow = (value.to(kind) for kind in (torch.float16, torch.float32))
    return next((other for other in narrow if torch.equal(other.to(value.dtype), value)), value)


def _check_shapes(tensors: dict[str, Tensor], card: TeacherCard) -> None:
    inputs, dim = tensors["center"].numel(), tensors["means"].shape[-1] if tensors["means"].ndim else 0
    expected = {
        "center": (inputs,),
        "projection": (inputs, dim),
        "log_weights": (card.num_components,),
        "means": (card.num_components, dim),
        "variances": (card.num_components, dim),
    }
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape or 0 in shape:
            raise ValueError(f"`{name}` must have shape {shape}, none of them 0, got {tuple(tensors[name].shape)}.")
    if card.image_shape is not None and math.prod(card.image_shape) != inputs:
        raise ValueError(f"`center` must have the {math.prod(card.image_shape)} values of an image, got {inputs}.")


def _check_values(tensors: dict[str, Tensor]) -> None:
    for name, value in tensors.items():
        if value.dtype not in FLOATS:
            raise ValueError(f"`{name}` must hold floating-point values, got {value.dtype}.")
        if not bool((value.abs() <= MAX_VALUE).all()):
            raise ValueError(f"`{name}` must be finite, and at most {MAX_VALUE:g}.")
    if bool((tensors["variances"].double() < 1 / MAX_VALUE).any()):
        raise ValueError(
            f"`variances` must be positive, at least {1 / MAX_VALUE:g}, got {tensors['variances'].min():.3g}."
        )
