"""The Gaussian-mixture teacher against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from certvae.datamodules import DigitsDataModule
from certvae.teachers import GaussianMixtureTeacher, TeacherCard


def digits() -> np.ndarray:
    data = DigitsDataModule()
    rows = data.splits["train"].numpy()
    return data.arrays.images[rows].reshape(len(rows), -1) / 255


def make(
    temperature: float = 1.0, floor: float = 0.0, covariance: str = "diag"
) -> tuple[GaussianMixtureTeacher, object]:
    rows = digits()
    pca = PCA(12, random_state=0).fit(rows)
    mixture = GaussianMixture(6, covariance_type=covariance, random_state=0, max_iter=20).fit(pca.transform(rows))
    variances = torch.as_tensor(mixture.covariances_)
    card = TeacherCard(6, temperature, floor, image_shape=(1, 8, 8), value_range=(0.0, 1.0))
    teacher = GaussianMixtureTeacher(
        card,
        center=torch.as_tensor(pca.mean_),
        projection=torch.as_tensor(pca.components_.T),
        log_weights=torch.as_tensor(mixture.weights_).log(),
        means=torch.as_tensor(mixture.means_),
        variances=variances if variances.ndim == 2 else variances[:, None].expand(6, 12),
    )
    return teacher, lambda x: mixture.predict_proba(pca.transform(x))


@pytest.mark.parametrize("covariance", ["diag", "spherical"])
def test_posterior_at_temperature_one_is_scikit_learns(covariance: str) -> None:
    teacher, reference = make(covariance=covariance)
    rows = digits()[:200]
    ours = teacher(torch.as_tensor(rows).view(-1, 1, 8, 8)).numpy()
    assert np.abs(ours - reference(rows)).max() < 1e-9  # type: ignore[operator]


def test_temperature_and_floor_are_what_the_formula_says() -> None:
    sharp, _ = make()
    soft, _ = make(temperature=3.0, floor=0.06)
    images = torch.as_tensor(digits()[:50]).view(-1, 1, 8, 8)
    log_joint = sharp(images).clamp(min=1e-300).log()
    expected = 0.94 * (log_joint / 3).softmax(dim=1) + 0.01
    assert torch.allclose(soft(images), expected, atol=1e-9)
    assert float(soft(images).min()) >= 0.01


def test_answers_do_not_depend_on_autocast_or_batch() -> None:
    teacher, _ = make(temperature=4.0)
    images = torch.as_tensor(digits()[:50]).float().view(-1, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(teacher(images), teacher(images))
        inside = teacher(images)
    assert torch.allclose(inside, torch.cat([teacher(part) for part in images.split(7)]), atol=1e-12)


def test_bad_tensors_are_refused() -> None:
    good = {
        "center": torch.zeros(4),
        "projection": torch.zeros(4, 2),
        "log_weights": torch.zeros(3),
        "means": torch.zeros(3, 2),
        "variances": torch.ones(3, 2),
    }
    for name, value, message in (
        ("means", torch.zeros(2, 2), r"`means` must have shape \(3, 2\)"),
        ("projection", torch.zeros(5, 2), "`projection` must have shape"),
        ("center", torch.full((4,), torch.nan), "`center` must be finite"),
        ("variances", torch.zeros(3, 2), "`variances` must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            GaussianMixtureTeacher(TeacherCard(3), **{**good, name: value})
    with pytest.raises(ValueError, match="`images` must have 4 values a row, got 5"):
        GaussianMixtureTeacher(TeacherCard(3), **good)(torch.zeros(2, 5))
