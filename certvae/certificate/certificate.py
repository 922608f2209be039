"""The certificate: its numbers, its status, and its file."""

import hashlib
import json
import math
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from reprlib import repr as short
from typing import TYPE_CHECKING, Any

from certvae.certificate.components import component_names, components_line
from certvae.certificate.diagnosis import Diagnosis, diagnose, read
from certvae.certificate.fitted_margin import FittedMargin
from certvae.certificate.html import certificate_html
from certvae.certificate.status import Reading, Status
from certvae.io.files import write_atomic
from certvae.io.untrusted import parse_json, read_limited
from certvae.theory.bracket import InformationBracket
from certvae.theory.sums import ComponentMargin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Certificate", "Reading", "Status", "check_fields", "digest"]

SCHEMA, FIRST_SCHEMA = "certvae.certificate/2", "certvae.certificate/1"
CERTIFICATE_LIMIT = 2**22  # bytes; enough for a calibration prior of 100,000 components


@dataclass  # not frozen: torchmetrics copies what `compute` returns field by field
class Certificate:
    """The numbers measured on one set of rows, with verdict and reading. Values are in nats.

    Attributes:
        status: the verdict on the raw witness; see :class:`Status`.
        reading: whether the code carries any information; see :class:`Reading`.
        teacher_information: ``I_T``, the cost of the best constant student; the threshold.
        alignment_loss: ``A``, the cost of the raw witness on the mean path.
        margin: ``I_T - A``. At most the information that the mean code carries about the input.
        margin_lower: lower bound on the population's margin at ``confidence`` by ``method``.
        safety_margin: what ``margin_lower`` must exceed.
        confidence: probability with which ``margin_lower`` holds.
        method: name of the bound.
        p_value: of the permutation test for 'the witness is independent of the input'; None if not made.
        channel_margin: the margin on draws ``z ~ q(z|x)``, which the decoder receives, averaged over draws.
        channel_margin_lower: lower bound on it.
        calibrated_channel_margin: the same for the calibrated witness, whose scale and prior weight were fitted on
            other rows.
        calibrated_channel_margin_lower: lower bound on it.
        rate: ``E KL(q(z|x) || p(z))``; an upper bound on the channel margin of a valid witness.
        witness_information: ``H(Sbar) - E H(S)``; near 0 in the constant-student regime.
        num_samples: number of rows with positive weight.
        num_components: K.
        teacher_floor: every teacher probability is at least ``teacher_floor / K``.
        witness_floor: share of the uniform distribution that was mixed into the witness.
        look: number of this look, if the error is spent over looks; ``confidence`` is then that of the whole run.
        leaks: findings of the leak tests; empty for a valid witness. See :mod:`certvae.certificate.leaks`.
        provenance: what was measured and with which versions; includes ``component_names`` if the teacher has names.
        components: each component's part of margin and teacher information; empty for more than 4,096 components, and
            in files of the first schema.
        information: bounds on the information that the code carries, without a teacher; None if the code has no
            variance.
        fitted: margins of a reader that was fitted to the code on other rows; None if it was not fitted.
        escape_force: mean gradient norm of a row's alignment loss at its mean code, nats per unit of the code; None if
            codes are not available, or the witness has no closed form. See :mod:`certvae.theory.escape`.
    """

    status: Status
    reading: Reading
    teacher_information: float
    alignment_loss: float
    margin: float
    margin_lower: float
    safety_margin: float
    confidence: float
    method: str
    p_value: float | None
    channel_margin: float | None
    channel_margin_lower: float | None
    calibrated_channel_margin: float | None
    calibrated_channel_margin_lower: float | None
    rate: float | None
    witness_information: float
    num_samples: int
    num_components: int
    teacher_floor: float = 0.0
    witness_floor: float = 0.0
    look: int | None = None
    leaks: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    components: list[ComponentMargin] = field(default_factory=list)
    information: InformationBracket | None = None
    fitted: FittedMargin | None = None
    escape_force: float | None = None

    @property
    def certified(self) -> bool:
        """Whether the status is ``CERTIFIED``."""
        return self.status is Status.CERTIFIED

    @property
    def informative(self) -> bool:
        """Whether the code is shown to carry information: the reading is ``ALIGNED`` or ``INFORMATIVE``."""
        return self.reading in (Reading.ALIGNED, Reading.INFORMATIVE)

    @property
    def collapsed(self) -> bool:
        """Whether the reading is ``COLLAPSED``."""
        return self.reading is Reading.COLLAPSED

    @property
    def information_lower(self) -> float | None:
        """Lower bound on the information that a draw of the code carries, in nats."""
        return None if self.information is None else self.information.lower

    @property
    def information_upper(self) -> float | None:
        """Upper bound on the information that a draw of the code carries, in nats; None if there is no bound."""
        return None if self.information is None or self.information.upper == math.inf else self.information.upper

    @property
    def fitted_margin(self) -> float | None:
        """Margin of the fitted reader in nats; on draws if the code has a variance."""
        if self.fitted is None:
            return None
        return self.fitted.mean if self.fitted.draw is None else self.fitted.draw

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; an infinite bound becomes None."""
        values = {"schema": SCHEMA, **asdict(self), "status": str(self.status), "reading": str(self.reading)}
        return {key: _plain(value) for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Certificate":
        """The certificate from the output of :meth:`to_dict`.

        Raises:
            ValueError: if the schema is unknown, or a field is missing or unknown.
        """
        if not isinstance(values, dict):
            raise ValueError(f"a certificate must be a JSON object, got {short(values)}.")
        schema, given = values.get("schema"), {key: value for key, value in values.items() if key != "schema"}
        if schema not in (SCHEMA, FIRST_SCHEMA):
            raise ValueError(f"`schema` must be {SCHEMA!r} or {FIRST_SCHEMA!r}, got {short(schema)}.")
        if schema == FIRST_SCHEMA:
            given = _ADDED | given
        names = {item.name for item in fields(cls)}
        if set(given) != names:
            raise ValueError(
                f"a certificate must have exactly its fields; missing {short(sorted(names - set(given)))}, "
                f"unknown {short(sorted(set(given) - names))}."
            )
        for name in ("margin_lower", "channel_margin_lower", "calibrated_channel_margin_lower"):
            if given[name] is None and given[name.removesuffix("_lower")] is not None:
                given[name] = -math.inf
        for name, kind in (("status", Status), ("reading", Reading)):
            if given[name] not in list(kind):
                raise ValueError(f"`{name}` must be one of {', '.join(kind)}, got {short(given[name])}.")
            given[name] = kind(given[name])
        certificate = cls(**given | _parts(given))
        return replace(certificate, reading=read(certificate)) if schema == FIRST_SCHEMA else certificate

    def save(self, path: str | Path) -> Path:
        """Write the certificate as JSON, atomically."""
        values = self.to_dict()
        return write_atomic(path, json.dumps({**values, "sha256": digest(values)}, indent=2, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Certificate":
        """Read a certificate from JSON.

        Raises:
            FileNotFoundError: if there is no such regular file.
            ValueError: if the file is not a certificate with a known schema, a field has the wrong type, or the file
                was altered since it was saved.
            OSError: if the file cannot be read.
        """
        content = read_limited(path, CERTIFICATE_LIMIT, "certificate")
        try:
            values = parse_json(content)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON of a certificate: {error}.") from None
        stated = values.pop("sha256", None) if isinstance(values, dict) else None
        try:
            certificate = cls.from_dict(values)
            check_fields(certificate)
        except ValueError as error:
            raise ValueError(f"{path} is no certificate: {error}") from None
        if stated != digest(values):
            raise ValueError(f"{path} was altered since it was saved: its digest does not fit its contents.")
        return certificate

    def __str__(self) -> str:
        lines = [f"{self.status}: {self.status.meaning}.", f"{self.reading}: {self.reading.meaning}."]
        lines += [f"  {name:<20} {said}" for name, said in self.lines()]
        lines += [f"  leak: {finding}" for finding in self.leaks]
        lines.append(f"  {self.num_samples} rows, {self.num_components} components")
        return "\n".join(lines)

    def lines(self) -> list[tuple[str, str]]:
        """Name and formatted value of each number that is not None."""
        bound = f"{self._bound_text()}; must exceed {self.safety_margin:g}"
        numbers = [
            ("margin", self.margin, f"   ({bound})"),
            ("teacher information", self.teacher_information, "   (the threshold: best constant student)"),
            ("alignment loss", self.alignment_loss, ""),
            ("witness information", self.witness_information, ""),
            ("channel margin", self.channel_margin, "   (on draws of the latent)"),
            ("... calibrated", self.calibrated_channel_margin, "   (scale fitted on other rows)"),
            ("rate", self.rate, ""),
        ]
        said = [(name, f"{value:8.4f} nats{note}") for name, value, note in numbers if value is not None]
        if self.information is not None:
            said.append(("information", self.information.span()))
        if self.fitted is not None:
            said.append(("fitted reader", self.fitted.line()))
        if self.escape_force is not None:
            said.append(("escape force", f"{self.escape_force:8.4f} nats   (for each unit of the code)"))
        if self.components:
            said.append(("components", components_line(self)))
        if self.p_value is not None:
            said.append(("permutation p-value", f"{self.p_value:8.2g}"))
        return said

    def _repr_html_(self) -> str:
        """The certificate and its diagnosis in a notebook."""
        return certificate_html(self)

    def plot(self, ax: "Axes | None" = None) -> "tuple[Figure, Axes]":
        """Plot the margins with their lower bounds, the code's information and the teacher information.

        Args:
            ax: axes to draw in; default: a new figure.
        """
        from certvae.certificate.figures import bounds_figure, shown_axes

        return bounds_figure(self, shown_axes() if ax is None else ax)

    @property
    def component_names(self) -> list[str]:
        """A name for each component: the teacher's, else ``component 3`` or ``class 3``, numbered from 0."""
        return component_names(self)

    def diagnose(self) -> Diagnosis:
        """Explain the numbers: the reading, the cause and the remedy."""
        return diagnose(self)

    def line(self, where: str = "") -> str:
        """Reading and verdict in one line.

        Example: ``ALIGNED, CERTIFIED (margin 0.767 nats, at least 0.750 at 95 %, betting; ...)``.

        Args:
            where: text before the margin, such as ``"val "``.
        """
        margin = f"{where}margin {self.margin:.3f} nats"
        if self.status is Status.PARTIAL:
            said = f"{self._missing()}; {margin}"
        elif self.status is Status.LEAKING:
            said = f"{margin}; {'; '.join(self.leaks)}"
        else:
            said = f"{margin}, {self._bound_text(3)}; teacher information {self.teacher_information:.3f}"
        if self.information is not None:
            said += f"; the code carries {self.information.span()}"
        return f"{self.reading}, {self.status} ({said})"

    def _missing(self) -> str:
        counts = [
            f"{self.provenance[f'{what}_seen']} of {self.provenance[f'{what}_planned']} {what}"
            for what in ("batches", "rows")
            if self.provenance.get(f"{what}_planned") is not None
        ]
        return f"only {', '.join(counts)}" if counts else "only a part of the set"

    def _bound_text(self, digits: int = 4) -> str:
        if self.method == "plugin":
            return "exact for these rows"
        if self.margin_lower == -math.inf:
            return f"undecided: {self.num_samples} rows are too few for the bound {self.method!r}"
        look = "" if self.look is None else f", look {self.look}"
        return f"at least {self.margin_lower:.{digits}f} at {100 * self.confidence:.4g} %, {self.method}{look}"


_ADDED: dict[str, Any] = {  # by schema 2
    "reading": "UNDECIDED",
    "components": [],
    "information": None,
    "fitted": None,
    "escape_force": None,
}


def _plain(value: Any) -> Any:
    """The value for JSON; an infinite bound becomes None."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isinf(value) else value


def _parts(given: dict[str, Any]) -> dict[str, Any]:
    """Convert the nested fields of a certificate: components, information and fitted.

    Raises:
        ValueError: if a nested field is missing or unknown, or a value has the wrong type.
    """
    listed = given["components"]
    if not isinstance(listed, list):
        raise ValueError(f"`components` must be a list, got {short(listed)}.")
    unbounded = {"lower": -math.inf, "upper": math.inf, "rows_upper": math.inf, "upper_estimate": math.inf}
    return {
        "components": [_part(ComponentMargin, "components", value, {}) for value in listed],
        "information": _part(InformationBracket, "information", given["information"], unbounded),
        "fitted": _part(FittedMargin, "fitted", given["fitted"], {"lower": -math.inf}),
    }


def _part(cls: type[Any], name: str, value: Any, unbounded: dict[str, float]) -> Any:
    if value is None and name != "components":
        return None
    kinds = {item.name: getattr(item.type, "__name__", str(item.type)) for item in fields(cls)}
    if not isinstance(value, dict) or set(value) != set(kinds):
        raise ValueError(f"`{name}` must hold exactly {', '.join(kinds)}, got {short(value)}.")
    filled = {key: unbounded.get(key) if item is None else item for key, item in value.items()}
    for key, item in filled.items():
        if not _fits(item, kinds[key], key in unbounded):
            raise ValueError(f"`{name}` holds {short(item)} as {key!r}, which has the wrong type.")
    return cls(**filled)


def _fits(value: Any, kind: str, unbounded: bool) -> bool:
    if value is None:
        return "None" in kind
    if isinstance(value, bool) or kind == "bool":
        return isinstance(value, bool) and kind == "bool"
    if kind == "str":
        return isinstance(value, str) and value.isprintable() and len(value) < 100
    if kind == "int":
        return isinstance(value, int) and 0 <= value <= 10**18
    return isinstance(value, int | float) and (unbounded or abs(value) <= sys.float_info.max)


_KINDS: dict[str, type] = {
    "status": Status,
    "reading": Reading,
    "components": list,
    "information": InformationBracket,
    "fitted": FittedMargin,
    "method": str,
    "num_samples": int,
    "num_components": int,
    "look": int,
    "leaks": list,
    "provenance": dict,
}
_OPTIONAL = {
    "p_value",
    "channel_margin",
    "channel_margin_lower",
    "calibrated_channel_margin",
    "calibrated_channel_margin_lower",
    "rate",
    "look",
    "information",
    "fitted",
    "escape_force",
}


def check_fields(certificate: Certificate) -> None:
    """Check the type of every field, because JSON may contain any value.

    Raises:
        ValueError: if a field has the wrong type. The message names the field.
    """
    for name, value in vars(certificate).items():
        kind = _KINDS.get(name)
        optional = value is None and name in _OPTIONAL
        fits = _is_finite(name, value) if kind is None else isinstance(value, kind) and not isinstance(value, bool)
        if not (fits or optional):
            raise ValueError(f"`{name}` is {short(value)}, which has the wrong type.")
    c = certificate
    if not (2 <= c.num_components <= 10**9 and 0 <= c.num_samples <= 10**18 and abs(c.look or 1) <= 10**18):
        raise ValueError("`num_components`, `num_samples` or `look` is out of range.")
    if not all(isinstance(text, str) and text.isprintable() for text in [c.method, *c.leaks]):
        raise ValueError("`method` and `leaks` must be printable text.")
    component_names(c)


def _is_finite(name: str, value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    unbounded = name.endswith("_lower") and value == -math.inf
    return number and (unbounded or abs(value) <= sys.float_info.max)


def digest(values: dict[str, Any]) -> str:
    """SHA-256 of a certificate's values, to detect an altered file."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()
