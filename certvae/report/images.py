"""Images of a run: examples of a teacher's components, reconstructions, samples and traversals of the latent.

They need the run's model and data, which are built from its YAML as in `certvae certify`: a YAML is code.
"""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from PIL import Image
from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

from certvae.commands.certify import build
from certvae.io.checkpoints import load_weights
from certvae.io.files import write_atomic
from certvae.io.untrusted import read_limited
from certvae.models.vae import VAE
from certvae.reading.inputs import inputs_and_index
from certvae.report.runs import Phase, plain_config
from certvae.teachers import Teacher

__all__ = ["Component", "Picture", "components", "first_inputs", "kept_pictures", "load_run", "model_pictures"]

SHOWN = 40  # components with examples
EXAMPLES = 8
COLUMNS = 8
TRAVERSED = 6
STEPS = 7
ALL_PICTURES = 3  # images of a model, including traversals
LEAST_CHANGE = 0.2  # of the value range, for the pixel that changes most; smaller changes are not visible
PICTURE_LIMIT = 2**24  # bytes of a PNG
MAX_SIDE = 64  # pixels per side; larger images are shrunk
MOST_PIXELS = 4096  # per side of an image that a run has saved
KEPT = {"Reconstructions": "images_reconstructions.png", "Samples": "images_samples.png"}
KEPT_ALT = {
    "Reconstructions": "First row: the first validation inputs. Second row: decoded from the mean of their codes.",
    "Samples": "Images decoded from draws of the prior, not chosen.",
}


@dataclass(frozen=True)
class Picture:
    """A grid of images as one PNG.

    Attributes:
        title: title of the image.
        alt: text alternative.
        uri: the PNG as a data URI.
        columns: number of images per row.
    """

    title: str
    alt: str
    uri: str
    columns: int


@dataclass
class Component:
    """One component of a teacher on held-out rows.

    Attributes:
        number: number of the component, from 0.
        name: the teacher's name for it, or the number.
        share: share of the rows that belong to it.
        labels: most frequent labels of its rows, if the data have named labels.
        picture: rows for which the teacher gives it the highest probability.
    """

    number: int
    name: str
    share: float
    labels: str
    picture: Picture


def load_run(phase: Phase, data_dir: str | None) -> tuple[LightningModule, LightningDataModule]:
    """Load the trained model and the data of a phase.

    Raises:
        FileNotFoundError: if the YAML, the teacher or the checkpoint is missing. Exception: any error of the classes
            that the YAML names, for instance if data files are missing.
    """
    config, teacher, checkpoint = phase.config, phase.teacher, phase.checkpoint
    needed = {"YAML (run.yaml or config.yaml)": config, "teacher file": teacher, "last checkpoint": checkpoint}
    missing = [name for name, path in needed.items() if path is None]
    if config is None or teacher is None or checkpoint is None:
        raise FileNotFoundError(f"{phase.folder} has no {' and no '.join(missing)}.")
    with TemporaryDirectory() as folder:
        model, data = build(_moved(config, data_dir, Path(folder)), teacher)
    load_weights(model, checkpoint)
    return model.eval(), data


def _moved(config: Path, data_dir: str | None, folder: Path) -> Path:
    """The YAML, or a copy with another data folder."""
    values = plain_config(config)
    data = values.get("data")
    arguments = data.get("init_args") if isinstance(data, dict) else None
    if data_dir is None or not isinstance(arguments, dict) or "data_dir" not in arguments:
        return config
    arguments["data_dir"] = data_dir
    return write_atomic(folder / "run.yaml", yaml.safe_dump(values))


def _batches(data: LightningDataModule, split: str) -> Iterator[Any]:
    for batch in data.test_dataloader() if split == "test" else data.val_dataloader():
        yield data.on_after_batch_transfer(batch, 0)


@dataclass
class _Rows:
    """Keeps, for each shown component, the rows with its highest probabilities."""

    shown: Tensor
    total: Tensor
    count: int = 0
    best: Tensor = field(default_factory=lambda: torch.empty(0))
    images: Tensor = field(default_factory=lambda: torch.empty(0))
    labels: Tensor | None = None

    def add(self, images: Tensor, probs: Tensor, labels: Tensor | None) -> None:
        self.total, self.count = self.total + probs.sum(dim=0), self.count + len(probs)
        if labels is not None:
            counts = one_hot(probs.argmax(dim=1), probs.shape[1]).T.double() @ labels
            self.labels = counts if self.labels is None else self.labels + counts
        score, place = probs[:, self.shown].T.topk(min(EXAMPLES, len(probs)), dim=1)
        found = images[place]
        if len(self.best):
            score, found = torch.cat([self.best, score], dim=1), torch.cat([self.images, found], dim=1)
        self.best, order = score.topk(min(EXAMPLES, score.shape[1]), dim=1)
        self.images = torch.stack([row[index] for row, index in zip(found, order, strict=True)])


@torch.no_grad()
def components(teacher: Teacher, data: LightningDataModule, split: str) -> list[Component]:
    """The most used components in order, with the held-out rows of highest probability.

    Raises:
        ValueError: if the inputs are not images.
    """
    average = teacher.average if teacher.average is not None else torch.zeros(teacher.num_components)
    most_used = average.argsort(descending=True, stable=True)[:SHOWN].sort().values
    rows = _Rows(most_used, torch.zeros(teacher.num_components, dtype=torch.float64))
    names = getattr(data, "class_names", None)
    for batch in _batches(data, split):
        images, index = inputs_and_index(batch)
        labels = _labels(batch, len(names)) if names else None
        rows.add(_shrunk(images, teacher), teacher(images, index).double(), labels)
    shares = (rows.total / rows.count).tolist()
    return [
        _component(k, _name(teacher, k), shares[k], rows.images[place], _most_frequent(rows.labels, k, names))
        for place, k in enumerate(most_used.tolist())
    ]


def _labels(batch: Any, classes: int) -> Tensor | None:
    label = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    if not isinstance(label, Tensor) or label.dtype != torch.int64 or label.ndim != 1:
        return None
    return one_hot(label, classes).double() if int(label.min()) >= 0 and int(label.max()) < classes else None


def _most_frequent(counts: Tensor | None, component: int, names: Any) -> str:
    if counts is None or float(counts[component].sum()) == 0:
        return ""
    shares, places = (counts[component] / counts[component].sum()).topk(min(2, counts.shape[1]))
    # The first of several synonyms, as in ImageNet.
    found = [
        (str(names[place]).split(",")[0], share) for share, place in zip(shares.tolist(), places.tolist(), strict=True)
    ]
    return ", ".join(f"{name} ({100 * share:.0f}\u00a0%)" for name, share in found if share > 0)


def _name(teacher: Teacher, k: int) -> str:
    return str(k) if teacher.card.names is None else teacher.card.names[k]


def _component(k: int, name: str, share: float, images: Tensor, labels: str) -> Component:
    alt = (
        f"{len(images)} inputs that the teacher is surest belong to component {name}{f'; {labels}' if labels else ''}."
    )
    return Component(k, name, share, labels, _picture(f"Component {name}", alt, images[None]))


def first_inputs(data: LightningDataModule, split: str) -> Tensor:
    """The first batch of a split.

    Raises:
        ValueError: if the split has no batch.
    """
    for batch in _batches(data, split):
        return inputs_and_index(batch)[0]
    raise ValueError("the split holds no row to show.")


@torch.no_grad()
def model_pictures(model: LightningModule, images: Tensor) -> list[Picture]:
    """Reconstructions, samples and traversals of a :class:`certvae.VAE`; deterministic for given weights.

    A coordinate whose traversal changes no pixel visibly is left out. If all are left out, there is no traversal image.

    Raises:
        TypeError: if the model is not a :class:`certvae.VAE`, because its decoding is unknown.
    """
    if not isinstance(model, VAE):
        raise TypeError(f"the model is a {type(model).__name__} and no certvae.VAE, so how it decodes is not known.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        posterior = model(images)
        few, codes = images[:COLUMNS], posterior.mean[:COLUMNS]
        noisy = posterior.sample()[:COLUMNS]
        drawn = model.prior.draws_like(codes.new_zeros(2 * COLUMNS, codes.shape[1]))
    decoded = torch.stack([few, _decode(model, codes), _decode(model, noisy)])
    samples = _decode(model, drawn).unflatten(0, (2, COLUMNS))
    spread = posterior.mean.var(dim=0, correction=0)
    order = spread.argsort(descending=True, stable=True)[:TRAVERSED]
    moved = _traversals(model, codes[0], order)
    seen = _change(moved, model.teacher) >= LEAST_CHANGE
    pictures = [
        _picture(
            "Reconstructions",
            f"First row: the first {len(few)} inputs. Second row: decoded from the mean of their codes. Third row: "
            "decoded from one noisy draw each.",
            decoded,
            model.teacher,
        ),
        _picture(
            "Samples", f"{2 * COLUMNS} images decoded from draws of the prior, not chosen.", samples, model.teacher
        ),
    ]
    if not bool(seen.any()):
        return pictures
    alt = (
        "Each row moves one coordinate from -3 to 3, starting from the code of the first input: of those that differ "
        f"most between inputs, the ones that change the image, numbers "
        f"{', '.join(str(place + 1) for place in order[seen].tolist())}."
    )
    return [*pictures, _picture("Latent traversals", alt, moved[seen], model.teacher)]


def _change(moved: Tensor, teacher: Teacher | None) -> Tensor:
    """Largest change of a pixel in each row, as a share of the value range; shape ``(rows,)``."""
    low, high = (teacher.card.value_range if teacher is not None else None) or (0.0, 1.0)
    pixels = moved.flatten(start_dim=2)
    return (pixels.amax(dim=1) - pixels.amin(dim=1)).amax(dim=1) / (high - low)


def kept_pictures(phase: Phase) -> list[Picture]:
    """The latest images that ``ReconstructionImages`` with ``save_dir`` saved in the fit's folder.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if one is not a PNG, or is a link out of the run's folder.
    """
    found = [(title, phase.own(path)) for title, name in KEPT.items() if (path := phase.folder / name).is_file()]
    if not found:
        raise FileNotFoundError(
            f"{phase.folder} has no pictures: give the run ReconstructionImages(save_dir=...) with this folder."
        )
    return [Picture(title, KEPT_ALT[title], _uri(path), COLUMNS) for title, path in found]


def _uri(path: Path) -> str:
    """The data URI of an image file, re-encoded so that the page contains only its pixels."""
    content = io.BytesIO(read_limited(path, PICTURE_LIMIT, "picture"))
    try:
        with Image.open(content, formats=["PNG"]) as image:
            if max(image.size) > MOST_PIXELS:
                raise ValueError(f"it has {image.size[0]} x {image.size[1]} pixels, more than {MOST_PIXELS} a side")
            pixels = image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be shown as a picture: {error}.") from None
    return _png(pixels)


def _decode(model: VAE, codes: Tensor) -> Tensor:
    return model.reconstruct(codes).float()


def _traversals(model: VAE, code: Tensor, coordinates: Tensor) -> Tensor:
    """Decoded codes in which one coordinate moves, shape ``(coordinates, STEPS, C, H, W)``."""
    moved = code.repeat(len(coordinates), STEPS, 1)
    for row, coordinate in enumerate(coordinates):
        moved[row, :, coordinate] = torch.linspace(-3, 3, STEPS).to(moved)
    return _decode(model, moved.flatten(end_dim=1)).unflatten(0, moved.shape[:2])


def _shrunk(images: Tensor, teacher: Teacher | None = None) -> Tensor:
    """Images as uint8, shrunk to the shown size.

    Raises:
        ValueError: if they are not images.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"inputs of shape {tuple(images.shape[1:])} are no images of one or three channels.")
    low, high = (teacher.card.value_range if teacher is not None else None) or (0.0, 1.0)
    scaled = ((images.float() - low) / (high - low)).clamp(0, 1)
    most = max(scaled.shape[2:])
    if most > MAX_SIDE:
        size = [max(1, round(side * MAX_SIDE / most)) for side in scaled.shape[2:]]
        scaled = interpolate(scaled, size=size, mode="area")
    return (255 * scaled).round().to(torch.uint8)


def _picture(title: str, alt: str, images: Tensor, teacher: Teacher | None = None) -> Picture:
    """A PNG of images of shape ``(rows, columns, C, H, W)``, one pixel apart."""
    rows, columns = images.shape[:2]
    cells = (
        images
        if images.dtype == torch.uint8
        else _shrunk(images.flatten(end_dim=1), teacher).unflatten(0, (rows, columns))
    )
    channels, height, width = cells.shape[2:]
    sheet = torch.full((channels, rows * (height + 1) - 1, columns * (width + 1) - 1), 128, dtype=torch.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + 1), column * (width + 1)
            sheet[:, top : top + height, left : left + width] = cells[row, column]
    pixels = sheet.permute(1, 2, 0).numpy()
    return Picture(title, alt, _png(Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)), columns)


def _png(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, format="png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
