"""The committed tables: each says of its claims what its rows say, and README and docs quote them."""

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from certvae.commands.protocol import WITNESSES
from certvae.commands.summary import PHASES
from experiments.baselines import study as baselines
from experiments.drawing import read_table
from experiments.guard import study as guard
from experiments.mnist import likelihood
from experiments.mnist import study as mnist
from experiments.path import study as path
from experiments.prefit import study as prefit
from experiments.protocol import study as protocol
from experiments.stress import study as stress
from experiments.view import study as view
from experiments.witnesses import study as witnesses

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
STUDIES = {
    "cifar100": protocol,
    "cifar100_mean": protocol,
    "tiny_imagenet": protocol,
    "baselines": baselines,
    "baselines_collapsed": baselines,
    "stress": stress,
    "path": path,
    "view": view,
    "prefit": prefit,
    "prefit_digits": prefit,
    "mnist": mnist,
    "witnesses_cifar100": witnesses,
    "witnesses_cifar100_mean": witnesses,
    "witnesses_cifar100_mean_cold": witnesses,
    "witnesses_tiny_imagenet": witnesses,
    "witnesses_tiny_imagenet_mean": witnesses,
    "witnesses_digits": witnesses,
}
# Where they are not those of the study's other tables.
CLAIMS: dict[str, Callable[[list[dict[str, Any]]], dict[str, bool]]] = {
    "baselines_collapsed": baselines.collapsed_claims,
    "cifar100_mean": partial(protocol.claims, alignment_path="mean"),
}
STUDIES_PAGE, BASELINES_PAGE = ROOT / "docs" / "studies.md", ROOT / "docs" / "baselines.md"
CLAIMS_PAGE = (ROOT / "docs" / "replication.md").read_text()
README = (ROOT / "README.md").read_text()


def committed(study: str) -> list[dict[str, Any]]:
    return read_table(RESULTS / study / f"{study}.csv")


@pytest.mark.parametrize("study", STUDIES)
def test_a_committed_table_says_of_its_claims_what_its_rows_say(study: str) -> None:
    text = (RESULTS / study / f"{study}.md").read_text()
    stated = CLAIMS.get(study, STUDIES[study].claims)
    claims = stated(committed(study))
    said = [f"- {'holds' if holds else '**does not hold**'}: {claim}." for claim, holds in claims.items()]
    assert [line for line in text.splitlines() if line.startswith("- ")] == said
    assert f"Made by `python -m experiments.{STUDIES[study].__name__.split('.')[1]}.study" in text
    assert "-dirty" not in text


def test_the_committed_table_of_the_guard_says_what_the_study_claims() -> None:
    lines = committed("guard")
    assert list(lines[0]) == ["seed", "run", *guard.NUMBERS]
    assert all(guard.claims(lines).values())


def means_of(lines: list[dict[str, Any]], names: dict[str, str]) -> list[str]:
    """Means over lines, each with its format."""
    return [format(fmean(line[name] for line in lines), text) for name, text in names.items()]


def of_seeds(lines: list[dict[str, Any]], phase: str) -> str:
    """A row of the page of studies: means over seeds, and the outermost of the bounds."""
    chosen = [line for line in lines if line["phase"] == phase]
    certified = sum(
        line["status"] == line["proven_status"] == line["bernstein_status"] == "CERTIFIED" for line in chosen
    )
    on_draws = sum(line["channel_lower"] > protocol.SAFETY_MARGIN for line in chosen)
    (reading,) = {line["reading"] for line in chosen}
    means = {
        name: format(fmean(line[name] for line in chosen), ".4f" if name == "mean_squared_error" else ".3f")
        for name in ("teacher_information", "margin", "channel_margin", "rate", "mean_squared_error")
    }
    least = {
        name: f"{min(line[name] for line in chosen):.3f}"
        for name in ("proven_lower", "channel_lower", "information_lower")
    }
    cells = [f"{certified} of {len(chosen)}", means["teacher_information"], means["margin"], least["proven_lower"]]
    cells += [f"{on_draws} of {len(chosen)}", means["channel_margin"], least["channel_lower"], reading]
    cells += [least["information_lower"], f"{max(line['information_upper'] for line in chosen):.3f}"]
    return f"| {phase} | {' | '.join([*cells, means['rate'], means['mean_squared_error']])} |"


@pytest.mark.parametrize("study", ["cifar100", "tiny_imagenet"])
@pytest.mark.parametrize("phase", ["full", "no_align", "rescue", "ablate"])
def test_the_page_of_studies_quotes_the_protocols_results(study: str, phase: str) -> None:
    assert of_seeds(committed(study), phase) in STUDIES_PAGE.read_text()


def test_only_codes_aligned_on_draws_are_certified_on_draws() -> None:
    """Beside the same protocol, aligned on means."""
    means, draws = (
        [line for line in committed(study) if line["phase"] in ("full", "rescue")]
        for study in ("cifar100_mean", "cifar100")
    )
    assert all(line["proven_status"] == "CERTIFIED" for line in [*means, *draws])
    assert all(line["channel_margin"] < 0 for line in means)
    assert all(line["channel_lower"] > protocol.SAFETY_MARGIN for line in draws)
    quoted = set()
    for phase in ("full", "rescue"):
        chosen = [line for line in means if line["phase"] == phase]
        quoted |= {
            f"{fmean(line['margin'] for line in chosen):.3f}",
            f"{min(each['proven_lower'] for each in chosen):.3f}",
        }
    names = {
        "channel_margin": ".3f",
        "calibrated_channel_margin": ".3f",
        "rate": ".2f",
        "mean_squared_error": ".4f",
    }
    for lines in (means, draws):
        quoted |= set(means_of([line for line in lines if line["phase"] == "full"], names))
    assert quoted <= numbers_from("experiments/results/cifar100_mean/cifar100_mean.csv", STUDIES_PAGE)


NAMES = {"cifar100": "CIFAR-100", "tiny_imagenet": "Tiny-ImageNet"}


@pytest.mark.parametrize("study", NAMES)
@pytest.mark.parametrize("phase", ["full", "no_align", "rescue", "ablate"])
def test_the_readme_quotes_the_protocols_results(study: str, phase: str) -> None:
    """Means over seeds, and the least of the proven bounds."""
    chosen = [line for line in committed(study) if line["phase"] == phase]
    certified = sum(line["proven_status"] == "CERTIFIED" for line in chosen)
    margin, information = (fmean(line[key] for line in chosen) for key in ("margin", "teacher_information"))
    cells = [margin, *(min(line[key] for line in chosen) for key in ("proven_lower", "channel_lower"))]
    numbers = " | ".join(f"{cell:.3f}" for cell in cells)
    assert f"| {NAMES[study]}, {phase} | {certified} of {len(chosen)} | {numbers} |\n" in README
    assert f"{information:.3f}" in README


def of_baseline(lines: list[dict[str, Any]], baseline: str) -> str:
    """A row of the page of baselines: each seed's margin, the outermost bounds over seeds, means of the rest."""
    chosen = sorted((line for line in lines if line["baseline"] == baseline), key=lambda line: line["seed"])
    counts = Counter(line["reading"] for line in chosen)
    reading = ", ".join(name if len(counts) == 1 else f"{name} {count}" for name, count in counts.items())
    margins = ", ".join(f"{line['proven_margin']:+.3f}" for line in chosen)
    bounds = {"proven_lower": (max, "+.3f"), "information_lower": (min, ".2f"), "information_upper": (max, ".2f")}
    ends = [format(end(line[name] for line in chosen), text) for name, (end, text) in bounds.items()]
    names = {
        "fitted_mean": ".2f",
        "fitted_draw": ".2f",
        "probe_margin": ".2f",
        "rate": ".2f",
        "mean_squared_error": ".4f",
    }
    means = means_of(chosen, names)
    return f"| {' | '.join([reading, margins, *ends, *means])} |"


@pytest.mark.parametrize("study", ["baselines", "baselines_collapsed"])
def test_the_page_of_baselines_quotes_each(study: str) -> None:
    lines, page = committed(study), BASELINES_PAGE.read_text()
    diverged = {"info_vae"} if study == "baselines_collapsed" else set()
    expected = [name for name in baselines.BASELINES if name not in diverged]
    assert Counter(line["baseline"] for line in lines) == dict.fromkeys(expected, 3)
    assert not [name for name in expected if of_baseline(lines, name) not in page]


def test_the_page_of_baselines_compares_the_fitted_reader_with_the_probe() -> None:
    lines = committed("baselines")
    columns = [[line[name] for line in lines] for name in ("fitted_mean", "fitted_draw", "probe_margin")]
    bracket = [line["information_lower"] for line in lines]
    ranges = {f"{end(values):.2f}" for values in (*columns, bracket) for end in (min, max)}
    better = sum(line["probe_margin"] > line["fitted_mean"] for line in lines)
    assert {*ranges, str(better), str(len(lines))} <= numbers_from(
        "experiments/results/baselines/baselines.csv", BASELINES_PAGE
    )


def test_every_baseline_that_reconstructs_is_read_as_informative() -> None:
    lines = committed("baselines")
    assert {line["reading"] for line in lines} == {"INFORMATIVE"}
    assert all(line["proven_status"] == "NOT_CERTIFIED" for line in lines)


def test_no_baseline_at_a_collapsing_kl_weight_is_in_the_wrong_row() -> None:
    """Capacity annealing fills its rate mostly with a posterior that is the same for every row."""
    for line in committed("baselines_collapsed"):
        if line["reading"] == "COLLAPSED":
            assert line["information_upper"] < 0.02
            assert line["mean_squared_error"] > 0.98 * line["constant_squared_error"]
        elif line["reading"] == "INFORMATIVE" and line["baseline"] != "capacity":
            assert line["information_lower"] > 0.2
            assert line["mean_squared_error"] < 0.95 * line["constant_squared_error"]
        else:
            assert line["baseline"] == "capacity"
            assert line["information_lower"] > 0
            assert line["mean_squared_error"] < line["constant_squared_error"]
            assert line["information_upper"] < line["rate"] / 5


def of_witness(lines: list[dict[str, Any]]) -> str:
    """Rows of the page of studies: each witness and phase, means over seeds and the least proven bound."""
    names = {"channel_margin": "+.3f", "witness_information": ".3f", "rate": ".2f", "mean_squared_error": ".4f"}
    rows = []
    for witness, phase in dict.fromkeys((line["witness"], line["phase"]) for line in lines):
        chosen = [line for line in lines if (line["witness"], line["phase"]) == (witness, phase)]
        certified = sum(line["proven_status"] == "CERTIFIED" for line in chosen)
        margin, lower = fmean(line["proven_margin"] for line in chosen), min(line["proven_lower"] for line in chosen)
        means = means_of(chosen, names)
        cells = [witness, phase, f"{certified} of {len(chosen)}", f"{margin:+.3f}", f"{lower:+.3f}", *means]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


@pytest.mark.parametrize("study", ["witnesses_cifar100", "witnesses_tiny_imagenet", "witnesses_digits"])
def test_the_page_of_studies_quotes_each_witness_and_phase(study: str) -> None:
    assert of_witness(committed(study)) in STUDIES_PAGE.read_text()


QUOTED_WITNESSES: dict[str, list[tuple[str, str]]] = {  # phases and numbers, as means of each witness
    "witnesses_cifar100": [
        *(("full", name) for name in ("proven_margin", "channel_margin", "rate")),
        *((phase, "proven_margin") for phase in ("guarded", "prefit")),
        ("guarded", "channel_margin"),
    ],
    "witnesses_cifar100_mean": [("full", "proven_margin"), ("full", "channel_margin")],
    "witnesses_tiny_imagenet": [("full", "proven_margin")],
}


@pytest.mark.parametrize("study", QUOTED_WITNESSES)
def test_the_page_of_studies_compares_the_witnesses_in_their_order(study: str) -> None:
    """``0.589 against 0.304 and 0.158`` or ``0.589, ... 0.304, ... 0.158``: simplex, linear head, perceptron."""
    lines = committed(study)
    (paragraph,) = re.findall(rf"results/{study}/{study}.csv -->\n(.*?)\n\n", STUDIES_PAGE.read_text(), flags=re.DOTALL)
    for phase, name in QUOTED_WITNESSES[study]:
        means = [
            fmean(line[name] for line in lines if (line["witness"], line["phase"]) == (witness, phase))
            for witness in WITNESSES
        ]
        numbers = [re.escape(f"{mean:.{2 if name == 'rate' else 3}f}") for mean in means]
        assert re.search(rf"(?<!\d){'.*?'.join(numbers)}(?!\d)", paragraph, flags=re.DOTALL), (phase, name, numbers)


def test_one_phase_of_a_witness_on_tiny_imagenet_is_not_certified_and_the_pages_say_which() -> None:
    lines = committed("witnesses_tiny_imagenet")
    aligned = [line for line in lines if line["phase"] in ("full", "rescue", "guarded", "prefit")]
    (missed,) = [line for line in aligned if line["proven_status"] != "CERTIFIED"]
    assert (missed["witness"], missed["phase"]) == ("perceptron", "rescue")
    stays = f"stays at {missed['proven_margin']:.3f}, at least {missed['proven_lower']:.3f}."
    assert stays in STUDIES_PAGE.read_text()
    assert "the perceptron's rescue is **not** certified" in CLAIMS_PAGE


def test_a_low_temperature_on_the_mean_raises_the_margin_and_empties_the_draws() -> None:
    """The rest of the paragraph is from the table at another commit."""

    def full(study: str) -> dict[str, float]:
        lines = [line for line in committed(study) if (line["witness"], line["phase"]) == ("head", "full")]
        return {name: fmean(line[name] for line in lines) for name in ("proven_margin", "rate", "channel_margin")}

    cold, plain = full("witnesses_cifar100_mean_cold"), full("witnesses_cifar100_mean")
    assert cold["proven_margin"] > plain["proven_margin"]
    assert cold["rate"] < plain["rate"]
    assert cold["channel_margin"] < plain["channel_margin"]
    table = "experiments/results/witnesses_cifar100_mean_cold/witnesses_cifar100_mean_cold.csv"
    quoted = {f"{cold['proven_margin']:.3f}", f"{cold['rate']:.2f}", f"{cold['channel_margin']:.3f}"}
    assert quoted <= numbers_from(table, STUDIES_PAGE)


def test_the_proven_bound_is_nearly_as_narrow_as_the_normal_one_where_it_certifies() -> None:
    for line in committed("cifar100"):
        if line["phase"] in ("full", "rescue"):
            normal, betting = line["margin"] - line["margin_lower"], line["proven_margin"] - line["proven_lower"]
            assert betting < 1.2 * normal
            assert betting < 0.4 * (line["bernstein_margin"] - line["bernstein_lower"])


@pytest.mark.parametrize("phase", mnist.PHASES)
def test_the_page_of_studies_quotes_mnist_beside_the_published_numbers(phase: str) -> None:
    chosen = [line for line in committed("mnist") if line["phase"] == phase]
    certified = sum(line["proven_status"] == "CERTIFIED" for line in chosen)
    margin, rate = (fmean(line[name] for line in chosen) for name in ("margin", "rate"))
    least = [f"{min(line[name] for line in chosen):+.3f}" for name in ("proven_lower", "channel_lower")]
    published = [
        "" if value is None else f"{value:{text}}"
        for value, text in zip(mnist.PUBLISHED[phase], ("+.3f", ".1f"), strict=True)
    ]
    cells = [phase, f"{certified} of {len(chosen)}", f"{margin:+.3f}", *least, f"{rate:.1f}", *published]
    assert f"| {' | '.join(cells)} |".replace("|  |", "| |") in STUDIES_PAGE.read_text()


def test_the_pages_quote_the_likelihood_of_mnist_beside_the_published_one() -> None:
    """Within one nat of it with two hidden layers, but not with one."""
    lines = read_table(RESULTS / "mnist" / "likelihood.csv")
    assert list(likelihood.claims(lines).values()) == [False, True]
    text = (RESULTS / "mnist" / "likelihood.md").read_text()
    assert all(
        f"{'holds' if holds else '**does not hold**'}: {claim}" in text
        for claim, holds in likelihood.claims(lines).items()
    )
    deep = lines[1]
    quoted = {f"{value:.2f}" for value in (lines[0]["nll"], deep["nll"], deep["nll_error"], likelihood.PUBLISHED)}
    assert quoted <= numbers_from("experiments/results/mnist/likelihood.csv", STUDIES_PAGE)
    (row,) = (row for row in CLAIMS_PAGE.splitlines() if "binary MNIST" in row)
    assert quoted <= set(re.findall(r"\d+\.\d+", row))


def of_stress(lines: list[dict[str, Any]], kl_weight: float) -> str:
    """A row of the page of studies: aligned and plain at a KL weight, means over seeds and the outermost bounds."""
    cells = []
    for aligned in (True, False):
        chosen = [line for line in lines if line["aligned"] is aligned and line["kl_weight"] == kl_weight]
        rate, margin, error = (
            fmean(line[name] for line in chosen) for name in ("rate", "margin", "mean_squared_error")
        )
        cells += [certified(chosen), f"{margin:+.3f}"]
        if aligned:
            cells += [f"{min(line[name] for line in chosen):+.3f}" for name in ("proven_lower", "channel_lower")]
        else:
            (reading,) = {line["reading"] for line in chosen}
            cells += [reading, f"{max(line['information_upper'] for line in chosen):.3f}"]
        cells += [f"{rate:.2f}", f"{error:.4f}"]
    return f"| {kl_weight:g} | {' | '.join(cells)} |"


@pytest.mark.parametrize("kl_weight", stress.KL_WEIGHTS)
def test_the_page_of_studies_quotes_each_kl_weight(kl_weight: float) -> None:
    assert of_stress(committed("stress"), kl_weight) in STUDIES_PAGE.read_text()


def numbers_from(table: str, page: Path) -> set[str]:
    """The numbers in those paragraphs of a page that follow ``<!-- from: table -->``; the words are free."""
    marker = re.escape(f"<!-- from: {table} -->")
    assert (ROOT / table).is_file()
    paragraphs = re.findall(rf"{marker}\n(.*?)(?:\n\n|\Z)", page.read_text(), flags=re.DOTALL)
    assert paragraphs, f"no paragraph of {page.name} is from {table}"
    return set(re.findall(r"-?\d+(?:[.,]\d+)*", " ".join(paragraphs)))


def of_path(lines: list[dict[str, Any]], scale: float) -> str:
    """A row of the page of studies: aligned on the mean and on draws at a scale, with prior, means over seeds."""
    names = {
        "margin": "+.3f",
        "channel_margin": "+.3f",
        "calibrated_channel_margin": "+.3f",
        "rate": ".2f",
        "mean_squared_error": ".4f",
    }
    cells = []
    for aligned_on in ("mean", "sample"):
        chosen = [line for line in lines if (line["alignment_path"], line["scale"]) == (aligned_on, scale)]
        cells += means_of(chosen, names)
    return f"| {scale:g} | {' | '.join(cells)} |"


@pytest.mark.parametrize("scale", path.SCALES)
def test_the_page_of_studies_quotes_each_scale(scale: float) -> None:
    lines = [line for line in committed("path") if line["prior"] == "with"]
    assert of_path(lines, scale) in STUDIES_PAGE.read_text()


def test_alignment_on_draws_brings_more_into_the_draws_and_reconstructs_better_at_every_scale() -> None:
    lines = committed("path")
    pairs: dict[Any, dict[str, dict[str, Any]]] = {}
    for line in lines:
        pairs.setdefault((line["seed"], line["scale"], line["prior"]), {})[line["alignment_path"]] = line
    assert len(pairs) == len(lines) / 2 == 24
    assert all(line["proven_status"] == "CERTIFIED" for line in lines)
    for pair in pairs.values():
        assert pair["sample"]["calibrated_channel_margin"] > pair["mean"]["calibrated_channel_margin"]
        assert pair["sample"]["mean_squared_error"] < pair["mean"]["mean_squared_error"]
        assert pair["sample"]["rate"] > pair["mean"]["rate"]
    ends = {f"{end(line['headroom'] for line in lines):.3f}" for end in (min, max)}
    assert {str(len(lines)), *ends} <= numbers_from("experiments/results/path/path.csv", STUDIES_PAGE)
    assert f"{len(pairs)} of {len(pairs)} [pairs of runs](studies.md#path)" in CLAIMS_PAGE


def of_prefit(lines: list[dict[str, Any]], kl_weight: float) -> str:
    """A row of the page of studies: fitted first, with alignment and without."""
    cells = []
    for aligned in (True, False):
        chosen = [line for line in lines if (line["kl_weight"], line["aligned"]) == (kl_weight, aligned)]
        least = f"{min(line['proven_lower'] for line in chosen):+.3f}"
        margin, channel, rate = means_of(chosen, {"proven_margin": "+.3f", "channel_margin": "+.3f", "rate": ".2f"})
        cells += [certified(chosen), margin, least, channel, rate]
    return f"| {kl_weight:g} | {' | '.join(cells)} |"


def test_the_page_of_studies_quotes_what_a_fitted_code_keeps() -> None:
    lines, digits = committed("prefit"), committed("prefit_digits")
    assert not [k for k in prefit.KL_WEIGHTS if of_prefit(lines, k) not in STUDIES_PAGE.read_text()]
    assert all(line["margin"] < 0 for line in lines if not line["aligned"])
    kept = [line["proven_margin"] for line in digits if not line["aligned"]]
    expected = {f"{fmean(line['margin_after'] for line in lines):.3f}", f"{min(kept):.3f}", f"{max(kept):.3f}"}
    assert expected <= numbers_from("experiments/results/prefit/prefit.csv", STUDIES_PAGE)


def of_view(lines: list[dict[str, Any]], name: str, strength: float) -> str:
    """A row of the page of studies: a view, means over seeds."""
    chosen = [line for line in lines if (line["view"], line["strength"]) == (name, strength)]
    signed, sizes = ("margin", "cost", "own_margin", "calibrated_margin"), ("teacher_gap", "gap_at_most")
    names = dict.fromkeys(signed, "+.3f") | dict.fromkeys(sizes, ".3f")
    cells = means_of(chosen, names)
    return f"| {name if name == 'clean' else f'{name} {strength:g}'} | {' | '.join(cells)} |"


def test_the_page_of_studies_quotes_each_view() -> None:
    lines, text = committed("view"), STUDIES_PAGE.read_text()
    views = dict.fromkeys((line["view"], line["strength"]) for line in lines)
    assert len(lines) == 3 * len(views)
    assert not [view for view in views if of_view(lines, *view) not in text]
    assert all(line["proven_status"] == "CERTIFIED" for line in lines)
    least = min(line["cost"] for line in lines if line["view"] != "clean")
    information = fmean(line["teacher_information"] for line in lines)
    assert {str(len(lines)), f"{least:.3f}"} <= numbers_from("experiments/results/view/view.csv", STUDIES_PAGE)
    assert f"teacher information is {information:.3f}:" in " ".join(text.split())


def test_the_page_of_studies_quotes_the_stress_study() -> None:
    lines = committed("stress")
    aligned, plain = ([line for line in lines if line["aligned"] is which] for which in (True, False))
    assert all(line["proven_status"] == "CERTIFIED" for line in aligned)
    assert not any(line["proven_status"] == "CERTIFIED" for line in plain)
    ends = [f"{end(line['margin'] for line in aligned):.3f}" for end in (min, max)]
    collapsed = [line["margin"] for line in plain if line["kl_weight"] == 32]
    near = [f"{end(collapsed):+.4f}".removeprefix("+") for end in (min, max)]
    above = [line["margin"] for line in plain if line["margin"] > 0]
    expected = {str(len(aligned)), *ends, *near, f"{max(above):.4f}"}
    assert len(above) == 4
    assert expected <= numbers_from("experiments/results/stress/stress.csv", STUDIES_PAGE)


def test_the_page_of_baselines_quotes_their_number_and_range() -> None:
    lines = committed("baselines")
    certified = sum(line["proven_status"] == "CERTIFIED" for line in lines)
    below = sum(line["margin_upper"] < 0 for line in lines)
    margins = [line["proven_margin"] for line in lines]
    half = sum(line["mean_squared_error"] < line["constant_squared_error"] / 2 for line in lines)
    ends = [f"{end(margins):.2f}" for end in (min, max)]
    expected = {str(certified), str(len(lines)), str(below), str(half), *ends}
    assert expected <= numbers_from("experiments/results/baselines/baselines.csv", BASELINES_PAGE)
    assert f"{below} of {len(lines)} margins below 0 with their interval, from {ends[0]} to {ends[1]} |" in CLAIMS_PAGE


def certified(lines: list[dict[str, Any]]) -> str:
    return f"{sum(line['proven_status'] == 'CERTIFIED' for line in lines)} of {len(lines)}"


def margins(lines: list[dict[str, Any]]) -> str:
    margin, lower = fmean(line["proven_margin"] for line in lines), min(line["proven_lower"] for line in lines)
    return f"{margin:.3f}, at least {lower:.3f}"


def test_the_page_of_claims_quotes_the_protocols() -> None:
    phases = {phase: [line for line in committed("cifar100") if line["phase"] == phase] for phase in PHASES}
    information = fmean(line["teacher_information"] for line in phases["full"])
    margin, bound = margins(phases["full"]).split(", ")
    assert f"{certified(phases['full'])} seeds; margin {margin} of {information:.3f}, {bound} |" in CLAIMS_PAGE
    assert f"{certified(phases['rescue'])}; margin {margins(phases['rescue'])} |" in CLAIMS_PAGE
    alone = phases["no_align"]
    ends = f"{min(line['margin'] for line in alone):+.4f} to {max(line['margin'] for line in alone):+.4f}"
    most = f"witness information at most {max(line['witness_information'] for line in alone):.5f}"
    assert f"{certified(alone)} certified; margins from {ends}; {most} |" in CLAIMS_PAGE
    tiny = {phase: [line for line in committed("tiny_imagenet") if line["phase"] == phase] for phase in PHASES}
    counts = ", ".join(certified(tiny[phase]) for phase in ("full", "rescue", "no_align"))
    found = [fmean(line["margin"] for line in tiny[phase]) for phase in ("full", "rescue")]
    least = min(line["proven_lower"] for phase in ("full", "rescue") for line in tiny[phase])
    assert f"{counts}; margins {found[0]:.3f} and {found[1]:.3f}, at least {least:.3f} |" in CLAIMS_PAGE


def test_the_page_of_claims_quotes_the_other_studies() -> None:
    def of(witness: str, phase: str) -> list[dict[str, Any]]:
        lines = committed("witnesses_cifar100")
        return [line for line in lines if (line["witness"], line["phase"]) == (witness, phase)]

    heads = f"linear head {margins(of('head', 'full'))}; perceptron {margins(of('perceptron', 'full'))}"
    assert f"{heads}; without alignment both collapse" in CLAIMS_PAGE
    assert {certified(of(name, "guarded")) for name in ("simplex", "head", "perceptron")} == {"3 of 3"}
    assert f"3 of 3 for each witness; simplex {margins(of('simplex', 'guarded'))} |" in CLAIMS_PAGE
    margin, bound = margins(of("simplex", "prefit")).split(", ")
    assert f"{margin} after one epoch of training, {bound};" in CLAIMS_PAGE
    fitted = [line for line in committed("prefit") if line["aligned"]]
    quoted = [f"{fmean(line['proven_margin'] for line in fitted if line['kl_weight'] == k):.3f}" for k in (2, 4, 8)]
    least = min(line["proven_lower"] for line in fitted)
    assert f"after three epochs, {quoted[0]}, {quoted[1]} and {quoted[2]}, at least {least:.3f} |" in CLAIMS_PAGE
    stressed = [line for line in committed("stress") if line["kl_weight"] in (2, 4, 8)]
    aligned, plain = ([line for line in stressed if line["aligned"] is which] for which in (True, False))
    ends = f"{min(line['margin'] for line in aligned):.3f} to {max(line['margin'] for line in aligned):.3f}"
    assert all(line["status"] == "CERTIFIED" for line in aligned)
    assert not any(line["status"] == "CERTIFIED" for line in plain)
    shown = f"{len(aligned)} of {len(aligned)} certified, margins from {ends}; without alignment 0 of {len(plain)} |"
    assert shown in CLAIMS_PAGE
