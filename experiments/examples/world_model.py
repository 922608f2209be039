"""A world model with categorical latents, as in DreamerV2, on sequences of a moving dot, with the information in its
codes.

    python experiments/examples/world_model.py

A recurrent state, a prior that sees the past and a posterior that sees the frame too; eight classes in each of four
groups, drawn with straight-through gradients; the KL term is balanced, and costs nothing below one nat (Hafner et al.,
2021, https://arxiv.org/abs/2010.02193, algorithm 2 and appendix A).
"""

import argparse
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.distributions import Independent, OneHotCategorical, OneHotCategoricalStraightThrough, kl_divergence
from torch.utils.data import DataLoader, TensorDataset

from certvae.callbacks import AlignmentCallback, CertificateCallback, CodebookCallback
from certvae.teachers import LabelTeacher

SIZE, STEPS, GROUPS, CLASSES, STATE = 8, 4, 4, 8, 32
MOVES = torch.tensor([[0, 1], [1, 0], [0, -1], [-1, 0]])


def sequences(rows: int, seed: int) -> TensorDataset:
    """Frames ``(rows, STEPS, SIZE ** 2)``, actions before each ``(rows, STEPS, 4)``, and the last frame's quadrant."""
    generator = torch.Generator().manual_seed(seed)
    actions = torch.randint(4, (rows, STEPS), generator=generator)
    place = torch.randint(SIZE, (rows, 2), generator=generator)[:, None] + MOVES[actions].cumsum(dim=1)
    place = place % SIZE
    frames = nn.functional.one_hot(SIZE * place[..., 0] + place[..., 1], SIZE**2).float()
    quadrant = 2 * (place[:, -1, 0] >= SIZE // 2) + (place[:, -1, 1] >= SIZE // 2)
    return TensorDataset(frames, nn.functional.one_hot(actions, 4).float(), quadrant.long())


def classes(logits: Tensor, straight: bool = True) -> "Independent[Any]":
    """The distribution of all groups."""
    kind = OneHotCategoricalStraightThrough if straight else OneHotCategorical
    return Independent(kind(logits=logits.unflatten(-1, (GROUPS, CLASSES))), 1)


class WorldModel(pl.LightningModule):
    """Batches are ``(frames, actions, quadrant)``."""

    def __init__(self) -> None:
        super().__init__()
        codes = GROUPS * CLASSES
        self.memory = nn.GRUCell(codes + 4, STATE)
        self.prior, self.posterior = nn.Linear(STATE, codes), nn.Linear(STATE + SIZE**2, codes)
        self.decoder = nn.Sequential(nn.Linear(STATE + codes, 64), nn.ELU(), nn.Linear(64, SIZE**2))

    def observe(self, frames: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the prior and of the posterior, and the decoder's input, each ``(B, STEPS, ...)``."""
        state, code = frames.new_zeros(len(frames), STATE), frames.new_zeros(len(frames), GROUPS * CLASSES)
        found = []
        for frame, action in zip(frames.unbind(dim=1), actions.unbind(dim=1), strict=True):
            state = self.memory(torch.cat([code, action], dim=1), state)
            logits = self.posterior(torch.cat([state, frame], dim=1))
            code = classes(logits).rsample().flatten(1)
            found.append((self.prior(state), logits, torch.cat([state, code], dim=1)))
        prior, posterior, features = (torch.stack(part, dim=1) for part in zip(*found, strict=True))
        return prior, posterior, features

    def loss(self, batch: list[Tensor]) -> Tensor:
        """Negative log-likelihood of a frame in nats; the decoder's output is a distribution over positions."""
        prior, posterior, features = self.observe(batch[0], batch[1])
        error = nn.functional.cross_entropy(self.decoder(features).flatten(0, 1), batch[0].flatten(0, 1))
        trained = kl_divergence(classes(posterior.detach(), False), classes(prior, False)).mean()
        regular = kl_divergence(classes(posterior, False), classes(prior.detach(), False)).mean()
        return error + 0.1 * (0.8 * trained.clamp(min=1.0) + 0.2 * regular.clamp(min=1.0))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """One step."""
        return self.loss(batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the loss."""
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def last_code(model: WorldModel, batch: list[Tensor]) -> "Independent[Any]":
    """The posterior of each sequence's last frame: a row is a sequence, because its frames are not independent."""
    return classes(model.observe(batch[0], batch[1])[1][:, -1], straight=False)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--max_epochs", type=int, default=10)
options = parser.parse_args()

pl.seed_everything(0, verbose=False)
train, val = DataLoader(sequences(1500, 0), 50, shuffle=True), DataLoader(sequences(1000, 1), 250)
teacher = LabelTeacher(4, names=["upper left", "upper right", "lower left", "lower right"]).measure(train, images=2)
watch = CertificateCallback(teacher, last_code, images=2)
codebook = CodebookCallback(last_code, size=CLASSES, positions="each")
trainer = pl.Trainer(
    max_epochs=options.max_epochs,
    callbacks=[watch, codebook, AlignmentCallback(teacher, last_code, images=2, weight=5.0)],
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(WorldModel(), train, val)
print(watch.certificate)
print(codebook.information)
