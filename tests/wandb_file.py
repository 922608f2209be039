"""Reading an offline run of Weights & Biases back from its ``.wandb`` file: protobuf in LevelDB's log format."""

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

BLOCK, HEADER, FIRST_BYTES = 2**15, 7, 7


def records(path: Path) -> Iterator[Any]:
    """The records of a file, each a ``wandb_internal_pb2.Record``."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # its names are made when it is imported

    data, position, content = path.read_bytes(), FIRST_BYTES, b""
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:  # too little for a header: padding
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        content += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield Record.FromString(content)
            content = b""


class RunFile:
    """What an offline run holds.

    Attributes:
        run: the record of the run: its id, project and so on.
        history: rows as they were logged.
        summary: the last of each key.
        config: what the run was started with and what was added.
        metrics: definitions by key.
        artifacts: logged ones, beside those that W&B makes of tables.
        tables: names of the latter.
        alerts: sent ones.
        folder: of the run's media.
    """

    def __init__(self, path: Path) -> None:
        self.folder = path.parent / "files"
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.metrics: dict[str, Any] = {}
        self.artifacts: list[Any] = []
        self.tables: list[str] = []
        self.alerts: list[Any] = []
        for record in records(path):
            self._add(record.WhichOneof("record_type"), record)

    def _add(self, kind: str, record: Any) -> None:
        if kind == "run":
            self.run = record.run
            _merge(self.config, record.run.config.update)
        elif kind == "history":
            self.history.append({})
            _merge(self.history[-1], record.history.item)
        elif kind in ("summary", "config"):
            _merge(getattr(self, kind), getattr(record, kind).update)
        elif kind == "metric":
            self.metrics[record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "artifact" and record.artifact.type == "run_table":
            self.tables.append(record.artifact.name)
        elif kind in ("artifact", "alert"):
            getattr(self, f"{kind}s").append(getattr(record, kind))

    def of_type(self, kind: str) -> list[Any]:
        """Artifacts of a type, in their order."""
        return [artifact for artifact in self.artifacts if artifact.type == kind]

    def column(self, key: str) -> list[tuple[int, Any]]:
        """Epoch and value of each row that has the key."""
        return [(row["epoch"], row[key]) for row in self.history if key in row]


def _merge(values: dict[str, Any], items: Iterable[Any]) -> None:
    for item in items:
        *above, last = list(item.nested_key) or [item.key]
        inner = values
        for key in above:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)


def run_files(folder: Path) -> list[RunFile]:
    """The offline runs in a folder, oldest first, once the process that writes them has ended."""
    import wandb

    wandb.finish()
    wandb.teardown()  # waits for wandb's process, which may still write when `finish` returns
    paths = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    for path in paths:
        assert any(record.HasField("exit") for record in records(path)), f"wandb did not end the run in {path}"
    return [RunFile(path) for path in paths]


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For the module that imports it: wandb writes below a temporary folder, and could reach no server."""
    folder = tmp_path_factory.mktemp("wandb")
    folders = {f"WANDB_{name}_DIR": str(folder / name.lower()) for name in ("DATA", "CACHE", "CONFIG")}
    quiet = {
        "WANDB_SILENT": "true",
        "WANDB_CONSOLE": "off",
        "WANDB_DISABLE_GIT": "true",
        "WANDB_X_DISABLE_STATS": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {"WANDB_MODE": "offline", "WANDB_BASE_URL": "http://127.0.0.1:9", **quiet, **folders}.items():
            patch.setenv(key, value)
        yield


@pytest.fixture(autouse=True)
def finished() -> Iterator[None]:
    """For the module that imports it: a run in progress would be taken over by the next ``WandbLogger``."""
    yield
    import wandb

    wandb.finish()
