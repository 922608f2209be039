"""The teacher's card and the images of a report, with a reason for everything that is left out."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

from certvae.report import images
from certvae.report.figures import Chart, use_chart
from certvae.report.runs import Phase, Run
from certvae.report.wording import MINUS
from certvae.teachers import Teacher, load_teacher

__all__ = ["Gallery"]

T = TypeVar("T")
LONGEST = 400  # characters of a reason


class Gallery:
    """Teacher card and images of a run; items that cannot be made are left out with a reason.

    Args:
        run: the run; images are made for its first seed.
        data_dir: data folder, instead of the YAMLs' values.
        with_images: whether to build model and data, which runs the classes that the YAML names.

    Attributes:
        rows: name of the rows.
        card: names and values on the teacher's card.
        use: figure of the use of components, or None.
        components: components with example images.
        models: images of each phase.
        without_card: sentences on items left out of the teacher's card.
        without_images: sentences on left-out images.
    """

    def __init__(self, run: Run, data_dir: str | None, with_images: bool) -> None:
        self.run = run
        self.without_card: list[str] = []
        self.without_images: list[str] = []
        self.card: list[tuple[str, str]] = []
        self.use: Chart | None = None
        self.components: list[images.Component] = []
        self.models: list[tuple[Phase, list[images.Picture]]] = []
        self.rows = "held-out" if run.phases[0].split == "test" else "validation"
        teacher = self._try(self.without_card, "The teacher card", self._teacher)
        if teacher is not None:
            self._describe(teacher)
        if with_images:
            for phase in run.shown:
                self._add_model(phase, data_dir, teacher)
                if not any(shown is phase for shown, _ in self.models):
                    self._add_kept(phase)
        else:
            self.without_images.append("Images are left out: they were not requested.")

    def _try(self, reasons: list[str], what: str, make: Callable[..., T], *args: Any) -> T | None:
        """The result of ``make``; if it fails for any reason, the reason is recorded."""
        try:
            return make(*args)
        except (Exception, SystemExit) as error:  # Lightning's parser exits if a YAML does not fit
            lines = str(error).strip().splitlines()
            reason = "the YAML does not fit" if isinstance(error, SystemExit) else (lines or [type(error).__name__])[0]
            reasons.append(f"{what} could not be made: {reason[:LONGEST]}")
            return None

    def _teacher(self) -> Teacher:
        found = [phase.teacher for phase in self.run.shown if phase.teacher is not None]
        if not found:
            raise FileNotFoundError(f"{self.run.folder} has no teacher file, and no YAML that names one that is there.")
        return load_teacher(found[0])

    def _describe(self, teacher: Teacher) -> None:
        card = asdict(teacher.card)
        seeds = {phase.seed for phase in self.run.phases}
        self.card = [("shown is the teacher of seed", self.run.phases[0].seed)] if len(seeds) > 1 else []
        self.card += [("kind", teacher.kind.replace("_", " "))]
        self.card += [(title, _plain(card[name])) for name, title in CARD.items() if card[name] is not None]
        self.card += self._energy(card["energy"])
        if teacher.average is not None:
            self.use = use_chart(teacher.average.tolist())

    def _add_kept(self, phase: Phase) -> None:
        """Add images that the run has saved, instead of the reason why none could be made."""
        unmade: list[str] = []
        pictures = self._try(unmade, f"The images of {phase.label}", images.kept_pictures, phase)
        if pictures:
            self.without_images = [reason for reason in self.without_images if f" of {phase.label} " not in reason]
            self.models.append((phase, pictures))

    def _energy(self, energy: float | None) -> list[tuple[str, str]]:
        """The energy at the scale of the run's witness, as in the criteria of a search."""
        scale = self.run.phases[0].certificate.provenance.get("witness_scale")
        if energy is None or isinstance(scale, bool) or not isinstance(scale, int | float) or not 1e-6 < scale < 1e6:
            return []
        return [(f"energy at witness scale {scale:g} (nats)", _plain(energy / scale**2))]

    def _add_model(self, phase: Phase, data_dir: str | None, teacher: Teacher | None) -> None:
        what = f"The images of {phase.label}"
        loaded = self._try(self.without_images, what, images.load_run, phase, data_dir)
        if loaded is None:
            return
        model, data = loaded
        if teacher is not None and not self.components:
            found = self._try(
                self.without_card, "The examples of components", images.components, teacher, data, phase.split
            )
            self.components = found or []
        inputs = self._try(self.without_images, what, images.first_inputs, data, phase.split)
        pictures = (
            None if inputs is None else self._try(self.without_images, what, images.model_pictures, model, inputs)
        )
        if pictures is not None:
            self.models.append((phase, pictures))
            if len(pictures) < images.ALL_PICTURES:
                self.without_images.append(
                    f"Latent traversals of {phase.label} are left out: no coordinate changes the image visibly."
                )


CARD = {
    "num_components": "components K",
    "information_train": "information on training rows (nats)",
    "information_held_out": "information on held-out rows (nats)",
    "temperature": "temperature",
    "floor": "probability floor",
    "largest_eigenvalue": "largest eigenvalue of the data's covariance",
    "seed": "seed of the search",
    "image_shape": "input shape",
    "value_range": "input values",
    "choice": "why it was chosen",
    "fingerprint": "fingerprint of its data",
}


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", MINUS)
    if isinstance(value, tuple):
        return " x ".join(f"{item:g}" for item in value) if all(isinstance(i, int) for i in value) else str(list(value))
    return str(value)
