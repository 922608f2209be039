"""A teacher from a Gaussian mixture on principal components."""

import math

import torch
from torch import Tensor

from certvae.teachers.base import Teacher, TeacherCard, flat_float64

__all__ = ["GaussianMixtureTeacher", "gaussian_log_joint"]


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
    distance = features**2 @ precision.T - 2 * features @ (means * precision).T + (means**2 * precision).sum(dim=1)
    log_det = variances.log().sum(dim=1) + means.shape[1] * math.log(2 * math.pi)
    return log_weights - 0.5 * (distance + log_det)


class GaussianMixtureTeacher(Teacher):
    r"""Component probabilities of a diagonal Gaussian mixture on principal components.

    .. math::
        T_k(x) = (1 - \epsilon)\, softmax_k\left(\tfrac1\tau \log \pi_k N(y; m_k, v_k)\right)
        + \epsilon / K, \qquad y = W^T (x - \bar x)

    with temperature :math:`\tau` and floor :math:`\epsilon`. A spherical mixture has equal variances in each row.

    Args:
        card: gives temperature, floor and K.
        center: mean input, shape ``(D,)``.
        projection: principal directions ``W``, shape ``(D, d)``.
        log_weights: log mixture weights, shape ``(K,)``.
        means: component means, shape ``(K, d)``.
        variances: component variances, shape ``(K, d)``.
        average: mean teacher over training rows, shape ``(K,)``.

    Raises:
        ValueError: if the shapes do not fit each other or a value is not finite.
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
        _check_shapes(tensors, card.num_components)
        for name, value in tensors.items():
            self.register_buffer(name, value.to(torch.float64))

    def features(self, images: Tensor) -> Tensor:
        """Principal components of inputs, shape ``(B, d)``."""
        flat = flat_float64(images)
        if flat.shape[1] != self.center.shape[0]:
            raise ValueError(f"`images` must have {self.center.shape[0]} values a row, got {flat.shape[1]}.")
        return (flat - self.center) @ self.projection

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:  # noqa: D102
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            log_joint = gaussian_log_joint(self.features(images), self.log_weights, self.means, self.variances)
            return soften(log_joint, self.card.temperature, self.card.floor)

    def tensors(self) -> dict[str, Tensor]:  # noqa: D102
        return dict(self.named_buffers())


def soften(log_joint: Tensor, temperature: float, floor: float) -> Tensor:
    """Probabilities at a temperature, mixed with the uniform distribution; shape as given."""
    probs = (log_joint / temperature).softmax(dim=-1)
    return (1 - floor) * probs + floor / log_joint.shape[-1]


def _check_shapes(tensors: dict[str, Tensor], num_components: int) -> None:
    dim = tensors["means"].shape[-1]
    expected = {
        "center": (tensors["center"].numel(),),
        "projection": (tensors["center"].numel(), dim),
        "log_weights": (num_components,),
        "means": (num_components, dim),
        "variances": (num_components, dim),
    }
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"`{name}` must have shape {shape}, got {tuple(tensors[name].shape)}.")
        if not bool(tensors[name].isfinite().all()):
            raise ValueError(f"`{name}` must be finite.")
    if bool((tensors["variances"] <= 0).any()):
        raise ValueError(f"`variances` must be positive, got {tensors['variances'].min():.3g}.")
