"""The VAE and its parts: networks, constrained encoders, priors, objectives, schedules."""

from certvae.models.constrained_encoders import BatchNormEncoder, DeltaEncoder
from certvae.models.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from certvae.models.objectives import ELBO, Capacity, FreeBits, InfoVAE, Objective, Terms
from certvae.models.priors import Prior, StandardNormal, VampPrior
from certvae.models.schedules import CyclicalSchedule, LinearSchedule, Schedule
from certvae.models.vae import VAE, TrainingDivergedError, VacuousTeacherError

__all__ = [
    "ELBO",
    "VAE",
    "BatchNormEncoder",
    "Capacity",
    "ConvDecoder",
    "ConvEncoder",
    "CyclicalSchedule",
    "DeltaEncoder",
    "FreeBits",
    "InfoVAE",
    "LinearSchedule",
    "MLPDecoder",
    "MLPEncoder",
    "Objective",
    "Prior",
    "Schedule",
    "StandardNormal",
    "Terms",
    "TrainingDivergedError",
    "VacuousTeacherError",
    "VampPrior",
]
