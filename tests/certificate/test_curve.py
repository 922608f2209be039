"""The curve of a run: what it keeps, and its picture."""

import numpy as np
import pytest
import torch

from certvae import Certificate, certify
from certvae.certificate.curve import Curve
from certvae.certificate.figures import certificate_figure, pixels


def certificate(strength: float) -> Certificate:
    """Of a witness that knows a teacher of 300 rows and 3 components as well as ``strength`` says."""
    teacher = torch.eye(3, dtype=torch.float64).repeat(100, 1) * 0.9 + 0.1 / 3
    return certify(teacher, strength * teacher.log())


def curve(*looks: tuple[int, float]) -> Curve:
    made = Curve(safety_margin=0.05)
    for epoch, strength in looks:
        made.add(certificate(strength), epoch)
    return made


def test_best_first_and_lost_are_those_of_the_looks() -> None:
    made = curve((0, 0.0), (1, 0.5), (2, 1.0), (3, 0.0))
    assert made.best is not None
    assert made.best.epoch == 2
    assert made.best.margin == pytest.approx(certificate(1.0).margin)
    assert made.first_certified_epoch == 1
    assert made.lost
    assert not curve((0, 1.0), (1, 0.0), (2, 0.0)).lost
    assert not curve((0, 0.0)).lost


def test_a_curve_without_certified_or_complete_look_has_none() -> None:
    made = curve((0, 0.0))
    assert made.first_certified_epoch is None
    partial = certificate(1.0)
    partial.status = type(partial.status).PARTIAL
    made = Curve(0.05)
    made.add(partial, 0)
    assert made.best is None


def test_a_restarted_run_replaces_its_looks() -> None:
    made = curve((0, 0.0), (1, 1.0), (2, 1.0), (1, 0.5))
    assert [point.epoch for point in made.points] == [0, 1, 1]
    assert curve((0, 0.0), (1, 1.0), (0, 0.5)).points == curve((0, 0.0), (0, 0.5)).points


def test_several_looks_of_an_epoch_share_it() -> None:
    assert curve((0, 1.0), (1, 1.0), (2, 1.0)).positions() == [0, 1, 2]
    assert curve((0, 1.0), (0, 1.0), (1, 1.0), (1, 1.0)).positions() == [-0.5, 0, 0.5, 1]


def test_the_state_is_plain_and_complete() -> None:
    made, other = curve((0, 0.0), (1, 1.0)), Curve(0.05)
    state = made.state()
    assert all(isinstance(value, int | float | str) for point in state for value in point)
    other.restore(state)
    assert other.points == made.points
    assert type(state[0][1]) is str


@pytest.mark.parametrize("looks", [1, 30])
def test_the_picture_shades_the_region_below_the_threshold(looks: int) -> None:
    made = curve(*((epoch, epoch / 30) for epoch in range(looks)))
    figure = certificate_figure(made, "a title")
    (axes,) = figure.axes
    region = np.asarray(axes.collections[0].get_paths()[0].vertices)
    assert region[:, 1].max() == pytest.approx(made.points[0].teacher_information - 0.05)
    assert region[:, 1].min() == 0
    threshold, loss = axes.lines
    assert np.asarray(threshold.get_ydata()).tolist() == [point.teacher_information for point in made.points]
    assert np.asarray(loss.get_ydata()).tolist() == [point.alignment_loss for point in made.points]
    image = pixels(figure)
    assert image.shape == (400, 640, 3)
    assert image.std() > 0
