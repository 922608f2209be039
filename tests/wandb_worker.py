"""One of two processes that train with Weights & Biases: ``python -m tests.wandb_worker FOLDER``."""

import os
import sys
from pathlib import Path

import torch
from pytorch_lightning.loggers import WandbLogger

from certvae.callbacks import CertificateCallback
from tests.logged import run


def main() -> None:
    """Train on both processes, each with a logger."""
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    torch.set_num_threads(1)
    assert "wandb" not in sys.modules, "importing certvae has imported wandb"
    store = (folder / "store").as_uri()  # a file, not a port that another program may take
    torch.distributed.init_process_group("gloo", store, world_size=2, rank=rank)
    run(folder, WandbLogger(save_dir=folder), [CertificateCallback()], strategy="ddp", devices=2)
    if rank == 0:
        import wandb

        wandb.finish()
    else:
        assert "wandb" not in sys.modules, "rank 1 has imported wandb"
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
