"""``certvae certify``: computes a certificate to publish, once, on rows that were never used before.

A YAML is code: the classes that --config names are imported and run. Use only your own YAML, or one that you have read.
Checkpoint and teacher run no code.
"""

import argparse
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor, nn

from certvae.certificate.certificate import Certificate
from certvae.certificate.leaks import WitnessAudit, shuffled_margin_leaks
from certvae.certificate.settings import CertificateSettings
from certvae.certificate.verdict import LEAK_LEVEL, certificate_from_rows, judge
from certvae.commands.lightning import run_lightning
from certvae.commands.wandb_run import RUN, publish
from certvae.io.checkpoints import load_weights
from certvae.io.files import sha256_file, sha256_tensors
from certvae.io.untrusted import parse_yaml, read_limited
from certvae.monitoring.code_sample import SampledCodes
from certvae.monitoring.encoded_rows import EncodedRows, encode_rows, evenly_spaced
from certvae.teachers import Teacher, load_teacher, teacher_file
from certvae.theory.arguments import as_number, as_whole_number
from certvae.theory.bounds import BOUNDS
from certvae.theory.calibration import Calibration, fit_calibration
from certvae.theory.escape import escape_force_sums, has_escape_force
from certvae.theory.row_noise import row_uniform
from certvae.theory.scores import ScoredRows
from certvae.theory.witness import SimplexWitness, own_witness

__all__ = ["CertifyOptions", "EncodedCheckpoint", "certify_checkpoint", "main"]

FEW_ROWS = 50
CONFIG_LIMIT = 2**17  # bytes of a YAML; the longest of a run has about 3,000
# `verify` reads the options from a certificate, which anyone may have written, so its work must be limited.
MOST = {"permutations": 10**5, "channel_samples": 64, "calibration_rows": 10**6}
MOST_FITTED = 2**24  # draws x rows x components; the fit of a calibration holds ten copies
MOST_PERMUTED = 2**38  # permutations x rows x components; takes minutes
BLOCK = 2**22  # values of draws in memory at once


@dataclass(frozen=True)
class CertifyOptions:
    """Options of a published certificate; its provenance records them.

    Attributes:
        split: ``"test"``, the rows reserved for this, or ``"val"``.
        safety_margin: nats by which the lower bound must exceed the threshold.
        confidence: probability with which the lower bound holds.
        method: name of the bound; default as in :class:`certvae.CertificateSettings`.
        teacher_floor: every teacher probability is at least ``teacher_floor / K``, which is checked; default: the floor
            that the teacher guarantees.
        witness_floor: share of the uniform distribution mixed into the witness; default: as the bound needs.
        permutations: number of permutations of the permutation test; 0 skips the test.
        channel_samples: draws of the latent per row.
        calibration_rows: number of training rows for the calibrated witness; 0 fits none.
        seed: seed of draws and permutations.
        latents: dotted path of the submodule that returns the code, if the model's ``forward`` does not.
        witness_scale: scale of the teacher's simplex witness, the same as during the run; default 2. Only for a model
            without an attribute ``witness``.

    Raises:
        TypeError: if an option that must be a number is not one.
        ValueError: if an option is not one of the values above, or a number is too small or too large.
    """

    split: str = "test"
    safety_margin: float = 0.05
    confidence: float = 0.95
    method: str | None = None
    teacher_floor: float | None = None
    witness_floor: float | None = None
    permutations: int = 999
    channel_samples: int = 4
    calibration_rows: int = 4000
    seed: int = 0
    latents: str | None = None
    witness_scale: float | None = None

    def __post_init__(self) -> None:
        if self.split not in ("test", "val"):
            raise ValueError(f"`split` must be 'test' or 'val', got {self.split!r}.")
        for name, most in MOST.items():
            as_whole_number(getattr(self, name), name, 0, most)
        as_whole_number(self.seed, "seed", -(2**61), 2**61)
        self._settings(0.5)  # the teacher's floor is known later
        if not isinstance(self.latents, str | None):
            raise TypeError(f"`latents` must be the path of a submodule or None, got {type(self.latents).__name__}.")
        if self.witness_scale is not None and not 1e-15 <= as_number(self.witness_scale, "witness_scale") <= 1e15:
            raise ValueError(f"`witness_scale` must be from 1e-15 to 1e15, got {self.witness_scale}.")

    def settings(self, teacher: Teacher) -> CertificateSettings:
        """Settings of the verdict, with the floor that the teacher guarantees."""
        return self._settings(teacher.card.floor)

    def _settings(self, floor: float) -> CertificateSettings:
        names = ("safety_margin", "confidence", "method", "teacher_floor", "witness_floor")
        return CertificateSettings.for_teacher(floor, **{name: getattr(self, name) for name in names})


def certify_checkpoint(checkpoint: Path, teacher_path: Path, config: Path, options: CertifyOptions) -> Certificate:
    """Compute a certificate from a checkpoint, a teacher and the data of a run's YAML.

    Args:
        checkpoint: path of a Lightning checkpoint; its weights are read without running code.
        teacher_path: path of the teacher's file.
        config: path of the run's YAML; its ``model`` and ``data`` are used. A YAML is code: the classes that it names
            are imported and run. Use only your own YAML, or one that you have read.
        options: all other options.

    Returns:
        The certificate; its provenance contains hashes of all inputs.

    Raises:
        FileNotFoundError: if one of the three paths is not a regular file.
        TeacherFileError: if the teacher file cannot be used.
        CheckpointFileError: if the checkpoint cannot be used.
        TeacherMismatchError: if the teacher was made for other data.
        ValueError: if the YAML does not describe a run, or ``witness_scale`` is given and the model has its own
            witness.
    """
    return EncodedCheckpoint.read(checkpoint, teacher_path, config, options).certify()


@dataclass(frozen=True)
class EncodedCheckpoint:
    """The encoded rows of a checkpoint, from which certificates with several bounds can be computed.

    Attributes:
        rows: held-out rows.
        teacher: teacher of these rows.
        witness: witness to evaluate.
        calibration: calibrated witness fitted on training rows, or None.
        options: all options except the bound.
        provenance: hashes of the files that were read.
    """

    rows: EncodedRows
    teacher: Teacher
    witness: nn.Module
    calibration: Calibration | None
    options: CertifyOptions
    provenance: dict[str, Any]

    @classmethod
    def read(cls, checkpoint: Path, teacher_path: Path, config: Path, options: CertifyOptions) -> "EncodedCheckpoint":
        """Read the files and encode the rows; arguments and errors as for :func:`certify_checkpoint`."""
        teacher = load_teacher(teacher_path)
        model, data = build(config, teacher_path)
        load_weights(model, checkpoint)
        teacher.check_data(getattr(data, "image_shape", None), getattr(data, "fingerprint", None))
        rows = encode_rows(model, teacher, _loader(data, options.split), data, options.latents)
        witness = _witness(model, teacher, rows.mean.shape[1], options)
        calibration = _calibrate(model, data, teacher, witness, options)
        provenance = {
            "teacher_sha256": sha256_file(teacher_path),
            "checkpoint_sha256": sha256_file(checkpoint),
            "weights_sha256": sha256_tensors(model.state_dict()),
            "rows_sha256": rows.rows_sha256,
            "repeated_rows": int(rows.repeats.sum()),
            "calibration": None if calibration is None else asdict(calibration) | {"prior": list(calibration.prior)},
            "witness_scale": witness.scale if isinstance(witness, SimplexWitness) else None,
            "looks": 1,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "pytorch_lightning": version("pytorch-lightning"),
            },
            **teacher.card.naming(),
        }
        return cls(rows, teacher, witness, calibration, options, provenance)

    def certify(self, **changes: Any) -> Certificate:
        """The certificate with changed options such as ``method``, but not those that set the rows or calibration."""
        options = replace(self.options, **changes)
        certificate = _certificate(self.rows, self.teacher, self.witness, self.calibration, options)
        certificate.provenance = {**self.provenance, "options": asdict(options)}
        return certificate


def build(config: Path, teacher_path: Path) -> tuple[LightningModule, LightningDataModule]:
    """Build the model (with initial weights) and the data of a run's YAML, with another teacher file.

    Raises:
        FileNotFoundError: if the path is not a regular file. ValueError: if the YAML does not describe a run.
    """
    values = _read_config(config)
    arguments = values["model"].setdefault("init_args", {})
    if "teacher" in arguments:
        arguments["teacher"] = str(teacher_path)
    arguments.pop("init_weights_from", None)
    trainer = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
    parts = {"model": values["model"], "data": values["data"]}
    cli = run_lightning({"seed_everything": 0, "trainer": trainer, **parts}, run=False)
    cli.datamodule.prepare_data()
    cli.datamodule.setup("test")
    return cli.model, cli.datamodule


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = parse_yaml(read_limited(path, CONFIG_LIMIT, "YAML"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not the YAML of a run: {' '.join(str(error).split())[:500]}") from None
    parts = [values.get(name) if isinstance(values, dict) else None for name in ("model", "data")]
    if not all(isinstance(part, dict) and isinstance(part.get("init_args", {}), dict) for part in parts):
        raise ValueError(f"{path} must hold `model` and `data`, each with a `class_path`, as a run's YAML does.")
    return values


def _loader(data: LightningDataModule, split: str) -> Any:
    return data.test_dataloader() if split == "test" else data.val_dataloader()


def _witness(model: LightningModule, teacher: Teacher, latent_dim: int, options: CertifyOptions) -> nn.Module:
    """The model's own witness, else the teacher's, as in the callback."""
    own = own_witness(model, teacher.num_components)
    if own is not None and options.witness_scale is not None:
        raise ValueError("`witness_scale` must be left out, because the model has its own witness.")
    return teacher.witness(latent_dim, options.witness_scale or 2.0) if own is None else own


def _calibrate(
    model: LightningModule, data: Any, teacher: Teacher, witness: nn.Module, options: CertifyOptions
) -> Calibration | None:
    """Fit the calibrated witness on training rows, never on rows of the certificate."""
    if options.calibration_rows == 0 or options.channel_samples == 0:
        return None
    data.setup("fit")
    loader = evenly_spaced(data.train_dataloader(), options.calibration_rows)
    rows = encode_rows(model, teacher, loader, data, options.latents)
    if rows.log_variance is None:
        return None
    _refuse_more("calibration_rows", rows.teacher_probs.numel() * options.channel_samples, MOST_FITTED)
    blocks = [block.answers(witness) for block in rows.blocks(options.channel_samples, options.seed + 1, BLOCK)]
    return fit_calibration(rows.teacher_probs, torch.cat(blocks, dim=1))


def _refuse_more(name: str, numbers: int, most: int) -> None:
    if numbers > most:
        raise ValueError(
            f"`{name}` must be lower: with this teacher and these rows it takes {numbers:,} numbers, and {most:,} are "
            f"the most. Give --{name}."
        )


def _certificate(
    rows: EncodedRows, teacher: Teacher, witness: nn.Module, calibration: Calibration | None, options: CertifyOptions
) -> Certificate:
    settings = options.settings(teacher)
    _refuse_more("permutations", rows.teacher_probs.numel() * options.permutations, MOST_PERMUTED)
    answers = witness(rows.mean)
    scored = _scored(rows, answers, settings)
    if rows.log_variance is not None and options.channel_samples:
        scores = _channel_scores(rows, witness, calibration, settings, options)
        scored = replace(scored, scores={**scored.scores, **scores})
    generator = torch.Generator().manual_seed(options.seed)
    codes = _sampled(rows, options.seed)
    certificate = certificate_from_rows(
        scored,
        settings,
        permutations=options.permutations,
        generator=generator,
        information=codes.bracket(settings.confidence, seed=options.seed),
        fitted=codes.fitted(settings, options.seed),
    )
    if has_escape_force(witness):
        total, weight = escape_force_sums(witness, rows.mean, rows.teacher_probs, rows.weights(settings))
        certificate = replace(certificate, escape_force=float(total / weight))
    audit = WitnessAudit(seed=options.seed)
    audit.add(witness, rows.mean, answers, torch.arange(len(rows.mean)))
    leaks = [*rows.leaks, *audit.finish(witness), *_shuffled_leaks(rows, witness, options.seed)]
    return judge(certificate, leaks=leaks)


def _sampled(rows: EncodedRows, seed: int) -> SampledCodes:
    """All rows, each once, in an order independent of their contents."""
    order = row_uniform(torch.arange(len(rows.mean)), 1, seed + 3)[:, 0].argsort()
    kept = order[~rows.repeats[order]]
    parts = (rows.mean, rows.log_variance, rows.rate, rows.teacher_probs)
    return SampledCodes(*(None if part is None else part[kept].double() for part in parts))  # type: ignore[arg-type]


def _scored(rows: EncodedRows, answers: Tensor, settings: CertificateSettings, **channel: Any) -> ScoredRows:
    return ScoredRows.check(
        rows.teacher_probs,
        answers,
        rows.weights(settings),
        rate=rows.rate,
        witness_floor=settings.applied_floor,
        teacher_floor=settings.teacher_floor,
        **channel,
    )


def _channel_scores(
    rows: EncodedRows,
    witness: nn.Module,
    calibration: Calibration | None,
    settings: CertificateSettings,
    options: CertifyOptions,
) -> dict[str, Tensor]:
    """Scores of the channel and of the calibrated witness, in blocks, so that memory stays limited."""
    parts = []
    for block in rows.blocks(options.channel_samples, options.seed, BLOCK):
        logits = block.answers(witness)
        calibrated = None if calibration is None else calibration(logits)
        scored = _scored(block.rows, logits[0], settings, channel_logits=logits, calibrated_logits=calibrated)
        parts.append(scored.scores)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name != "mean"}


def _shuffled_leaks(rows: EncodedRows, witness: nn.Module, seed: int) -> list[str]:
    """Leak test: whether the margin stays after shuffling codes among rows; skipped for few rows."""
    if len(rows.mean) < FEW_ROWS:
        return []
    order = row_uniform(torch.arange(len(rows.mean)), 1, seed + 2)[:, 0].argsort()
    settings = CertificateSettings(confidence=1 - LEAK_LEVEL, method="normal")
    shuffled = certificate_from_rows(ScoredRows.check(rows.teacher_probs, witness(rows.mean[order])), settings)
    return shuffled_margin_leaks(shuffled.margin_lower)


def add_inputs(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the options for the three input files of a certificate."""
    parser.add_argument("--ckpt", type=Path, required=required, help="checkpoint of the run")
    parser.add_argument("--teacher", type=teacher_file, required=required, help="teacher file, or a shipped one's name")
    parser.add_argument("--config", type=Path, required=required, help="the run's YAML; it is code: give only your own")


def main(args: Sequence[str] | None = None) -> int:
    """``certvae certify``: compute a certificate, print it and save it."""
    parser = argparse.ArgumentParser(
        prog="certvae certify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_inputs(parser)
    parser.add_argument("--output", type=Path, default=Path("certificate.json"))
    parser.add_argument("--split", default="test", choices=("test", "val"), help="the rows to certify on")
    parser.add_argument(
        "--method", choices=tuple(BOUNDS), help="the bound; default: a proven one, if the teacher has a floor"
    )
    parser.add_argument("--latents", help="dotted path of the submodule that gives the code")
    parser.add_argument(
        "--witness_scale", type=float, help="scale of the teacher's witness, if the model has none; default 2"
    )
    for name in ("safety_margin", "confidence", "teacher_floor", "witness_floor"):
        parser.add_argument(f"--{name}", type=float, default=getattr(CertifyOptions, name))
    for name in ("permutations", "channel_samples", "calibration_rows", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(CertifyOptions, name))
    parser.add_argument("--wandb", metavar=RUN, help="put the certificate and all three files into this run of W&B too")
    given = vars(parser.parse_args(args))
    files = {name: given.pop(name) for name in ("ckpt", "teacher", "config")}
    output, run = given.pop("output"), given.pop("wandb")
    certificate = certify_checkpoint(files["ckpt"], files["teacher"], files["config"], CertifyOptions(**given))
    print(f"{certificate}\nSaved to {certificate.save(output)}.")
    if run is not None:
        publish(run, certificate, {**files, "certificate": output})
        print(f"Published. Anyone with access can check it: certvae verify --wandb {run}")
    return 0
