"""The status line: live in a terminal, plain lines elsewhere, above Lightning's own bar where that is on."""

import os
import pty
import re
import sys
import termios
import threading
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from torch.utils.data import DataLoader, IterableDataset

from certvae import Reading, Status
from certvae.callbacks import CertificateCallback, StatusLine
from certvae.datamodules import DigitsDataModule
from tests.plain_vae import UserVAE, images, watch
from tests.runs import digits_teacher, small_vae, trainer

pytestmark = pytest.mark.slow


def fit(folder: Path, *callbacks: Any, epochs: int = 4, **options: Any) -> None:
    model = small_vae(digits_teacher(), alignment_weight=200.0, learning_rate=1e-2)
    runner = trainer(folder, max_epochs=epochs, callbacks=list(callbacks), **options)
    runner.fit(model, datamodule=DigitsDataModule(64, subset=320))


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if "label" in line]


VERDICT = r"margin \+0\.\d{3} of 0\.\d{3} nats, ALIGNED, CERTIFIED"


def test_without_a_terminal_there_are_a_few_plain_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, CertificateCallback(), StatusLine("label", lines=2))
    seen = lines(capsys.readouterr().out)
    assert len(seen) == 2
    for line, epoch in zip(seen, (1, 3), strict=True):
        assert re.fullmatch(rf"label  epoch {epoch}/3  {VERDICT}", line), line


def test_each_certificate_is_told_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, CertificateCallback(), CertificateCallback(name="other"), StatusLine("label"), epochs=1)
    (line,) = lines(capsys.readouterr().out)
    assert re.fullmatch(rf"label  epoch 0/0  {VERDICT}  other: {VERDICT}", line), line


def test_without_a_certificate_there_is_only_the_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, StatusLine("label"), epochs=1)
    assert lines(capsys.readouterr().out) == ["label  epoch 0/0"]


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_lightnings_bar_shows_the_margin_and_whole_lines_above_it(
    tmp_path: Path, bar: type[ProgressBar], capfd: pytest.CaptureFixture[str]
) -> None:
    callbacks = [bar(), CertificateCallback(), StatusLine("label", lines=2)]
    seen = in_terminal(lambda: fit_with_bar(tmp_path, callbacks))
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen + capfd.readouterr().err).replace("\r", "\n")
    for epoch in (1, 3):
        assert re.search(rf"^label  epoch {epoch}/3  {VERDICT}\s*$", shown, re.MULTILINE), shown
    assert "certificate/margin" in shown


def fit_with_bar(folder: Path, callbacks: list[Any]) -> None:
    from pytorch_lightning import Trainer

    model = small_vae(digits_teacher(), alignment_weight=200.0, learning_rate=1e-2)
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    options |= {"accelerator": "cpu", "num_sanity_val_steps": 0, "default_root_dir": folder}
    runner = Trainer(max_epochs=4, callbacks=callbacks, **options)
    runner.fit(model, datamodule=DigitsDataModule(64, subset=320))


def in_terminal(run: Any, width: int = 200) -> str:
    """What ``run`` writes to a standard output that is a terminal of so many columns."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (50, width))
    chunks: list[bytes] = []

    def read() -> None:
        try:
            while chunk := os.read(master, 65536):
                chunks.append(chunk)
        except OSError:  # the other side was closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        patch.setenv("TERM", "xterm")
        with os.fdopen(slave, "w") as terminal:
            patch.setattr(sys, "stdout", terminal)
            run()
    reader.join()
    os.close(master)
    return b"".join(chunks).decode()


def test_in_a_terminal_the_line_is_live(tmp_path: Path) -> None:
    seen = in_terminal(lambda: fit(tmp_path, CertificateCallback(), StatusLine("label")))
    assert re.search(rf"label .*epoch 3/3  {VERDICT}", seen), seen
    assert "\r" in seen
    assert "epoch 0: ALIGNED, CERTIFIED (" in seen  # the callback's own line, above


def test_at_80_columns_bar_times_epoch_verdict_and_margin_are_whole(tmp_path: Path) -> None:
    seen = in_terminal(lambda: fit(tmp_path, CertificateCallback(), StatusLine("digits seed 0 no_align")), width=80)
    whole = r"digits seed 0 no_align \S+ \d:\d\d:\d\d \S+ 3/3 ALIGNED, CERTIFIED \+0\.\d{3}"
    assert re.search(whole, re.sub(r"\x1b\[[\d;]*m", "", seen))


def test_at_80_columns_the_longest_verdict_is_whole() -> None:
    others = len("digits seed 0 no_align") + len(" ━━━━━━ 0:00:00 0:00:00 ")
    verdicts = (f"99/99 {reading}, {status}" for reading in Reading for status in Status)
    assert others + max(map(len, verdicts)) <= 80


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(image, 0) for image in images(64)])


def test_an_unknown_number_of_batches_has_a_line_too(tmp_path: Path) -> None:
    loader: DataLoader[Any] = DataLoader(Endless(), 32)
    runner = trainer(tmp_path, max_epochs=2, callbacks=[StatusLine("label"), watch(channel_samples=0)])
    seen = in_terminal(lambda: runner.fit(UserVAE(), loader, loader))
    assert "epoch 1/1" in seen


def test_at_least_one_line_is_asked_for() -> None:
    with pytest.raises(ValueError, match="`lines` must be at least 1, got 0"):
        StatusLine(lines=0)
