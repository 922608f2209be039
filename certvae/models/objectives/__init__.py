"""Training objectives: each computes a row's loss from its distortion and its rate."""

from certvae.models.objectives.base import Objective, Terms
from certvae.models.objectives.capacity import Capacity
from certvae.models.objectives.elbo import ELBO
from certvae.models.objectives.free_bits import FreeBits
from certvae.models.objectives.info_vae import InfoVAE, maximum_mean_discrepancy

__all__ = ["ELBO", "Capacity", "FreeBits", "InfoVAE", "Objective", "Terms", "maximum_mean_discrepancy"]
