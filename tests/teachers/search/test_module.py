"""The search: its principal components and its mixtures are scikit-learn's, whatever the batches."""

import csv
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from torch.utils.data import DataLoader

from certvae import TeacherSearch, load_teacher
from certvae.datamodules import DigitsDataModule
from certvae.teachers.search.em import MixtureEM
from certvae.teachers.search.module import TeacherSearchError
from certvae.teachers.search.pca import StreamingPCA
from certvae.teachers.search.selection import CandidateRow, SelectionCriteria, choose
from tests.callbacks.test_unchanged_runs import streams
from tests.plain_vae import plain_loader
from tests.runs import digits_teacher, trainer
from tests.teachers.test_mixture import digits

pytestmark = pytest.mark.slow


def streamed(rows: np.ndarray, target: Any, batch: int) -> None:
    for part in torch.as_tensor(rows, dtype=torch.float64).split(batch):
        target.accumulate(part)
    target.step(target.sums)


def quiet(tmp_path: Path, **arguments: Any) -> Trainer:
    return trainer(tmp_path, **{"max_epochs": -1, **arguments})


def search(tmp_path: Path, batch_size: int = 512, **arguments: Any) -> TeacherSearch:
    options: dict[str, Any] = {"components": (8,), "temperatures": (2.0, 4.0), "pca_dim": 10, "em_iterations": 15}
    module = TeacherSearch(**{**options, "initializations": 2, "seed": 0, "output_dir": str(tmp_path), **arguments})
    quiet(tmp_path).fit(module, datamodule=DigitsDataModule(batch_size=batch_size))
    return module


def test_streaming_pca_reaches_scikit_learns() -> None:
    rows = digits()
    pca = StreamingPCA(64, 8, 16, torch.Generator().manual_seed(0))
    for _ in range(12):
        streamed(rows, pca, batch=100)
    reference = PCA(8).fit(rows)
    biased = reference.explained_variance_ * (len(rows) - 1) / len(rows)
    assert np.allclose(pca.eigenvalues.numpy(), biased, rtol=1e-6)
    overlap = np.abs((reference.components_ * pca.projection.numpy().T).sum(axis=1))
    assert np.allclose(overlap, 1, atol=1e-5)
    with pytest.raises(ValueError, match="`rank` must be between 1 and the 5 values of a row, got 6"):
        StreamingPCA(5, 6)


@pytest.mark.parametrize(("ours", "theirs"), [("diagonal", "diag"), ("spherical", "spherical")])
def test_em_reaches_scikit_learns_likelihood_from_the_same_start(ours: str, theirs: str) -> None:
    """To 1e-3 nats a row, on real digits; ten iterations of each."""
    rows = PCA(12, random_state=0).fit_transform(digits())
    em = MixtureEM.from_sample(torch.as_tensor(rows[:400]), 7, ours, seed=0)
    weights, means, precisions = em.log_weights.exp().numpy(), em.means.numpy(), 1 / em.variances.numpy()
    reference = GaussianMixture(
        7,
        covariance_type=theirs,
        weights_init=weights / weights.sum(),
        means_init=means,
        precisions_init=precisions if ours == "diagonal" else precisions[:, 0],
        tol=0,
        max_iter=10,
        reg_covar=1e-6,
    )
    with pytest.warns(UserWarning, match="did not converge"):
        reference.fit(rows)
    for _ in range(10):
        streamed(rows, em, batch=130)
    likelihood = float(em.log_joint(torch.as_tensor(rows)).logsumexp(dim=1).mean())
    assert likelihood == pytest.approx(reference.score(rows), abs=1e-3)
    assert np.allclose(em.means.numpy(), reference.means_, atol=1e-6)


def test_em_never_lowers_the_likelihood() -> None:
    rows = PCA(12, random_state=0).fit_transform(digits())
    em = MixtureEM.from_sample(torch.as_tensor(rows[:300]), 5, "diagonal", seed=1, variance_floor=1e-9)
    likelihoods = []
    for _ in range(25):
        streamed(rows, em, batch=400)
        likelihoods.append(em.log_likelihood)
    assert em.restarted == 0
    assert min(np.diff(likelihoods)) > -1e-9


def test_an_empty_component_is_restarted_and_used() -> None:
    rows = PCA(6, random_state=0).fit_transform(digits())
    start = MixtureEM.from_sample(torch.as_tensor(rows[:300]), 4, "diagonal", seed=1)
    means = start.means.clone()
    means[2] = 1e4
    em = MixtureEM(start.log_weights, means, start.variances)
    for _ in range(10):
        streamed(rows, em, batch=500)
    assert em.restarted == 1
    assert float(em.log_weights.exp().min()) > 0.02
    assert bool(em.means.isfinite().all())


def test_bad_mixtures_are_refused() -> None:
    with pytest.raises(ValueError, match="`covariance` must be one of diagonal, spherical"):
        MixtureEM(torch.zeros(1), torch.zeros(1, 1), torch.ones(1, 1), "full")
    with pytest.raises(ValueError, match="4 components needs as many rows, got 3"):
        MixtureEM.from_sample(torch.zeros(3, 2), 4, "diagonal", 0)


def test_any_batch_size_gives_the_same_teacher(tmp_path: Path) -> None:
    one, other = search(tmp_path / "a", batch_size=64), search(tmp_path / "b", batch_size=1000)
    assert one.teacher is not None
    assert other.teacher is not None
    for name, value in one.teacher.tensors().items():
        assert torch.allclose(value, other.teacher.tensors()[name], atol=1e-7), name
    for left, right in zip(one.rows, other.rows, strict=True):
        assert left.information_held_out == pytest.approx(right.information_held_out, abs=1e-8)


def test_what_the_table_says_of_the_chosen_teacher_is_true(tmp_path: Path) -> None:
    module, data = search(tmp_path), DigitsDataModule()
    teacher = load_teacher(tmp_path / "teacher.safetensors")
    chosen = next(row for row in module.rows if row.chosen)
    for split, value in (("train", chosen.information_train), ("val", chosen.information_held_out)):
        probs = torch.cat([teacher(batch[0].float() / 255) for batch in data.loader(split)])
        information = (probs * (probs.log() - probs.mean(dim=0).log())).sum(dim=1).mean()
        assert float(information) == pytest.approx(value, abs=1e-8)
    remeasured = load_teacher(tmp_path / "teacher.safetensors").measure(data.loader("train"))
    assert remeasured.card.information_train == pytest.approx(teacher.card.information_train, abs=1e-9)
    assert remeasured.card.energy == pytest.approx(teacher.card.energy, rel=1e-8)
    assert torch.allclose(remeasured.measured_average(), teacher.measured_average())
    assert teacher.card.fingerprint == data.fingerprint
    assert teacher.card.choice is not None
    assert "most held-out information" in teacher.card.choice
    eigenvalue = float(np.linalg.eigvalsh(np.cov(digits().T, bias=True))[-1])
    assert teacher.card.largest_eigenvalue == pytest.approx(eigenvalue, rel=1e-6)


def test_the_table_lists_every_candidate(tmp_path: Path) -> None:
    search(tmp_path, components=(4, 8), covariances=("diagonal", "spherical"))
    with open(tmp_path / "candidates.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2 * 2
    assert sum(row["chosen"] == "True" for row in rows) == 1
    best = max(
        (row for row in rows if row["within_bounds"] == "True"), key=lambda row: float(row["information_held_out"])
    )
    assert best["chosen"] == "True"


def test_held_out_rows_are_never_used_to_fit(tmp_path: Path) -> None:
    """Other held-out images leave every fitted tensor bit for bit the same."""

    class OtherHeldOut(DigitsDataModule):
        def load(self) -> Any:
            arrays = super().load()
            images = arrays.images.copy()
            images[arrays.num_train :] = 255 - images[arrays.num_train :]
            return replace(arrays, images=images)

    options: dict[str, Any] = {"components": (4,), "temperatures": (3.0,), "initializations": 1, "em_iterations": 5}
    criteria = SelectionCriteria(max_energy=1e6, max_use=1.0, min_use=0.0, max_drift=1e6)
    teachers = []
    for name, data in (("a", DigitsDataModule()), ("b", OtherHeldOut())):
        module = TeacherSearch(**options, pca_dim=8, seed=0, criteria=criteria, output_dir=str(tmp_path / name))
        torch.manual_seed(0)  # the order of the training rows
        quiet(tmp_path).fit(module, datamodule=data)
        assert module.teacher is not None
        teachers.append(module.teacher)
    for name, value in teachers[0].tensors().items():
        assert torch.equal(value, teachers[1].tensors()[name]), name
    assert teachers[0].card.information_held_out != teachers[1].card.information_held_out


def row(**changes: Any) -> CandidateRow:
    base = CandidateRow(4, "diagonal", 0, 2.0, -1.0, 1.0, 1.0, 5.0, 0.1, 0.3, 0.01)
    return replace(base, **changes)


def test_the_choice_keeps_every_bound_and_marks_the_front() -> None:
    rows = [
        row(information_held_out=0.5, energy=2.0),
        row(information_held_out=0.9, energy=9.0),
        row(information_held_out=0.8, energy=9.5),
        row(information_held_out=2.0, energy=11.0),
        row(information_held_out=3.0, smallest_use=0.001),
        row(information_held_out=3.1, largest_use=0.9),
        row(information_held_out=3.2, drift=0.2),
    ]
    marked, best = choose(rows, SelectionCriteria())
    assert best == 1
    assert [item.within_bounds for item in marked] == [True, True, True, False, False, False, False]
    assert not marked[2].on_front
    assert marked[0].on_front
    assert choose(rows[3:], SelectionCriteria())[1] is None


def test_where_no_teacher_meets_the_criteria_it_says_so_and_leaves_the_table(tmp_path: Path) -> None:
    with pytest.raises(TeacherSearchError, match="none of 4 candidates meets the criteria"):
        search(tmp_path, criteria=SelectionCriteria(max_energy=1e-3))
    assert (tmp_path / "candidates.csv").is_file()
    assert not (tmp_path / "teacher.safetensors").exists()


def test_too_few_epochs_are_refused_before_the_first(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`max_epochs` must be -1 or at least 23"):
        quiet(tmp_path, max_epochs=3).fit(
            TeacherSearch(em_iterations=15, output_dir=str(tmp_path)), datamodule=DigitsDataModule()
        )


def test_a_search_on_a_part_of_the_data_or_without_each_validation_is_refused(tmp_path: Path) -> None:
    for options, message in (
        ({"limit_train_batches": 1}, "`limit_train_batches` would fit"),
        ({"check_val_every_n_epoch": 2}, "`check_val_every_n_epoch` must be 1"),
    ):
        with pytest.raises(ValueError, match=message):
            quiet(tmp_path, **options).fit(TeacherSearch(output_dir=str(tmp_path)), datamodule=DigitsDataModule())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"components": (1,)}, "`components` must hold numbers of at least 2"),
        ({"components": ()}, "`components`"),
        ({"covariances": ("full",)}, "`covariances` must be among diagonal, spherical"),
        ({"temperatures": (0.0,)}, "`temperatures` must be positive"),
        ({"floor": 0.0}, "`floor` must be above 0"),
        ({"em_iterations": 0}, "must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TeacherSearch(**arguments)


def test_bad_criteria_are_refused() -> None:
    with pytest.raises(ValueError, match="`max_energy` and `max_drift` must be positive"):
        SelectionCriteria(max_energy=0)
    with pytest.raises(ValueError, match=r"`min_use` and `max_use` must lie in \[0, 1\]"):
        SelectionCriteria(max_use=2)


def test_a_search_leaves_every_random_stream_and_does_not_depend_on_one(tmp_path: Path) -> None:
    """With batches without an index, whose shuffled order the sample for the starts would follow."""
    rows = torch.from_numpy(digits()).float()
    teachers = []
    for seed in (1, 2):
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)  # noqa: NPY002
        before = streams()
        train: Any = DataLoader(rows[:900], 64, shuffle=True)  # type: ignore[arg-type]
        val: Any = DataLoader(rows[900:], 64)  # type: ignore[arg-type]
        options: dict[str, Any] = {"components": (4,), "temperatures": (2.0,), "pca_dim": 8, "em_iterations": 5}
        module = TeacherSearch(**options, sample_size=200, seed=3, output_dir=str(tmp_path))
        teachers.append(module.search(train, val))
        assert streams() == before
    for name, value in teachers[0].tensors().items():
        assert torch.equal(value, teachers[1].tensors()[name]), name


def test_measuring_a_teacher_leaves_every_random_stream(tmp_path: Path) -> None:
    teacher, before = digits_teacher(), streams()

    def draws(batch: Any) -> Any:
        random.random(), np.random.rand()  # noqa: NPY002
        return batch[0] + 0 * torch.rand(1)

    teacher.measure(plain_loader(shuffle=True), images=draws)
    assert streams() == before
