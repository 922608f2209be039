"""The page: complete, the same each time, inert whatever its sources hold, and open to everybody."""

import json
import math
import os
import re
import shlex
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from certvae import Certificate
from certvae.certificate.certificate import digest
from certvae.certificate.history import append_history
from certvae.cli import main
from certvae.datamodules import DigitsDataModule
from certvae.datamodules.arrays import ImageArrays
from certvae.report.wording import number
from tests.report.html_tree import Elements, elements

pytestmark = pytest.mark.slow

HOSTILE = "<script>alert(1)</script>\" onload='alert(2)' & $\\frac$ javascript:alert(3)"


class HostileNames(DigitsDataModule):
    """Digits whose labels have names that would run, if names ran."""

    def load(self) -> ImageArrays:
        return replace(super().load(), class_names=(HOSTILE,) * 10)


def made(*folders: Path, options: tuple[str, ...] = ()) -> Elements:
    output = folders[0].parent / "page.html"
    assert main(["report", *map(str, folders), "--output", str(output), *options]) == 0
    return elements(output)


def change_config(folder: Path, part: str, **values: Any) -> None:
    path = folder / "run.yaml"
    config = yaml.safe_load(path.read_text())
    config[part] = {**config[part], **values}
    path.write_text(yaml.safe_dump(config))


def test_the_same_run_gives_the_same_bytes(finished: Path, report: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    assert main(["report", str(finished), "--output", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_bytes() == report.read_bytes()


def test_nothing_is_loaded_and_no_script_is_run(report: Path) -> None:
    page = elements(report)
    assert not page.all("script", "iframe", "object", "embed", "form", "base")
    for tag, attributes in page.found:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert any("default-src 'none'" in meta.get("content", "") for meta in page.all("meta"))
    assert "@import" not in report.read_text()
    assert not re.search(r"url\((?!#)", report.read_text())


def test_whatever_the_files_hold_stays_text(demo: Path) -> None:
    place = Path(shutil.move(demo / "seed0" / "full", demo.parent / HOSTILE.replace("/", "_")))
    certificate = Certificate.load(place / "certificate_test.json")
    certificate.provenance |= {"torch": HOSTILE, HOSTILE: [HOSTILE]}
    certificate.save(place / "certificate_test.json")
    (place / "summary.json").write_text(json.dumps({"dataset": HOSTILE}))
    change_config(place, "data", class_path="tests.report.test_page.HostileNames")
    with open(place / "run.yaml", "a") as file:
        file.write(f"# {HOSTILE}\n")
    page = made(place)
    assert not page.all("script")
    assert not [name for _, attributes in page.found for name in attributes if name.startswith("on")]
    assert page.open == []
    for told in (
        f"Certificate report: {HOSTILE}",
        f'["{json.dumps(HOSTILE)[1:-1]}"]',
        f"# {HOSTILE}",
        f"labels: {HOSTILE}",
    ):
        assert told in page.text, told
    assert f"{place.name}: NOT CERTIFIED" in page.text or f"{place.name}: CERTIFIED" in page.text
    assert sum(HOSTILE in picture["alt"] for picture in page.all("img")) == 10


def test_names_and_values_that_no_page_can_hold_are_shown_with_a_sign(demo: Path) -> None:
    place = Path(shutil.move(demo / "seed0" / "full", demo.parent / ("odd\x01" + os.fsdecode(b"\xff") + "$_^ {{ 1 }}")))
    certificate = Certificate.load(place / "certificate_test.json")
    certificate.provenance["torch"] = "lone \ud800, \x00"
    certificate.save(place / "certificate_test.json")
    page = made(place, options=("--no_images",))
    assert "odd\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}$_^ {{ 1 }}" in page.text
    assert "lone \N{REPLACEMENT CHARACTER}, \N{REPLACEMENT CHARACTER}" in page.text


def test_the_most_extreme_numbers_that_a_file_may_hold_are_drawn(demo: Path) -> None:
    place = demo / "seed0" / "full"
    certificate = Certificate.load(place / "certificate_test.json")
    extremes: list[dict[str, Any]] = [{"alignment_loss": 1e308, "margin": -1e308, "margin_lower": -math.inf}]
    for values in [*extremes, {"rate": 1e308}]:
        changed = replace(certificate, **values, channel_margin=-1e308, provenance={"look": 10**6})
        append_history(place / "certificates_val.jsonl", changed)
        assert len(made(place, options=("--no_images",)).all("svg")) == 8


def test_every_model_has_its_row_with_the_numbers_of_its_file(demo: Path) -> None:
    shutil.copytree(demo / "seed0", demo / "seed1")
    page = made(demo, options=("--no_images",))
    assert "shown is the teacher of seed\n0" in page.text or "shown is the teacher of seed0" in page.text
    table = page.text[page.text.index("All seeds and phases\nIn nats.") :]
    for seed in "01":
        for name in ("full", "no_align", "rescue"):
            table = table[table.index(f"{seed}{name}\n") :]
            row = table[: table.index("%")]
            c = Certificate.load(demo / f"seed{seed}" / name / "certificate_test.json")
            assert c.status.replace("_", " ") in row
            for value in (c.margin, c.margin_lower, c.teacher_information, c.alignment_loss, c.channel_margin, c.rate):
                assert number(value) in row, (seed, name)


def test_every_section_is_there(report: Path) -> None:
    page = elements(report)
    titles = (
        "What this does not say",
        "Margin",
        "What the code carries",
        "Margin by component",
        "Alignment against information",
        "Rate and channel margin",
    )
    for title in (*titles, "The teacher", "Reconstructions, samples", "All seeds and phases", "Provenance"):
        assert title in page.text
    assert len(page.all("svg")) == 7 + 3  # of components one for each phase
    assert len(page.all("img")) == 10 + 3 * 3
    assert "Chosen for tests." in page.text
    assert page.text.index("Of 3 trained models") < page.text.index("What this does not say")


def card_of(page: Elements, label: str) -> str:
    """The text of a model's card on the first screen."""
    first = page.text[: page.text.index("What this does not say")]
    start = first.index(f"{label}: ")
    return " ".join(first[start : first.index("On noisy draws", start)].split())


def test_the_first_screen_has_reading_bounds_and_what_to_do(demo: Path, report: Path) -> None:
    page = elements(report)
    for name in ("full", "no_align", "rescue"):
        c = Certificate.load(demo / "seed0" / name / "certificate_test.json")
        card, diagnosis = card_of(page, f"{name}, seed 0"), c.diagnose()
        assert c.information is not None
        said = (f"{c.reading} : {c.reading.meaning}.", c.information.line()[1:], diagnosis.finding, diagnosis.cure)
        for text in (*said, f"Margin {number(c.margin)} nats of {number(c.teacher_information)}"):
            assert text.replace(" :", ":") in card.replace(" :", ":"), (name, text, card)


def test_the_comparison_has_reading_and_sides_for_each_model(demo: Path) -> None:
    page = made(demo, demo / "seed0" / "full", options=("--no_images",))
    table = page.text[page.text.index("All seeds and phases\nIn nats.") :]
    for name in ("full", "no_align", "rescue"):
        c = Certificate.load(demo / "seed0" / name / "certificate_test.json")
        row = table[table.index(f"{name}\n") :]
        row = row[: row.index("%")]
        assert str(c.reading) in row
        assert f"{number(c.information_lower)} to {number(c.information_upper)}" in row


def with_names(path: Path, names: list[str]) -> Certificate:
    certificate = Certificate.load(path)
    certificate.provenance["component_names"] = names
    certificate.save(path)
    return certificate


def test_the_figure_of_components_calls_them_by_their_names_and_tells_what_is_lost(demo: Path) -> None:
    place = demo / "seed0" / "no_align"
    names = [f"$kind_{number}^{{ & <b>" for number in range(10)]
    c = with_names(place / "certificate_test.json", names)
    page = made(place, options=("--no_images",))
    (figure,) = [svg for svg in page.all("svg") if svg["aria-label"].startswith("Margin by component")]
    lost = [part for part in c.components if part.margin < 0]
    assert lost
    assert figure["aria-label"].count(", lost") == len(lost)
    assert f"{10 - len(lost)} of 10 are above 0, {len(lost)} are lost" in figure["aria-label"]
    for name, part in zip(names, c.components, strict=True):
        assert f"{name}: {number(part.margin)} of {number(part.information)}" in figure["aria-label"]
        assert page.text.count(name) == 1 + 1  # beside its bar, and in the provenance
    assert not page.all("b")


def test_a_report_of_version_0_1_stays_as_it_was(demo: Path) -> None:
    """Certificates without components and bracket have neither reading nor figures of them."""
    place = demo / "seed0" / "full"
    path, history = place / "certificate_test.json", place / "certificates_val.jsonl"
    old: dict[str, Any] = {"components": [], "information": None, "fitted": None}
    replace(Certificate.load(path), **old).save(path)
    lines = [json.loads(line) | old for line in history.read_text().splitlines() if line]
    history.write_text("".join(f"\n{json.dumps(line)}" for line in lines))
    page = made(place, options=("--no_images",))
    assert len(page.all("svg")) == 6
    for absent in ("ALIGNED", "To do", "Margin by component", "What the code carries", "whether the code carries"):
        assert absent not in page.text
    compared = made(place, demo / "seed0" / "rescue", options=("--no_images",))
    assert "No figure: the certificates are of version 0.1" in compared.text


def test_runs_stand_side_by_side(demo: Path) -> None:
    page = made(demo, demo / "seed0" / "full", options=("--no_images",))
    assert len(page.all("svg")) == 2 * 7 + 3 + 1
    assert "Of 4 trained models" in page.text
    assert "The vertical axes are the same." in page.text
    for name in ("demo: full, seed 0", "full: full"):
        assert f"{name}: " in page.text


def test_of_a_foreign_model_what_cannot_be_made_is_left_out_with_the_reason(
    foreign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (foreign / "certificate_teacher.safetensors").unlink()
    page = made(foreign)
    assert len(page.all("svg")) == 3 + 1
    assert not page.all("img")
    for reason in ("has no teacher file", "has no YAML", "has no known noise"):
        assert reason in page.text
    assert "Left out: theirs: The teacher card could not be made" in capsys.readouterr().out


def test_missing_data_are_named_and_the_rest_is_made(demo: Path) -> None:
    cifar = {"class_path": "certvae.datamodules.CIFAR100DataModule", "init_args": {"data_dir": "none"}}
    change_config(demo / "seed0" / "full", "data", **cifar)
    page = made(demo / "seed0" / "full", options=("--data_dir", str(demo / "elsewhere")))
    assert f"{demo}/elsewhere/cifar-100-python/train is missing" in page.text
    assert len(page.all("svg")) == 8
    assert not page.all("img")


def test_a_yaml_that_does_not_fit_is_named_and_the_rest_is_made(demo: Path) -> None:
    change_config(demo / "seed0" / "full", "model", class_path="certvae.NoSuchModel")
    page = made(demo / "seed0" / "full")
    assert "The images of full could not be made: the YAML does not fit" in page.text
    assert len(page.all("svg")) == 8


class Trap(DigitsDataModule):
    """Leaves a trace when it is made."""

    def __init__(self, trace: str) -> None:
        super().__init__()
        Path(trace).write_text("ran")


def test_without_images_nothing_that_a_yaml_names_is_run(demo: Path) -> None:
    trace = demo / "trace"
    trap = {"class_path": "tests.report.test_page.Trap", "init_args": {"trace": str(trace)}}
    change_config(demo / "seed0" / "full", "data", **trap)
    page = made(demo / "seed0" / "full", options=("--no_images",))
    assert "Images are left out: they were not requested." in page.text
    assert not trace.exists()
    made(demo / "seed0" / "full")
    assert trace.exists()


def test_the_commands_that_the_page_gives_run_and_hold(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = demo / "seed0" / "full"
    commands = re.findall(r"certvae ((?:verify|certify) .+)", made(folder, options=("--no_images",)).text)
    assert [command.split()[0] for command in commands] == ["verify", "certify", "verify"]
    for command in commands:
        assert main(shlex.split(command)) == 0
    assert "HOLDS: recomputed from scratch" in capsys.readouterr().out
    published = re.findall(r"certvae (verify .+)", made(folder, options=("--no_images",)).text)
    assert len(published) == 1
    assert main(shlex.split(published[0])) == 0


def test_a_forged_status_does_not_reach_the_page(demo: Path) -> None:
    path = demo / "seed0" / "no_align" / "certificate_test.json"
    values = {**Certificate.load(path).to_dict(), "status": "CERTIFIED"}
    path.write_text(json.dumps({**values, "sha256": digest(values)}))
    assert main(["report", str(demo)]) == 1
    assert not (demo / "report.html").exists()


def test_headings_ids_and_alternative_texts_are_in_order(demo: Path, report: Path, foreign: Path) -> None:
    for page in (elements(report), made(demo, foreign, options=("--no_images",))):
        levels = [int(tag[1]) for tag, _ in page.found if re.fullmatch("h[1-6]", tag)]
        assert levels.count(1) == 1
        assert levels[0] == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
        assert len(set(ids)) == len(ids)
        referred = [
            a[name]
            for _, a in page.found
            for name in ("aria-labelledby", "href")
            if a.get(name, "data:")[:5] != "data:"
        ]
        assert {name.removeprefix("#") for name in referred} <= set(ids)
        assert all(len(image["alt"]) > 20 for image in page.all("img"))
        assert all(svg["role"] == "img" and len(svg["aria-label"]) > 20 for svg in page.all("svg"))
        assert page.all("html")[0]["lang"] == "en"
        assert page.open == []
        for landmark in ("header", "nav", "main", "footer", "title"):
            assert len(page.all(landmark)) == 1
        assert page.all("a")[0] == {"class": "skip", "href": "#verdict"}
        assert all(box["tabindex"] == "0" for box in page.all("div") if box.get("class") == "scroll")
