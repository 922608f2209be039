"""Nodes on one machine: ``python -m tests.distributed.nodes FOLDER JOBS NODES EACH``.

Each node is an agent of ``torchrun`` with ``EACH`` processes, and they meet at a rendezvous on loopback. Agents and
their processes are forked after the imports, which are paid for once.
"""

import importlib
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric.utilities.rank_zero import rank_zero_only
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

from tests.distributed.sets import rank
from tests.distributed.worker import STUCK, fork, redirect, run_jobs


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def as_agent(
    node: int, nodes: str, each: int, port: int, action: Callable[..., Any], *args: Any, **options: Any
) -> Any:
    """What the processes of this node return, started as by ``torchrun`` with these options."""
    given = {
        "nnodes": nodes,
        "nproc-per-node": each,
        "rdzv-backend": "c10d",
        "rdzv-endpoint": f"127.0.0.1:{port}",
        "rdzv-id": "tests",
        "rdzv-conf": f"is_host={int(node == 0)}",
        "local-addr": "127.0.0.1",
        "start-method": "fork",
        "max-restarts": 0,
        **options,
    }
    config, _, _ = config_from_args(parse_args([*(f"--{name}={value}" for name, value in given.items()), "a_function"]))
    return elastic_launch(config, action)(*args)


def work(folder: Path, module: str) -> None:
    """Run all jobs in this process of the group, and write what came of them."""
    cast(Any, rank_zero_only).rank = rank()  # Lightning read it when it was imported
    redirect(folder / f"output_{rank()}.txt")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", timeout=STUCK)
    results = run_jobs(module, folder, int(os.environ["WORLD_SIZE"]))
    (folder / f"results_{rank()}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


def main() -> int:
    """The status is 0 if that of every agent is."""
    folder, module, nodes, each = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    importlib.import_module(module)
    torch.set_num_threads(1)
    port = free_port()
    for node in range(nodes):
        fork(
            lambda node=node: as_agent(node, str(nodes), each, port, work, folder, module),  # type: ignore[misc]
            folder / f"output_node_{node}.txt",
        )
    return int(any(os.wait()[1] for _ in range(nodes)))


if __name__ == "__main__":
    sys.exit(main())
