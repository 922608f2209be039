"""The images are those of the run: the teacher's surest rows, and what the trained weights decode."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from certvae.datamodules import DigitsDataModule
from certvae.report.images import EXAMPLES, Picture, components, first_inputs, load_run, model_pictures
from certvae.report.runs import read_run
from tests.plain_vae import UserVAE
from tests.runs import digits_teacher, small_vae

pytestmark = pytest.mark.slow


def pixels(picture: Picture) -> np.ndarray:
    content = base64.b64decode(picture.uri.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(content)))


def cell(picture: Picture, row: int, column: int) -> np.ndarray:
    return pixels(picture)[9 * row : 9 * row + 8, 9 * column : 9 * column + 8]


@pytest.mark.parametrize("batch_size", [7, 64, 300])
def test_examples_are_the_rows_that_the_teacher_is_surest_of(batch_size: int) -> None:
    data, teacher = DigitsDataModule(batch_size=batch_size), digits_teacher(4)
    rows = torch.from_numpy(data.arrays.images[data.splits["test"]])
    probs = teacher(rows.float() / 255).double()
    found = components(teacher, data, "test")
    assert [component.share for component in found] == pytest.approx(probs.mean(dim=0).tolist())
    for k, component in enumerate(found):
        for place, row in enumerate(probs[:, k].argsort(descending=True, stable=True)[:EXAMPLES]):
            shown = cell(component.picture, 0, place)
            same = probs[:, k] == probs[row, k]  # equally sure: any of them
            assert any(np.array_equal(shown, image[0]) for image in rows[same].numpy())


def test_labels_are_those_of_the_rows_that_a_component_wins() -> None:
    data, teacher = DigitsDataModule(), digits_teacher(4)
    rows = data.splits["test"]
    probs = teacher(torch.from_numpy(data.arrays.images[rows]).float() / 255)
    for k, component in enumerate(components(teacher, data, "test")):
        labels = data.arrays.labels[rows][(probs.argmax(dim=1) == k).numpy()]
        most, count = max(zip(*np.unique(labels, return_counts=True), strict=True), key=lambda pair: pair[1])
        name, share = component.labels.split(", ")[0].split(" ")
        assert count == np.unique(labels, return_counts=True)[1].max()
        assert share == f"({100 * count / len(labels):.0f}\xa0%)"
        assert (labels == int(name)).sum() == count, most


def test_of_many_components_the_most_used_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certvae.report.images.SHOWN", 3)
    teacher = digits_teacher(6)
    assert teacher.average is not None
    shown = [component.number for component in components(teacher, DigitsDataModule(), "val")]
    assert shown == sorted(teacher.average.argsort(descending=True)[:3].tolist())


def test_reconstructions_are_what_the_trained_weights_decode_from_the_mean(demo: Path) -> None:
    phase = read_run(demo, "demo").phases[0]
    model, data = load_run(phase, None)
    weights = torch.load(phase.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    inputs = first_inputs(data, "test")
    picture = model_pictures(model, inputs)[0]
    decoded = (255 * model.decoder(model(inputs[:8]).mean).clamp(0, 1)).round().byte()  # type: ignore[operator]
    assert np.array_equal(cell(picture, 0, 3), (255 * inputs[3, 0]).round().byte().numpy())
    assert np.abs(cell(picture, 1, 3).astype(int) - decoded[3, 0].numpy()).max() <= 1
    assert not np.array_equal(cell(picture, 1, 3), cell(picture, 2, 3))


def test_a_traversal_moves_one_coordinate_and_leaves_random_numbers_alone() -> None:
    model, inputs = small_vae().eval(), first_inputs(DigitsDataModule(), "val").float() / 255
    state = torch.random.get_rng_state()
    pictures = model_pictures(model, inputs)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(5)
    assert pictures == model_pictures(model, inputs)
    most = int(model(inputs).mean.var(dim=0).argmax())
    code = model(inputs[:1]).mean.detach().clone()
    code[0, most] = -3.0
    expected = (255 * model.decoder(code).clamp(0, 1)).round().byte()[0, 0]
    assert np.abs(cell(pictures[2], 0, 0).astype(int) - expected.numpy()).max() <= 1
    assert f"numbers {most + 1}," in pictures[2].alt


def test_large_images_are_shown_smaller_and_what_is_no_image_is_refused() -> None:
    from certvae.report.images import _shrunk

    assert _shrunk(torch.rand(2, 3, 200, 100)).shape == (2, 3, 64, 32)
    with pytest.raises(ValueError, match="are no images"):
        _shrunk(torch.rand(2, 5))


def test_another_model_than_ours_is_refused_for_it_is_not_known_how_it_decodes() -> None:
    with pytest.raises(TypeError, match="is a UserVAE and no certvae.VAE"):
        model_pictures(UserVAE(), torch.rand(2, 1, 8, 8))
