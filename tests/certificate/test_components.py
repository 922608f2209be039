"""The components of a certificate: which are kept, what they are called, and how they are drawn."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from certvae import Certificate, certify
from certvae.certificate.components import best_and_worst, component_names, kept_components, lost_components
from certvae.certificate.figures import components_figure, pixels
from certvae.theory.sums import ComponentMargin

OLD = Path(__file__).parent / "version_0_1_0" / "certificate.json"


def certificate(*margins: float, **provenance: Any) -> Certificate:
    """Of components with these parts of the margin and 0.2 nats of information each."""
    teacher = torch.eye(len(margins), dtype=torch.float64) * 0.9 + 0.1 / len(margins)
    parts = [ComponentMargin(1 / len(margins), margin, 0.2) for margin in margins]
    return replace(certify(teacher, teacher.log()), components=parts, provenance=provenance)


def line(made: Certificate) -> str:
    (found,) = [text.strip() for text in str(made).splitlines() if text.startswith("  components ")]
    return " ".join(found.split())


def test_the_printed_line_counts_what_is_kept_and_names_the_three_least() -> None:
    said = line(certificate(0.18, -0.19, 0.1, 0.05, -0.01, 0.15))
    assert said == (
        "components 4 of 6 above 0; least: component 1 (-0.19 of 0.2), component 4 (-0.01 of 0.2), "
        "component 3 (0.05 of 0.2)"
    )


def test_a_component_that_adds_nothing_is_neither_kept_nor_lost() -> None:
    made = certificate(0.1, 0.0, -0.1)
    assert (kept_components(made), lost_components(made)) == ([0], [2])


def test_names_are_those_of_the_provenance_and_classes_are_called_classes() -> None:
    assert component_names(certificate(0.1, 0.2)) == ["component 0", "component 1"]
    assert component_names(certificate(0.1, 0.2, teacher={"kind": "labels"})) == ["class 0", "class 1"]
    named = certificate(0.1, 0.2, teacher={"kind": "labels"}, component_names=["cat", "dog"])
    assert named.component_names == ["cat", "dog"]
    assert "least: cat (0.1 of 0.2), dog (0.2 of 0.2)" in line(named)


@pytest.mark.parametrize("names", [["cat"], "ab", ["cat", ""], ["cat", "x" * 101], ["cat", "\x1b[2J"], ["cat", 1], 5])
def test_names_that_no_teacher_can_have_are_refused_when_a_file_is_read(tmp_path: Path, names: Any) -> None:
    path = certificate(0.1, 0.2, component_names=names).save(tmp_path / "certificate.json")
    with pytest.raises(ValueError, match="`component_names` in the provenance must be 2 printable texts"):
        Certificate.load(path)


def test_a_named_certificate_is_read_back_as_it_was(tmp_path: Path) -> None:
    made = certificate(0.1, 0.2, component_names=["猫", "dog"])
    assert Certificate.load(made.save(tmp_path / "certificate.json")).component_names == ["猫", "dog"]


def test_of_many_components_the_best_and_the_worst_are_shown_in_order() -> None:
    margins = np.random.default_rng(0).permutation(100).tolist()
    best, worst = best_and_worst(certificate(*margins))
    assert [margins[place] for place in best] == list(range(99, 79, -1))
    assert [margins[place] for place in worst] == list(range(19, -1, -1))
    assert best_and_worst(certificate(*margins[:40]))[1] == []


def bars(figure: Figure) -> dict[str, list[float]]:
    """Widths of the bars by the label of their series, from top to bottom."""
    (axes,) = figure.axes
    found = dict[str, list[float]]()
    for container in axes.containers:
        found[str(container.get_label())] = [bar.get_width() for bar in container]
    return found


def test_the_figure_has_a_bar_of_margin_on_one_of_information_for_each() -> None:
    figure = components_figure(certificate(0.1, -0.05, 0.15, component_names=["a", "$b_{$", "c" * 60]), "a title")
    assert bars(figure) == {"teacher information": [0.2] * 3, "margin, kept": [0.15, 0.1], "margin, lost": [-0.05]}
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c" * 27 + "…", "a", "$b_{$"]
    assert np.asarray(axes.lines[0].get_xdata()).tolist() == [-0.05]  # the cross of what is lost
    assert pixels(figure).std() > 0


def test_the_figure_of_many_says_how_many_it_leaves_out() -> None:
    figure = components_figure(certificate(*np.linspace(-0.1, 0.1, 57).tolist()))
    assert sum(len(series) for name, series in bars(figure).items() if name != "teacher information") == 40
    assert "… 17 between …" in [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_a_certificate_of_version_0_1_has_no_components_to_print_or_draw() -> None:
    old = Certificate.load(OLD)
    assert "components   " not in str(old)
    with pytest.raises(ValueError, match="`certificate` must have components; files of version 0.1 have none"):
        components_figure(old)
