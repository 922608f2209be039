"""The certificate: its numbers, its verdict, its file, and :func:`certify`, which makes one from arrays."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch

from certvae.bounds import check_method, lower_bound
from certvae.files import write_atomic
from certvae.information import as_logits, as_probabilities, floor_log_probabilities
from certvae.permutation import permutation_p_value
from certvae.sums import CertificateSums

__all__ = ["Certificate", "CertificateSettings", "Status", "certify"]

SCHEMA = "certvae.certificate/1"
LEAK_LEVEL = 1e-4  # one-sided error probability of calling a sound witness leaking


class Status(StrEnum):
    """Verdict of a certificate.

    ``NOT_CERTIFIED`` is never 'proved collapsed': the test is one-sided.
    """

    CERTIFIED = "CERTIFIED"
    NOT_CERTIFIED = "NOT_CERTIFIED"
    VACUOUS = "VACUOUS"
    LEAKING = "LEAKING"
    PARTIAL = "PARTIAL"


_MEANING = {
    Status.CERTIFIED: "the latent code is not constant in the input",
    Status.NOT_CERTIFIED: "not shown to differ from a constant code (which does not prove collapse)",
    Status.VACUOUS: "the teacher varies too little to certify anything",
    Status.LEAKING: "the witness claims more than the latent channel can carry: it sees more than the latent",
    Status.PARTIAL: "only a part of the set was seen, so there is no verdict",
}


@dataclass(frozen=True)
class CertificateSettings:
    """How numbers become a verdict.

    Args:
        safety_margin: nats by which the lower bound must exceed the threshold, at least 0.
        confidence: probability with which the lower bound holds, in ``(0, 1)``.
        method: ``"plugin"``, ``"normal"``, ``"hoeffding"`` or ``"bernstein"``; see :mod:`certvae.bounds`.
        teacher_floor: every teacher probability is at least ``teacher_floor / K``, by construction.
        witness_floor: share of the uniform distribution mixed into the witness. Default: 1e-3 for the rigorous
            methods, which need it, else 0.

    Raises:
        ValueError: if an argument is out of its range, or a rigorous method lacks its floors.
    """

    safety_margin: float = 0.05
    confidence: float = 0.95
    method: str = "normal"
    teacher_floor: float = 0.0
    witness_floor: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.safety_margin) and self.safety_margin >= 0):
            raise ValueError(f"`safety_margin` must be at least 0 nats, got {self.safety_margin}.")
        if not 0 < self.confidence < 1:
            raise ValueError(f"`confidence` must be between 0 and 1, such as 0.95, got {self.confidence}.")
        if self.witness_floor is None:
            object.__setattr__(self, "witness_floor", 1e-3 if self.method in ("hoeffding", "bernstein") else 0.0)
        for name in ("teacher_floor", "witness_floor"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 0 and below 1, got {getattr(self, name)}.")
        check_method(self.method, self.teacher_floor, self.applied_floor)

    @property
    def applied_floor(self) -> float:
        """The witness floor as a number."""
        return self.witness_floor or 0.0


@dataclass  # not frozen: torchmetrics copies what `compute` returns field by field
class Certificate:
    """What was measured on one set of rows, and what follows. Values are in nats.

    Attributes:
        status: the verdict.
        teacher_information: ``I_T``, the cost of the best constant student; the threshold.
        alignment_loss: ``A``, the cost of the raw witness on the mean path.
        margin: ``I_T - A``. At most the information that the mean code carries about the input.
        margin_lower: lower bound on the population's margin at ``confidence`` by ``method``.
        safety_margin: what ``margin_lower`` must exceed.
        confidence: probability with which ``margin_lower`` holds.
        method: name of the bound.
        p_value: of the permutation test for 'the witness is independent of the input', if it was made.
        channel_margin: the margin on draws ``z ~ q(z|x)``, averaged over draws; what the decoder receives.
        channel_margin_lower: its lower bound.
        rate: ``E KL(q(z|x) || p(z))``; an upper bound on the channel margin of a sound witness.
        witness_information: ``H(Sbar) - E H(S)``; near 0 in the constant-student regime.
        num_samples: rows counted.
        num_components: K.
        teacher_floor: promised floor of the teacher.
        witness_floor: floor mixed into the witness.
        provenance: what was measured, with which versions.
    """

    status: Status
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
    rate: float | None
    witness_information: float
    num_samples: int
    num_components: int
    teacher_floor: float = 0.0
    witness_floor: float = 0.0
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def certified(self) -> bool:
        """Whether the status is ``CERTIFIED``."""
        return self.status is Status.CERTIFIED

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; a bound of minus infinity becomes None."""
        values = {"schema": SCHEMA, **asdict(self), "status": str(self.status)}
        return {key: None if value == -math.inf else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Certificate":
        """Read back what :meth:`to_dict` gave.

        Raises:
            ValueError: if the schema is another, or a field is missing or unknown.
        """
        if values.get("schema") != SCHEMA:
            raise ValueError(f"`schema` must be {SCHEMA!r}, got {values.get('schema')!r}.")
        given = {key: value for key, value in values.items() if key != "schema"}
        names = {item.name for item in fields(cls)}
        if set(given) != names:
            raise ValueError(
                f"a certificate must have exactly its fields; missing {sorted(names - set(given))}, "
                f"unknown {sorted(set(given) - names)}."
            )
        for name in ("margin", "margin_lower", "channel_margin_lower"):
            if given[name] is None and (name != "channel_margin_lower" or given["channel_margin"] is not None):
                given[name] = -math.inf
        return cls(**{**given, "status": Status(given["status"])})

    def save(self, path: str | Path) -> Path:
        """Write the certificate as JSON, atomically."""
        return write_atomic(path, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Certificate":
        """Read a certificate from JSON.

        Raises:
            ValueError: if the file is not a certificate of this schema.
        """
        try:
            values = json.loads(Path(path).read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}.") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path} does not hold a certificate: expected a JSON object.")
        return cls.from_dict(values)

    def __str__(self) -> str:
        lines = [
            f"{self.status}: {_MEANING[self.status]}.",
            f"  margin               {self.margin:8.4f} nats   "
            f"({self._bound_text()}; must exceed {self.safety_margin:g})",
            f"  teacher information  {self.teacher_information:8.4f} nats   (the threshold: best constant student)",
            f"  alignment loss       {self.alignment_loss:8.4f} nats",
            f"  witness information  {self.witness_information:8.4f} nats",
        ]
        if self.channel_margin is not None:
            lines.append(f"  channel margin       {self.channel_margin:8.4f} nats   (on draws of the latent)")
        if self.rate is not None:
            lines.append(f"  rate                 {self.rate:8.4f} nats")
        if self.p_value is not None:
            lines.append(f"  permutation p-value  {self.p_value:8.2g}")
        lines.append(f"  {self.num_samples} rows, {self.num_components} components")
        return "\n".join(lines)

    def _bound_text(self) -> str:
        if self.method == "plugin":
            return "exact for these rows"
        return f"at least {self.margin_lower:.4f} at {self.confidence:.4g} confidence, {self.method}"


def certificate_from_sums(
    sums: CertificateSums,
    settings: CertificateSettings,
    *,
    partial: bool = False,
    p_value: float | None = None,
    provenance: dict[str, Any] | None = None,
) -> Certificate:
    """Turn additive sums into a certificate.

    Args:
        sums: see :class:`certvae.sums.CertificateSums`.
        settings: how numbers become a verdict.
        partial: whether the set was cut short.
        p_value: of a permutation test made on the rows.
        provenance: what was measured.

    Raises:
        ValueError: if no row was counted, or a rigorous method got unequal weights.
    """
    if sums.num_rows == 0:
        raise ValueError("a certificate needs at least one row with positive weight, got none.")
    if settings.method in ("hoeffding", "bernstein") and not sums.equal_weights:
        raise ValueError(f"`method={settings.method!r}` needs weights that are 0 or one common value.")
    information = sums.teacher_information()
    margin, lower = _margin_and_bound(sums, settings, "mean")
    channel = _margin_and_bound(sums, settings, "channel") if sums.has("channel") else (None, None)
    certificate = Certificate(
        status=Status.PARTIAL,
        teacher_information=information,
        alignment_loss=information - margin,
        margin=margin,
        margin_lower=lower,
        safety_margin=settings.safety_margin,
        confidence=settings.confidence,
        method=settings.method,
        p_value=p_value,
        channel_margin=channel[0],
        channel_margin_lower=channel[1],
        rate=sums.mean(sums.rate_coefficients()) if sums.has("rate") else None,
        witness_information=sums.witness_information(),
        num_samples=sums.num_rows,
        num_components=sums.num_components,
        teacher_floor=settings.teacher_floor,
        witness_floor=settings.applied_floor,
        provenance=provenance or {},
    )
    return certificate if partial else _with_status(certificate, _exceeds_rate(sums))


def _margin_and_bound(sums: CertificateSums, settings: CertificateSettings, score: str) -> tuple[float, float]:
    coefficients = sums.influence(score)
    margin = sums.mean(coefficients)
    lower = lower_bound(
        settings.method,
        margin,
        sums.standard_deviation(coefficients),
        sums.effective_size,
        1 - settings.confidence,
        num_components=sums.num_components,
        teacher_floor=settings.teacher_floor,
        witness_floor=settings.applied_floor,
    )
    return margin, lower


def _exceeds_rate(sums: CertificateSums) -> bool:
    """Whether the channel margin is above the rate beyond sampling error, which a sound witness cannot do."""
    if not (sums.has("channel") and sums.has("rate")) or sums.effective_size < 2:
        return False
    excess = sums.influence("channel") - sums.rate_coefficients()
    error = NormalDist().inv_cdf(1 - LEAK_LEVEL) * sums.standard_deviation(excess) / math.sqrt(sums.effective_size)
    return sums.mean(excess) - error > 1e-9


def _with_status(certificate: Certificate, leaking: bool) -> Certificate:
    if leaking:
        status = Status.LEAKING
    elif certificate.teacher_information <= certificate.safety_margin:
        status = Status.VACUOUS
    elif certificate.margin_lower > certificate.safety_margin:
        status = Status.CERTIFIED
    else:
        status = Status.NOT_CERTIFIED
    certificate.status = status
    return certificate


def certify(
    teacher_probs: Any,
    witness_logits: Any,
    *,
    safety_margin: float = 0.05,
    confidence: float = 0.95,
    method: str = "normal",
    teacher_floor: float = 0.0,
    witness_floor: float | None = None,
    weights: Any = None,
    channel_logits: Any = None,
    rate: Any = None,
    permutations: int = 0,
    generator: torch.Generator | None = None,
) -> Certificate:
    """Certify that a witness is not constant in the input, from arrays or tensors of any float type.

    The witness must be computed from the latent code and nothing else; this function cannot see whether it was.

    Args:
        teacher_probs: teacher probabilities, shape ``(N, K)``.
        witness_logits: unnormalised log-probabilities of the witness on the mean code, shape ``(N, K)``.
        safety_margin: nats by which the lower bound must exceed the threshold, at least 0.
        confidence: probability with which the lower bound holds, in ``(0, 1)``.
        method: the bound: ``"plugin"``, ``"normal"``, ``"hoeffding"`` or ``"bernstein"``.
        teacher_floor: every teacher probability is at least ``teacher_floor / K``, by construction.
        witness_floor: share of the uniform distribution mixed into the witness; default 1e-3 for the rigorous
            methods, else 0.
        weights: weight of each row, fixed independently of its values, shape ``(N,)``; 0 leaves a row out.
        channel_logits: the witness on draws of the latent, shape ``(draws, N, K)``.
        rate: ``KL(q(z|x) || p(z))`` of each row in nats, shape ``(N,)``.
        permutations: number of permutations of the test that fills in ``p_value``, 999 for instance; 0 makes no
            test. It does not change the status. It uses the rows of positive weight, each once; see
            :func:`certvae.permutation.permutation_p_value`.
        generator: CPU generator of the permutations; default: the global random state.

    Returns:
        The certificate. With one row the bound is minus infinity.

    Raises:
        ValueError: if an argument is not what this page says.
    """
    if permutations < 0:
        raise ValueError(f"`permutations` must be at least 0, got {permutations}. 0 makes no permutation test.")
    settings = CertificateSettings(safety_margin, confidence, method, teacher_floor, witness_floor)
    sums = CertificateSums.from_rows(
        teacher_probs,
        witness_logits,
        weights,
        channel_logits=channel_logits,
        rate=rate,
        witness_floor=settings.applied_floor,
        teacher_floor=teacher_floor,
    )
    p_value = None
    if permutations and sums.num_rows:
        teacher, witness = as_probabilities(teacher_probs), as_logits(witness_logits)
        kept = slice(None) if weights is None else torch.as_tensor(weights).cpu() > 0
        floored = floor_log_probabilities(witness, settings.applied_floor)
        p_value = permutation_p_value(teacher[kept], floored[kept], permutations, generator)
    return certificate_from_sums(sums, settings, p_value=p_value)
