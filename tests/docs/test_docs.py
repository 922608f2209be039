"""The documentation is built without a warning, its blocks run, and what it says of numbers and tests is so."""

import csv
import importlib.util
import json
import math
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

import certvae
from certvae.callbacks import CertificateCallback, CertificateGuard, CollapseDiagnostics, ProbeCallback
from certvae.callbacks.certificate import LOGGED
from certvae.commands.lightning import run_lightning
from certvae.datamodules import DigitsDataModule
from tests.report.browser import browser
from tests.runs import digits_teacher, small_vae, trainer

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TRAINED = {"tutorial.md": 0.2, "guard.md": 0.3}  # slack of numbers that come from training
run_page = runpy.run_path(str(DOCS / "pages.py"))["run_page"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "blocks"),
    [
        ("tutorial.md", 11),
        ("mathematics.md", 7),
        ("limits.md", 1),
        ("python.md", 8),
        ("information.md", 2),
        ("codebooks.md", 4),
        ("guard.md", 4),
        ("text.md", 1),
    ],
)
def test_every_block_of_a_page_runs_and_prints_what_the_page_shows(tmp_path: Path, page: str, blocks: int) -> None:
    assert run_page(DOCS / page, tmp_path, TRAINED.get(page, 0.0)) == blocks


@pytest.mark.slow
def test_the_page_of_scvi_tools_runs_against_the_released_package(tmp_path: Path) -> None:
    pytest.importorskip("scvi", reason="pip install certvae[scvi]")
    assert run_page(DOCS / "scvi.md", tmp_path, 0.3) == 5


def test_a_wrong_number_or_word_on_a_page_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for shown in ("margin 1.31", "margin 1.3\nagain", "bound 1.3", "margin 2"):
        page.write_text(f"```python\nprint('margin 1.3')\n```\n```text\n{shown}\n```\n")
        with pytest.raises(AssertionError, match="which was not printed"):
            run_page(page, tmp_path)
    page.write_text("```shell\nfalse\n```\n")
    with pytest.raises(AssertionError, match="exit status 1"):
        run_page(page, tmp_path)


def test_every_test_of_a_statement_is_there_and_the_proofs_name_none() -> None:
    proofs = "".join((DOCS / page).read_text() for page in ("mathematics.md", "information.md", "codebooks.md"))
    assert "`tests/" not in proofs
    names = set(re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", (DOCS / "claims.md").read_text()))
    assert len(names) > 30
    for path, name in names:
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"


def test_every_row_of_a_table_stands_on_one_line() -> None:
    """Markdown ends a table at a line without a bar."""
    pages = [*DOCS.rglob("*.md"), *(ROOT / "experiments").rglob("*.md"), *ROOT.glob("*.md")]
    for page in pages:
        for number, line in enumerate(page.read_text().splitlines(), 1):
            assert not line.startswith("|") or line.rstrip().endswith("|"), f"{page}, line {number}"


def test_every_file_that_a_page_names_is_there() -> None:
    for page in DOCS.rglob("*.md"):
        for path in re.findall(r"(?<![\w/])((?:experiments|tests)/[\w./-]+)", page.read_text()):
            assert (ROOT / path.rstrip(".")).exists(), f"{page.name}: {path}"


FITS = [
    line.partition("#")[0].split()[1:]
    for page in (DOCS / "cli.md", DOCS / "distributed.md", ROOT / "README.md")
    for line in page.read_text().splitlines()
    if line.startswith("certvae fit --config")
]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", FITS, ids=" ".join)
def test_every_fit_that_a_page_names_is_understood(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        run_lightning([*arguments, "--print_config"])
    assert stop.value.code == 0
    assert "class_path: certvae" in capsys.readouterr().out


def of_full() -> dict[str, str]:
    """The line of CIFAR-100's seed 0 with alignment of the mean."""
    with open(ROOT / "experiments" / "results" / "cifar100_mean" / "cifar100_mean.csv") as file:
        return next(row for row in csv.DictReader(file) if row["phase"] == "full" and row["seed"] == "0")


def test_the_limits_quote_the_committed_results() -> None:
    text, row = (DOCS / "limits.md").read_text(), of_full()
    for name in (
        "teacher_information",
        "margin",
        "margin_lower",
        "rate",
        "channel_margin",
        "information_lower",
        "information_upper",
    ):
        assert f"{float(row[name]):.3f}" in text, name


def test_studies_and_limits_quote_the_committed_widths_on_rows_that_no_search_compared() -> None:
    with open(ROOT / "experiments" / "results" / "statistics" / "width.csv") as file:
        rows = {(row["dataset"], row["method"]): row for row in csv.DictReader(file)}
    studies, limits = (DOCS / "studies.md").read_text(), (DOCS / "limits.md").read_text()
    for dataset, name in (
        ("digits", "digits, 300"),
        ("cifar100", "CIFAR-100, 5,000"),
        ("tiny_imagenet", "Tiny-ImageNet, 2,000"),
    ):
        bounds = [rows[dataset, method]["margin_lower"] for method in ("normal", "betting", "bernstein", "hoeffding")]
        cells = [f"{float(value):.3f}" for value in (rows[dataset, "betting"]["margin"], *bounds)]
        assert f"| {name} | {' | '.join(cells)} |" in studies
        assert int(rows[dataset, "normal"]["rows"]) == int(name.split(", ", 1)[1].replace(",", ""))
    for quoted in ("calibrated_channel_margin_lower", "betting_calibrated_lower", "bernstein_calibrated_lower"):
        assert f"{float(of_full()[quoted]):.3f}" in limits, quoted


@pytest.mark.slow
def test_the_table_of_keys_is_what_a_run_logs(tmp_path: Path) -> None:
    page = (DOCS / "loggers.md").read_text()
    rows = re.findall(
        r"^\| (`(?:certificate|probe|diagnostics)/.*?`) \| (?:nats|1 or 0|count|loss)", page, flags=re.MULTILINE
    )
    told = {key for row in rows for key in re.findall(r"`([\w/]+)`", row)}
    callbacks = [CertificateCallback(), CertificateGuard(0.3), ProbeCallback(), CollapseDiagnostics()]
    run = trainer(tmp_path, callbacks=callbacks)
    run.fit(small_vae(digits_teacher()), datamodule=DigitsDataModule(subset=256))
    assert told <= set(run.callback_metrics)
    assert {f"certificate/{name}" for name in LOGGED} <= told


def rate_of_a_linear_vae(eigenvalues: list[float], beta: float, variance: float, latent_dim: int = 2) -> float:
    """Rate at the optimum of a linear VAE, found by gradients of its loss in closed form."""
    torch.manual_seed(0)
    covariance = torch.diag(torch.tensor(eigenvalues, dtype=torch.float64))
    decoder, encoder = (0.3 * torch.randn(2, len(eigenvalues), latent_dim, dtype=torch.float64)).unbind()
    log_variance = torch.zeros(latent_dim, dtype=torch.float64)
    parameters = [value.requires_grad_() for value in (decoder, encoder, log_variance)]
    optimizer = torch.optim.LBFGS(parameters, max_iter=2000, line_search_fn="strong_wolfe", tolerance_change=1e-15)

    def rate() -> Tensor:
        mean = torch.trace(encoder.T @ covariance @ encoder)
        return 0.5 * (mean + (log_variance.exp() - 1 - log_variance).sum())

    def loss() -> Tensor:
        optimizer.zero_grad()
        rest = torch.eye(len(eigenvalues), dtype=torch.float64) - decoder @ encoder.T
        error = torch.trace(rest @ covariance @ rest.T) + (decoder**2).sum(dim=0) @ log_variance.exp()
        value = error / (2 * variance) + beta * rate()
        value.backward()
        return value

    optimizer.step(loss)
    return rate().item()


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.9, 3.1, 8.0])
def test_a_linear_vae_collapses_where_the_page_says(beta: float) -> None:
    """Full collapse at ``beta * s2`` above the largest eigenvalue, 1.5; below it the rate of the page's theorem."""
    eigenvalues, variance = [1.5, 0.9, 0.2], 0.5
    tau = beta * variance
    expected = sum(0.5 * math.log(value / tau) for value in eigenvalues[:2] if value > tau)
    assert rate_of_a_linear_vae(eigenvalues, beta, variance) == pytest.approx(expected, abs=1e-5)
    assert (expected == 0) == (tau > eigenvalues[0])


def test_the_plugin_margin_is_below_the_margin_by_what_the_page_says() -> None:
    """``0 <= E KL(That || Tbar) <= sum_k Var(T_k) / (n Tbar_k) <= (K - 1) / n``, and about half of the second."""
    rows, batch = 4096, 32
    generator = torch.Generator().manual_seed(0)
    teacher = (3 * torch.randn(rows, 10, generator=generator, dtype=torch.float64)).softmax(dim=1)
    mean = teacher.mean(dim=0)
    drawn = teacher[torch.randint(rows, (2000, batch), generator=generator)].mean(dim=1)
    price = float((drawn * (drawn / mean).log()).sum(dim=1).mean())
    most = float((teacher.var(dim=0, unbiased=False) / mean).sum() / batch)
    assert 0 < price < most < 9 / batch
    assert price == pytest.approx(most / 2, rel=0.1)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation's pages, built without a warning."""
    if importlib.util.find_spec("sphinx") is None:
        pytest.skip("sphinx is not installed: pip install .[docs]")
    folder = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(folder / "trees")]
    result = subprocess.run([*command, str(DOCS), str(folder / "html")], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder / "html"


@pytest.mark.slow
def test_the_documentation_is_built_without_a_warning_and_needs_no_script_for_formulas(built: Path) -> None:
    page = (built / "mathematics.html").read_text()
    assert page.count("<math") > 100
    reference = (built / "api" / "certvae.html").read_text()
    assert [name for name in certvae.__all__ if f'id="certvae.{name}"' not in reference] == []
    assert not re.findall(r'<(?:script|link)[^>]+(?:src|href)="https?://[^"]+', page)


CUT = """
[...document.querySelectorAll("pre")].filter(block => {
  return block.scrollWidth > block.clientWidth || block.getBoundingClientRect().right > innerWidth
}).map(block => block.textContent.slice(0, 60))
"""

# Formulas that end beyond the window, and do not scroll.
OFF = """
[...document.querySelectorAll("math")].filter(formula => {
  return formula.getBoundingClientRect().right > innerWidth && !formula.closest(".math-wide, .math-block, table")
}).map(formula => formula.textContent.slice(0, 60))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (390, "dark")])
def test_no_code_is_cut_off_and_no_page_is_wider_than_its_window(
    built: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    blocks = 0
    with browser(tmp_path / "profile") as tab:
        for path in sorted(built.glob("*.html")):
            tab.open(path, width, scheme)
            assert tab.evaluate(CUT) == [], path.name
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), path.name
            assert tab.evaluate(OFF) == [], path.name
            blocks += tab.evaluate("document.querySelectorAll('pre').length")
    assert blocks > 100


@pytest.mark.slow
def test_code_has_a_copy_button_and_printed_text_has_none(built: Path, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as tab:
        tab.open(built / "tutorial.html", 1400)
        assert tab.evaluate("document.querySelectorAll('.highlight-python button.copybtn').length") > 5
        assert tab.evaluate("document.querySelectorAll('.highlight-text button.copybtn').length") == 0


def test_versions_are_published_beside_one_another(tmp_path: Path) -> None:
    publish = runpy.run_path(str(DOCS / "publish.py"))["publish"]
    build, site = tmp_path / "build", tmp_path / "site"
    build.mkdir()
    (build / "index.html").write_text("first")
    assert publish(build, site, "main") == ["main"]
    assert "url=main/" in (site / "index.html").read_text()
    for version in ("v0.9.0", "v0.10.0"):
        publish(build, site, version)
    (build / "index.html").write_text("second")
    assert publish(build, site, "main") == ["main", "v0.10.0", "v0.9.0"]
    assert json.loads((site / "versions.json").read_text()) == ["main", "v0.10.0", "v0.9.0"]
    assert "url=v0.10.0/" in (site / "index.html").read_text()
    assert (site / "main" / "index.html").read_text() == "second"
    assert (site / "v0.9.0" / "index.html").read_text() == "first"


def test_only_a_build_of_a_release_or_of_main_is_published(tmp_path: Path) -> None:
    publish = runpy.run_path(str(DOCS / "publish.py"))["publish"]
    with pytest.raises(ValueError, match="`version` must be 'main' or a tag like 'v1.2.3', got '../up'"):
        publish(tmp_path, tmp_path / "site", "../up")
    with pytest.raises(ValueError, match="`build` must hold index.html"):
        publish(tmp_path, tmp_path / "site", "main")


def test_the_workflow_publishes_main_and_every_release() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "docs.yml").read_text())
    assert workflow[True] == {"push": {"branches": ["main"], "tags": ["v*"]}}  # YAML reads `on` as True
    commands = [step.get("run", "") for step in workflow["jobs"]["publish"]["steps"]]
    assert 'python docs/publish.py build/docs site "$GITHUB_REF_NAME"' in commands
