"""The objective in which the rate costs nothing below a floor."""

from torch import Tensor

from certvae.models.objectives.base import Objective, Terms, check_weight

__all__ = ["FreeBits"]


class FreeBits(Objective):
    r"""The rate of a latent dimension costs nothing below a floor: :math:`distortion + \sum_j \max(floor, E\,kl_j)`.

    Source: Kingma et al., 2016, https://arxiv.org/abs/1606.04934, appendix C.8 (openai/iaf), with the batch average
        inside the maximum. The floor keeps a *rate*, not information: a constant posterior can have this rate.

    Args:
        floor: nats per latent dimension, at least 0.

    Raises:
        ValueError: if ``floor`` is negative; on use, if the prior does not give the divergence of each dimension.
    """

    def __init__(self, floor: float = 0.25) -> None:
        super().__init__()
        self.floor = check_weight(floor, "floor")

    def forward(self, terms: Terms) -> Tensor:
        if terms.kl.shape[1] != terms.latents.shape[1]:
            raise ValueError(
                f"FreeBits needs the divergence of each of {terms.latents.shape[1]} latent dimensions, and "
                f"{type(terms.prior).__name__} gives {terms.kl.shape[1]} for each row. Use `StandardNormal` as `prior`."
            )
        return terms.distortion + terms.kl.mean(dim=0).clamp(min=self.floor).sum()
