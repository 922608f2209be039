"""What a run is made with is found on any module, and what is not known is left out."""

from pathlib import Path
from typing import Any

import pytest

from certvae.models import ELBO, LinearSchedule
from certvae.monitoring.run_facts import flat, options, run_facts
from tests.plain_vae import UserVAE
from tests.runs import trainer


@pytest.mark.parametrize(
    ("attributes", "weight"),
    [
        ({}, None),
        ({"beta": 4}, 4),
        ({"kl_weight": 0.5}, 0.5),
        ({"objective": ELBO(2.0), "beta": 4}, 2.0),
        ({"objective": ELBO(LinearSchedule(0.1, 1.0, 10.0))}, "LinearSchedule(first=0.1, last=1, epochs=10)"),
    ],
)
def test_the_kl_weight_is_found_or_left_out(attributes: dict[str, Any], weight: Any, tmp_path: Path) -> None:
    model = UserVAE()
    for name, value in attributes.items():
        setattr(model, name, value)
    facts = run_facts(trainer(tmp_path), model)
    assert facts.get("kl_weight") == weight
    assert "data" not in facts
    assert facts["model"] == "UserVAE"


def test_nested_values_become_paths_with_numbers_and_text() -> None:
    assert flat({"a": {"b": 1, "c": {"d": None}}, "e": [2]}) == {"a/b": 1, "a/c/d": "None", "e": "[2]"}


def test_parts_of_a_yaml_are_named_as_on_the_command_line() -> None:
    """``yaml.model.encoder.width`` is ``--model.encoder.width``."""
    encoder = {"class_path": "certvae.models.MLPEncoder", "init_args": {"width": 128, "image_shape": [1, 8, 8]}}
    model = {"class_path": "certvae.VAE", "init_args": {"encoder": encoder, "prior": {"class_path": "my.Prior"}}}
    assert options(model) == {
        "class": "certvae.VAE",
        "encoder": {"class": "certvae.models.MLPEncoder", "width": 128, "image_shape": [1, 8, 8]},
        "prior": {"class": "my.Prior"},
    }
    assert options(None) is None
