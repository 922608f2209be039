"""Compiled modules: the hook is there before the compiler looks, and no parameter gets another name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.plain_vae import UserVAE, expected, measured, plain_loader, watch
from tests.runs import trainer

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(way: str, backend: str) -> tuple[UserVAE, Any]:
    """A model, and what is given to the trainer; ``eager`` and ``aot_eager`` need no C++ compiler."""
    torch.manual_seed(0)
    model = UserVAE()
    if way == "whole":
        return model, torch.compile(model, backend=backend)
    if way == "in place":
        model.encoder.compile(backend=backend)
    if way == "replaced":
        model.encoder = torch.compile(model.encoder, backend=backend)  # type: ignore[assignment]
    return model, model


@pytest.mark.parametrize(
    ("way", "latents", "backend", "prefix"),
    [
        ("whole", "encoder.body:chunk", "aot_eager", ""),
        ("in place", "encoder", "aot_eager", ""),
        ("in place", "encoder.body:chunk", "eager", ""),
        ("replaced", "encoder", "eager", "_orig_mod."),
        ("replaced", "encoder.body:chunk", "aot_eager", "_orig_mod."),
    ],
)
def test_a_compiled_model_is_measured_by_a_path(
    tmp_path: Path, way: str, latents: str, backend: str, prefix: str
) -> None:
    """Of the three ways only a replaced submodule renames parameters; the callback adds nothing to any."""
    before = watch(latents=latents)
    model, given = compiled(way, backend)
    runner = trainer(tmp_path, max_epochs=2, callbacks=[before])
    runner.fit(given, plain_loader(), plain_loader())
    assert measured(before).margin == pytest.approx(expected(model).margin, abs=1e-5)
    after = watch(latents=latents)
    for callback, run in ((before, runner.validate), (after, trainer(tmp_path, callbacks=[after]).test)):
        run(given, plain_loader(70), verbose=False)
        assert measured(callback).margin == pytest.approx(expected(model, plain_loader(70)).margin, abs=1e-5)
    names = [f"encoder.{prefix}body.weight", f"encoder.{prefix}body.bias", "decoder.weight", "decoder.bias"]
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("way", ["whole", "in place"])
def test_watched_and_unwatched_compiled_models_train_to_the_same_bits(tmp_path: Path, way: str) -> None:
    found = []
    for callbacks in ([], [watch(channel_samples=3)]):
        torch.compiler.reset()
        model, given = compiled(way, "eager")
        trainer(tmp_path, max_epochs=2, callbacks=callbacks).fit(given, plain_loader(64), plain_loader(32))
        found.append(model.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_code_compiled_before_there_was_a_callback_is_not_mistaken_for_a_missing_code(tmp_path: Path) -> None:
    """It does not know the hook; the error says what to do, and that helps."""
    _, given = compiled("whole", "eager")
    trainer(tmp_path).validate(given, plain_loader(32), verbose=False)
    callback = watch()
    runner = trainer(tmp_path, callbacks=[callback])
    with pytest.raises(ValueError, match=r"compiled and run before needs torch.compiler.reset\(\) first"):
        runner.validate(given, plain_loader(32), verbose=False)
    torch.compiler.reset()
    runner.validate(given, plain_loader(32), verbose=False)
    assert measured(callback).num_samples == 32
