"""What a notebook shows of certificates: tables of HTML that hold nothing but text, and figures of pyplot."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure

from certvae import Certificate, certify
from certvae.certificate.history import History, append_history, read_history
from certvae.theory.bracket import information_bracket
from tests.conftest import random_logits, random_probs


@pytest.fixture
def certificate() -> Certificate:
    teacher = random_probs(400, 4, seed=0)
    made = certify(teacher, teacher.log(), rate=torch.ones(400), channel_logits=random_logits(400, 4, seed=0)[None])
    mean = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    return replace(made, information=information_bracket(mean, torch.zeros(400, 3)))


@pytest.fixture(autouse=True)
def closed() -> Any:
    yield
    pyplot.close("all")


def test_the_table_holds_what_the_terminal_prints_and_what_to_do(certificate: Certificate) -> None:
    html = certificate._repr_html_()
    for name, said in certificate.lines():
        assert f"{name}</th>" in html
        assert said.strip().replace("'", "&#x27;") in html
    for said in (str(certificate.status), str(certificate.reading), certificate.diagnose().cure):
        assert said.replace("'", "&#x27;") in html


def test_text_of_a_file_stays_text(certificate: Certificate) -> None:
    html = replace(certificate, leaks=["<script>alert(1)</script>"])._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_a_certificate_draws_margins_and_what_is_carried(certificate: Certificate) -> None:
    figure, axes = certificate.plot()
    assert figure.number in pyplot.get_fignums()  # a notebook shows it
    assert [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()] == [
        "margin, on the mean",
        "margin, on draws",
        "a draw carries",
    ]
    marks = [list(cast(Any, line.get_xdata())) for line in axes.lines if line.get_marker() == "|"]
    assert marks[0] == [certificate.margin_lower, certificate.margin]
    assert marks[2] == [certificate.information_lower, certificate.information_upper]
    assert axes.get_title() == f"{certificate.reading}, {certificate.status}".replace("_", " ")


def test_an_infinite_bound_is_drawn_down_to_the_end_of_the_axes(certificate: Certificate) -> None:
    bare = replace(
        certificate, margin_lower=-math.inf, channel_margin=None, channel_margin_lower=None, information=None
    )
    _, axes = bare.plot(Figure().subplots())
    assert len(axes.get_yticklabels()) == 1
    assert cast(Any, axes.lines[0].get_xdata())[0] == axes.get_xlim()[0]


def test_a_history_draws_its_epochs(certificate: Certificate, tmp_path: Path) -> None:
    for look in (1, 2, 3):
        append_history(tmp_path / "history.jsonl", replace(certificate, provenance={"look": look, "epoch": look + 4}))
    history = read_history(str(tmp_path / "history.jsonl"))
    figure, axes = history.plot()
    assert figure.number in pyplot.get_fignums()
    assert list(cast(Any, axes.lines[1].get_xdata())) == [5, 6, 7]
    own = Figure().subplots()
    assert history.plot(own)[1] is own
    with pytest.raises(ValueError, match="must hold at least one certificate"):
        History().plot()
