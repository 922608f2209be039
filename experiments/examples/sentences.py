"""Sentence VAEs, an LSTM and a small Transformer, on sentences of a grammar: collapse, and a guard against it.

python experiments/examples/sentences.py                                  # the LSTM, KL annealing alone
python experiments/examples/sentences.py --model transformer --guard      # with the guard
python experiments/examples/sentences.py --teacher bag                    # without labels
"""

import argparse
import tempfile
from itertools import chain
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from certvae import TeacherSearch
from certvae.callbacks import CertificateCallback, CertificateGuard, DecoderCheck
from certvae.teachers import LabelTeacher, Teacher

TOPICS = (  # subjects, verbs and places of each topic
    ("cat dog horse fox hen", "eats chases bites smells licks", "barn field forest garden"),
    ("cook baker guest waiter child", "tastes boils serves burns salts", "kitchen bar market hall"),
    ("captain sailor diver pilot fisher", "steers loads sinks sights paints", "harbor bay dock reef"),
    ("judge lawyer clerk thief witness", "accuses hears fines frees sues", "court cell office archive"),
)
SHARED = ["<pad>", "<go>", "<end>", "the", "a", "old", "young", "quiet", "big", "and", "in", "near", "behind"]
WORDS = SHARED + list(chain.from_iterable(words.split() for topic in TOPICS for words in topic))
PAD, GO, END = 0, 1, 2
Sentences = list[tuple[Tensor, int]]


def sentences(count: int, seed: int) -> Sentences:
    """Word numbers of sentences of 6 to 15 words, and their topic."""
    generator = torch.Generator().manual_seed(seed)

    def pick(words: str) -> str:
        options = words.split()
        return options[int(torch.randint(len(options), (1,), generator=generator))]

    def phrase(words: str) -> list[str]:
        adjective = pick("none none old young quiet big")
        return [pick("the a"), *([] if adjective == "none" else [adjective]), pick(words)]

    rows: Sentences = []
    for _ in range(count):
        topic = int(torch.randint(len(TOPICS), (1,), generator=generator))
        subjects, verbs, places = TOPICS[topic]
        said = [*phrase(subjects), pick(verbs), *phrase(subjects)]
        said += [pick("in near behind"), *phrase(places)] if pick("yes no") == "yes" else []
        said += ["and", pick(verbs), *phrase(subjects)] if pick("yes no") == "yes" else []
        rows.append((torch.tensor([WORDS.index(word) for word in [*said, "<end>"]]), topic))
    return rows


def padded(rows: Sentences) -> tuple[Tensor, Tensor]:
    """Sentences of a batch, shape ``(B, longest)``, and their topics."""
    words, topics = zip(*rows, strict=True)
    return pad_sequence(list(words), batch_first=True, padding_value=PAD), torch.tensor(topics)


def bag_of_words(batch: tuple[Tensor, Tensor]) -> Tensor:
    """Counts of each word, shape ``(B, words)``, for sentences of any length."""
    counts = nn.functional.one_hot(batch[0], len(WORDS)).sum(dim=1)
    return counts[:, len(SHARED) :].float()


class Recurrent(nn.Module):
    """An LSTM over word vectors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.LSTM(width, width, batch_first=True)

    def forward(self, vectors: Tensor, padding: Tensor | None) -> Tensor:
        """States, shape ``(B, length, width)``."""
        return self.net(vectors)[0]


class Attentive(nn.Module):
    """A layer of a Transformer; without ``padding`` each word sees only the previous words."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.places = nn.Embedding(20, width)

    def forward(self, vectors: Tensor, padding: Tensor | None) -> Tensor:
        """States, shape ``(B, length, width)``."""
        length = vectors.shape[1]
        vectors = vectors + self.places(torch.arange(length, device=vectors.device))
        if padding is not None:
            return self.net(vectors, src_key_padding_mask=padding)
        return self.net(vectors, torch.ones(length, length, dtype=torch.bool, device=vectors.device).triu(1))


class Encoder(nn.Module):
    """Mean and log-variance, side by side, from the average state of the words."""

    def __init__(self, part: type[nn.Module], width: int, latent_dim: int) -> None:
        super().__init__()
        self.words, self.body = nn.Embedding(len(WORDS), width, PAD), part(width)
        self.head = nn.Linear(width, 2 * latent_dim)

    def forward(self, words: Tensor) -> Tensor:
        """The posterior of each sentence."""
        kept = (words != PAD)[..., None]
        states = self.body(self.words(words), words == PAD) * kept
        return self.head(states.sum(dim=1) / kept.sum(dim=1))


class SentenceVAE(pl.LightningModule):
    """A sentence VAE whose decoder sees the previous words; the KL weight rises to 1 in half of the epochs.

    Args:
        part: class of the layers of encoder and decoder.
        latent_dim: size of the code.
        epochs: of training.
    """

    def __init__(self, part: type[nn.Module], latent_dim: int = 8, epochs: int = 20, width: int = 48) -> None:
        super().__init__()
        self.encoder, self.epochs = Encoder(part, width, latent_dim), epochs
        self.words, self.from_code = nn.Embedding(len(WORDS), width, PAD), nn.Linear(latent_dim, width)
        self.decoder, self.answer = part(width), nn.Linear(width, len(WORDS))

    def terms(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction and KL term in nats, each shape ``(B,)``."""
        mean, log_variance = self.encoder(words).chunk(2, dim=1)
        code = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        before = nn.functional.pad(words[:, :-1], (1, 0), value=GO)
        states = self.decoder(self.words(before) + self.from_code(code)[:, None], None)
        error = nn.functional.cross_entropy(self.answer(states).mT, words, ignore_index=PAD, reduction="none")
        return error.sum(dim=1), (mean**2 + log_variance.exp() - log_variance - 1).sum(dim=1) / 2

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One step."""
        error, rate = self.terms(batch[0])
        return (error + min(1.0, 2 * self.current_epoch / self.epochs) * rate).mean()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The negative ELBO in nats per sentence."""
        loss = torch.stack(self.terms(batch[0])).sum(dim=0).mean()
        self.log("val_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def teacher_of(name: str, train: DataLoader[Any], val: DataLoader[Any]) -> Teacher:
    """A teacher of topics as labels, or of mixtures on the principal components of word counts."""
    if name == "topics":
        return LabelTeacher(len(TOPICS)).measure(train, images=1)
    search = TeacherSearch(
        (4,), temperatures=(1.0, 2.0), pca_dim=8, em_iterations=20, output_dir=tempfile.mkdtemp(), images=bag_of_words
    )
    return search.search(train, val)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", choices=["lstm", "transformer"], default="lstm")
parser.add_argument("--teacher", choices=["topics", "bag"], default="topics")
parser.add_argument("--guard", action="store_true", help="hold 0.5 nats of the teacher on draws of the code")
parser.add_argument("--max_epochs", type=int, default=20)
parser.add_argument("--rows", type=int, default=2000, help="sentences for training")
options = parser.parse_args()

pl.seed_everything(0, verbose=False)
train = DataLoader(sentences(options.rows, 0), 50, shuffle=True, collate_fn=padded)
val = DataLoader(sentences(1000, 1), 250, collate_fn=padded)
teacher = teacher_of(options.teacher, train, val)
images = 1 if options.teacher == "topics" else bag_of_words

watch = CertificateCallback(teacher, latents="encoder:chunk", images=images)
check = DecoderCheck("encoder:chunk")
model = SentenceVAE({"lstm": Recurrent, "transformer": Attentive}[options.model], epochs=options.max_epochs)
trainer = pl.Trainer(
    max_epochs=options.max_epochs,
    callbacks=[watch, check, *([CertificateGuard(target=0.5)] if options.guard else [])],
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(model, train, val)
print(watch.certificate)
print(f"negative ELBO {trainer.callback_metrics['val_loss']:.2f} nats a sentence; {check.losses}")
