"""The card of a teacher: its description, its data and its measurements."""

import math
from dataclasses import asdict, dataclass
from reprlib import repr as short
from typing import Any

from certvae.theory.arguments import as_fraction, as_number, as_whole_number

__all__ = ["TeacherCard"]

MOST_COMPONENTS = 2**15  # the sums of a certificate have K^2 numbers, 8 GiB at this K
TEXT_LIMIT = 2000  # characters of the card's texts
NAME_LIMIT, NAMES_LIMIT = 100, 2**18  # characters of a name, and of all names, which must fit in a certificate


@dataclass(frozen=True)
class TeacherCard:
    """Description of a teacher, stored in its file: settings, data and measurements.

    Attributes:
        num_components: K.
        temperature: divisor of the log-posteriors; higher is softer.
        floor: every probability is at least ``floor / K``.
        seed: seed of the search; None without a search.
        image_shape: shape of one input, without the batch axis; None: any.
        value_range: smallest and largest allowed input value; None: any.
        fingerprint: digest of the data set that the teacher was made from; None: any.
        information_train: teacher information on training rows, nats; None until measured.
        information_held_out: teacher information on held-out rows, nats.
        energy: mean energy of the inverse code at witness scale 1 with the average as prior, nats. Divide by the
            square of the scale.
        largest_eigenvalue: of the data's covariance. In the linear theory a plain VAE with ``beta * s2`` above it
            collapses fully (Lucas et al., 2019, https://arxiv.org/abs/1911.02469).
        choice: one sentence on why the search chose this teacher.
        ignore: label of rows without a class, which get weight 0; None: every row counts.
        names: of the K components, each printable text of 1 to 100 characters, 262,144 characters in total; None: no
            names.

    Raises:
        TypeError: if a value has the wrong type.
        ValueError: if ``num_components`` is not from 2 to 32,768, ``temperature`` not from 1e-6 to 1e6 or ``floor`` not
            in [0, 1), or if another value is impossible.
    """

    num_components: int
    temperature: float = 1.0
    floor: float = 0.0
    seed: int | None = None
    image_shape: tuple[int, ...] | None = None
    value_range: tuple[float, float] | None = None
    fingerprint: str | None = None
    information_train: float | None = None
    information_held_out: float | None = None
    energy: float | None = None
    largest_eigenvalue: float | None = None
    choice: str | None = None
    names: tuple[str, ...] | None = None
    ignore: int | None = None

    def __post_init__(self) -> None:
        as_whole_number(self.num_components, "num_components", 2, MOST_COMPONENTS)
        if not 1e-6 <= as_number(self.temperature, "temperature") <= 1e6:
            raise ValueError(f"`temperature` must be positive, from 1e-6 to 1e6, got {self.temperature}.")
        as_fraction(self.floor, "floor")
        if self.seed is not None:
            as_whole_number(self.seed, "seed", -(2**63), 2**64)
        for name in ("information_train", "information_held_out"):
            _check_nats(getattr(self, name), name, math.log(self.num_components) + 1e-6)
        for name in ("energy", "largest_eigenvalue"):
            _check_nats(getattr(self, name), name, 1e12)
        self._check_inputs()
        if self.names is not None:
            check_names(self.names, self.num_components)
        self._check_ignore()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a file. Newer fields are written only if used, so older files do not change."""
        new = ("names", "ignore")
        return {key: value for key, value in asdict(self).items() if value is not None or key not in new}

    def naming(self) -> dict[str, list[str]]:
        """The component names as an entry for a certificate's provenance; empty without names."""
        return {} if self.names is None else {"component_names": list(self.names)}

    def _check_ignore(self) -> None:
        if self.ignore is None:
            return
        if 0 <= as_whole_number(self.ignore, "ignore", -(2**63), 2**63) < self.num_components:
            raise ValueError(
                f"`ignore` must not be a class label: below 0, or at least {self.num_components}, got {self.ignore}."
            )

    def _check_inputs(self) -> None:
        shape, values = self.image_shape, self.value_range
        if shape is not None:
            if not isinstance(shape, tuple) or not 1 <= len(shape) <= 8:
                raise ValueError(f"`image_shape` must hold 1 to 8 sizes, got {shape!r}.")
            for size in shape:
                as_whole_number(size, "image_shape", 1)
        if values is not None:
            if not isinstance(values, tuple) or len(values) != 2:
                raise ValueError(f"`value_range` must be the smallest and the largest value, got {values!r}.")
            low, high = (as_number(value, "value_range") for value in values)
            if not -1e12 <= low < high <= 1e12:
                raise ValueError(f"`value_range` must be two growing values of at most 1e12, got {low}, {high}.")
        for name in ("fingerprint", "choice"):
            text = getattr(self, name)
            if text is not None and not (isinstance(text, str) and text.isprintable() and len(text) <= TEXT_LIMIT):
                raise ValueError(f"`{name}` must be printable text of at most {TEXT_LIMIT} characters.")


def check_names(names: object, num_components: int) -> None:
    """Check the names of a teacher's components.

    Raises:
        TypeError: if they are not a tuple of text.
        ValueError: if their number is not K, a name is not printable text of 1 to 100 characters, or all names together
            are too long.
    """
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise TypeError("`names` must be a tuple of text, one for each component.")
    if len(names) != num_components:
        raise ValueError(f"`names` must hold {num_components} names, one for each component, got {len(names)}.")
    for name in names:
        if not (name.isprintable() and 1 <= len(name) <= NAME_LIMIT):
            raise ValueError(f"`names` must be printable text of 1 to {NAME_LIMIT} characters, got {short(name)}.")
    if sum(map(len, names)) > NAMES_LIMIT:
        raise ValueError(f"`names` may have {NAMES_LIMIT:,} characters in all, got {sum(map(len, names)):,}.")


def _check_nats(value: float | None, name: str, most: float) -> None:
    if value is not None and not -1e-6 <= as_number(value, name) <= most:
        raise ValueError(f"`{name}` must be at least 0 and at most {most:.4g}, got {value}.")
