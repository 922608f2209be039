"""Make the shipped teachers in ``certvae/teachers/shipped_files``; about 5 min on 2 CPU cores.

    python -m experiments.teachers --data_dir data
    python -m experiments.teachers cifar100 --data_dir data --output_dir runs/teachers

Each teacher is searched with the YAML of its data set's protocol. Its principal components are then rounded to 16 bits
for a small file, and its card is measured again.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from pytorch_lightning.cli import LightningCLI

from certvae.commands.lightning import run_lightning
from certvae.teachers import GaussianMixtureTeacher
from certvae.teachers.mixture import LARGE
from certvae.teachers.shipped import FOLDER

__all__ = ["make"]

EXPERIMENTS = Path(__file__).parent
OPTIONS: dict[str, list[str]] = {"cifar100": [], "tiny_imagenet": ["--model.pca_dim=16"]}


def make(name: str, data_dir: str, folder: Path) -> Path:
    """Search a teacher and write it.

    Args:
        name: name of a folder in ``experiments`` with a ``search.yaml``.
        data_dir: data folder.
        folder: folder of ``<name>.safetensors``; the search writes its table below it.

    Returns:
        The path of the file.
    """
    search = folder / f"{name}_search"
    quiet = ["--trainer.logger=false", "--trainer.callbacks=[]", f"--trainer.default_root_dir={search}"]
    place = [f"--data.data_dir={data_dir}", f"--model.output_dir={search}"]
    cli = run_lightning(["fit", "--config", str(EXPERIMENTS / name / "search.yaml"), *OPTIONS[name], *quiet, *place])
    return rounded(cli.model.teacher, cli).save(folder / f"{name}.safetensors")


def rounded(teacher: GaussianMixtureTeacher, cli: LightningCLI) -> GaussianMixtureTeacher:
    """The teacher with principal components rounded to 16 bits, measured on the search's rows."""
    parts = {key: value.half() if key in LARGE else value for key, value in teacher.tensors().items()}
    data, seen = cli.datamodule, len(cli.datamodule.splits["train"])
    # A fingerprint of a part of Tiny-ImageNet-200 would make the teacher refuse the whole set.
    whole = seen == data.num_classes * 500
    made_from = f"Searched on {seen:,} training images of {type(data).__name__.removesuffix('DataModule')}"
    choice = f"{made_from}{'' if whole else ', a part of the set'}. {teacher.card.choice}"
    card = replace(teacher.card, choice=choice, fingerprint=teacher.card.fingerprint if whole else None)
    made = GaussianMixtureTeacher(card, **parts).measure(data.loader("train"))
    held_out = GaussianMixtureTeacher(card, **parts).measure(data.loader("val")).card.information_train
    made.card = replace(made.card, information_held_out=held_out)
    return made


def main() -> None:
    """Make the named teachers, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(OPTIONS)}; default: all")
    parser.add_argument("--data_dir", default="data", help="where the data sets are")
    parser.add_argument("--output_dir", type=Path, default=FOLDER)
    given = parser.parse_args()
    for name in given.names or OPTIONS:
        print(make(name, given.data_dir, given.output_dir))


if __name__ == "__main__":
    main()
