r"""The trained raw witness: a small network from the latent code to component probabilities.

Like the simplex witness it reads the code only. Unlike it, it has parameters, which the alignment term trains. They are
fixed when a certificate is made, so the certificate is equally valid. The papers' summaries mention a margin "via a raw
head" (https://arxiv.org/abs/2605.05813); architecture and initialization are ours.
"""

import torch
from torch import Tensor, nn

from certvae.theory.arguments import MAX_COMPONENTS, as_number, as_whole_number
from certvae.theory.witness import as_codes, log_prior_of, teacher_rows

__all__ = ["RawHead"]


class RawHead(nn.Module):
    r"""Trainable witness :math:`S(\cdot|z) = softmax(f(z) / \tau)`, with ``f`` linear or a perceptron.

    **At initialization it answers the prior for every code**: the last layer's weights are 0 and its bias is
    :math:`\tau \log \text{prior}`. So before the first step the margin is :math:`-KL(\bar T \| \text{prior})` for every
    code, which is 0 if the prior is the teacher's average. :meth:`alignment_gradient` is 0 at initialization, and the
    weights get a gradient only from codes that vary (see the page Mathematics).

    Only the alignment term trains it; with the alignment off it gets no gradient. If the model owns the head, as
    :class:`certvae.VAE` does with ``witness=RawHead()``, its parameters are in the model's ``state_dict``. On several
    processes with the alignment off, DDP needs ``strategy="ddp_find_unused_parameters_true"``.

    Args:
        num_components: K, at least 2; None: set by :meth:`bind`, which a VAE calls with its teacher's K.
        latent_dim: size of the latent, at least 1; None: set by :meth:`bind`.
        hidden: units of the one hidden layer (ReLU); 0 makes the head linear.
        temperature: :math:`\tau`, from 1e-6 to 1e6. A step of Adam moves the logits by :math:`1/\tau` times as much as
            the weights. Give 0.1 to a head that is aligned on draws: at 1 it learns slowly there. On the mean keep
            1: a low temperature raises the margin of the mean, and empties the draws.
        prior: positive probabilities that the head answers at initialization, shape ``(K,)``; None: those given to
            :meth:`bind`, or uniform.

    Raises:
        TypeError: if an argument is not a number, or ``prior`` is not an array of numbers.
        ValueError: if a size is too small, ``temperature`` is not from 1e-6 to 1e6, or a probability of ``prior`` is
            not above 0.
    """

    def __init__(
        self,
        num_components: int | None = None,
        latent_dim: int | None = None,
        hidden: int = 0,
        temperature: float = 1.0,
        prior: Tensor | list[float] | None = None,
    ) -> None:
        super().__init__()
        self.hidden = as_whole_number(hidden, "hidden", 0)
        self.temperature = float(as_number(temperature, "temperature"))
        if not 1e-6 <= self.temperature <= 1e6:
            raise ValueError(f"`temperature` must be from 1e-6 to 1e6, got {temperature}.")
        self.num_components, self.latent_dim, self._prior = num_components, latent_dim, prior
        self.layers = nn.ModuleList()
        if num_components is not None and latent_dim is not None:
            self._build(num_components, latent_dim)

    def bind(self, num_components: int, latent_dim: int, prior: Tensor | None = None) -> "RawHead":
        """Set the sizes that are still None and build the layers; returns the head itself.

        Args:
            num_components: K of the teacher.
            latent_dim: size of the code.
            prior: probabilities that the head answers at initialization, shape ``(K,)``; ignored if the head has a
                prior.

        Raises:
            ValueError: if the head has another ``num_components`` or ``latent_dim``.
        """
        for name, came in (("num_components", num_components), ("latent_dim", latent_dim)):
            own = getattr(self, name)
            if own not in (None, came):
                raise ValueError(
                    f"`{name}` of the RawHead must be {came}, got {own}; leave it out to have it filled in."
                )
        if not self.layers:
            self._prior = prior if self._prior is None else self._prior
            self._build(num_components, latent_dim)
        return self

    def _build(self, num_components: int, latent_dim: int) -> None:
        self.num_components = as_whole_number(num_components, "num_components", 2, MAX_COMPONENTS)
        self.latent_dim = as_whole_number(latent_dim, "latent_dim", 1)
        width = self.latent_dim
        if self.hidden:
            self.layers.append(nn.Linear(width, self.hidden))
            width = self.hidden
        # No random initialization: it would only advance the run's random stream.
        last = nn.utils.skip_init(nn.Linear, width, self.num_components)
        with torch.no_grad():
            last.weight.zero_()
            last.bias.copy_(self.temperature * log_prior_of(self._prior, self.num_components))
        self.layers.append(last)

    def forward(self, latents: Tensor) -> Tensor:
        """Logits of the head.

        Args:
            latents: codes of any float type, shape ``(..., latent_dim)``; computed in float32 or wider.

        Returns:
            Logits, shape ``(..., K)``; not finite for a code that is not finite.

        Raises:
            TypeError: if ``latents`` is not a tensor of floats.
            ValueError: if it does not have ``latent_dim`` coordinates, is not dense, or the head has no layers yet.
        """
        values = as_codes(latents, self._width())
        with torch.autocast(values.device.type, enabled=False):
            *hidden, last = self._linears()
            for layer in hidden:
                values = _linear(layer, values).relu()
            return _linear(last, values) / self.temperature

    def alignment_gradient(self, latents: Tensor, probs: Tensor) -> Tensor:
        r"""Gradient of each row's alignment loss at its code, :math:`\tfrac1\tau (S - T) W`, in closed form.

        With a hidden layer it is :math:`\tfrac1\tau [(S - T) W_2 \odot 1_{h > 0}] W_1`. At initialization ``W`` is 0,
        so the gradient is 0 for every code and every teacher.

        Args:
            latents: codes, shape ``(N, latent_dim)``.
            probs: teacher probabilities, shape ``(N, K)``.

        Returns:
            Gradient in nats per unit of the code, float64, shape ``(N, latent_dim)``.

        Raises:
            TypeError: if an argument does not hold real numbers.
            ValueError: if shapes do not match, or ``probs`` are not probabilities.
        """
        codes = as_codes(latents, self._width())
        *hidden, last = self._linears()
        teacher = teacher_rows(probs, codes, last.out_features)
        difference = self(codes).softmax(dim=-1).to(teacher) - teacher
        gradient = difference @ last.weight.to(difference) / self.temperature
        with torch.autocast(codes.device.type, enabled=False):
            for layer in hidden:  # at most one
                gradient = (gradient * (_linear(layer, codes) > 0).to(gradient)) @ layer.weight.to(gradient)
        return gradient

    def _linears(self) -> list[nn.Linear]:
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def _width(self) -> int:
        if self.latent_dim is None or not self.layers:
            raise ValueError(
                "`num_components` and `latent_dim` of the RawHead are not known yet; give both, or give it to a "
                "VAE with a teacher, which fills them in."
            )
        return self.latent_dim

    def extra_repr(self) -> str:
        return f"hidden={self.hidden}, temperature={self.temperature:g}"


def _linear(layer: nn.Linear, values: Tensor) -> Tensor:
    """Apply the layer in the wider dtype of its weights and the values."""
    dtype = torch.promote_types(values.dtype, layer.weight.dtype)
    return nn.functional.linear(values.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))
