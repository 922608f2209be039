"""Models of scvi-tools, trained with a callback in ``train``, on cells drawn from four types.

python -m experiments.libraries.scvi_cells
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import anndata
import numpy as np
import scvi
import torch
from scvi.model import PEAKVI, SCANVI, SCVI, AmortizedLDA, CondSCVI, LinearSCVI
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from certvae.callbacks import CertificateCallback, Latents
from certvae.teachers import LabelTeacher
from experiments.libraries.comparison import Case, Watched, main

TYPES, CELLS = 4, 500
TRAIN: dict[str, Any] = {
    "max_epochs": 2,
    "train_size": 0.6,
    "check_val_every_n_epoch": 1,
    "accelerator": "cpu",
    "enable_progress_bar": False,
}


def cells(unlabelled: bool = False) -> Any:
    """Counts of 40 genes, Poisson by type; of a third of the cells the type may be unknown."""
    generator = np.random.default_rng(0)
    types = generator.integers(0, TYPES, CELLS)
    rates = generator.gamma(1.0, 2.0, (TYPES, 40))
    adata = anndata.AnnData(generator.poisson(rates[types]).astype(np.float32))
    named = np.array(["B", "NK", "T", "mono"])[types]
    adata.obs["cell_type"] = np.where(generator.random(CELLS) < 1 / 3, "unknown", named) if unlabelled else named
    return adata


def labels_of(model: Any) -> Tensor:
    """What scvi-tools made of the column of labels."""
    return torch.tensor(model.adata.obs["_scvi_labels"].to_numpy().astype(np.int64))


def trained(kind: Any, watching: bool, calls: Any = "last", **setup: Any) -> Watched:
    """A model whose batches hold the labels."""
    scvi.settings.seed = 0
    adata = cells("unlabeled_category" in setup)
    kind.setup_anndata(adata, labels_key="cell_type", **setup)
    model = kind(adata, n_latent=5)
    callbacks = []
    if watching:
        teacher = LabelTeacher(TYPES, ignore=TYPES).measure([labels_of(model)])  # new
        callbacks.append(  # new
            CertificateCallback(teacher, Latents("module.z_encoder", "0", calls=calls), images=cell_types)  # new
        )  # new
    model.train(callbacks=callbacks, **TRAIN)
    rows = model.validation_indices
    mean, variance = model.get_latent_representation(indices=rows, return_dist=True)
    labels = labels_of(model)
    return Watched(
        model.module,
        torch.tensor(mean),
        torch.tensor(variance).log(),
        labels[rows].where(labels[rows] < TYPES, -1),
        labels.where(labels < TYPES, -1),
        callbacks[0].certificate if watching else None,
    )


def cell_types(batch: Any) -> Tensor:  # new
    """The labels of a batch; one of SCANVI is a pair, whose first entry holds all cells."""
    return (batch if isinstance(batch, dict) else batch[0])["labels"]  # new


def topics(plan: Any, batch: Any) -> tuple[Tensor, Tensor]:  # new
    """Mean and log-variance of the normal that AmortizedLDA draws from: its deviation is the square of a scale."""
    posterior, _ = plan.module.guide.encoder(batch[0])  # new
    return posterior.loc, 4 * posterior.scale.log()  # new


def topic_model(watching: bool) -> Watched:
    """Trained by Pyro, without a validation step: the callback runs held-out cells itself."""
    scvi.settings.seed = 0
    adata = cells()
    types = torch.tensor(adata.obs["cell_type"].astype("category").cat.codes.to_numpy().astype(np.int64))
    kept = torch.tensor(adata.X[:300]), types[:300]
    AmortizedLDA.setup_anndata(adata)
    model = AmortizedLDA(adata, n_topics=5)
    callbacks = []
    if watching:
        teacher = LabelTeacher(TYPES).measure([types])  # new
        rows = DataLoader(TensorDataset(*kept), 100)  # new
        callbacks.append(CertificateCallback(teacher, topics, images=1, dataloader=rows))  # new
    model.train(callbacks=callbacks, **TRAIN)
    model.module.eval()
    with torch.no_grad():
        posterior, _ = model.module.guide.encoder(kept[0])
    log_variance = 2 * (posterior.scale**2).log()
    certificate = callbacks[0].certificate if watching else None
    return Watched(model.module, posterior.loc, log_variance, kept[1], types, certificate)


def peaks(watching: bool) -> Watched:
    """PEAKVI gives no distribution by its own call: mean and variance are the encoder's."""
    scvi.settings.seed = 0
    adata = cells()
    PEAKVI.setup_anndata(adata, labels_key="cell_type")
    model = PEAKVI(adata, n_latent=5)
    callbacks = []
    if watching:
        teacher = LabelTeacher(TYPES).measure([labels_of(model)])  # new
        callbacks.append(CertificateCallback(teacher, "module.z_encoder:0", images="labels"))  # new
    model.train(callbacks=callbacks, **TRAIN)
    rows, labels = model.validation_indices, labels_of(model)
    model.module.eval()
    with torch.no_grad():
        posterior, _ = model.module.z_encoder(torch.tensor(adata.X[rows]), torch.zeros(len(rows), 1))
    certificate = callbacks[0].certificate if watching else None
    return Watched(model.module, posterior.loc, 2 * posterior.scale.log(), labels[rows], labels, certificate)


def _case(kind: Any, **options: Any) -> Case:
    run: Callable[[bool], Watched] = partial(trained, kind, **options)
    return Case("scvi-tools", kind.__name__, run, source=(trained, cell_types))


CASES = [
    _case(SCVI),
    _case(LinearSCVI),
    _case(CondSCVI),
    _case(SCANVI, calls="first", unlabeled_category="unknown"),
    Case("scvi-tools", "PEAKVI", peaks),
    Case("scvi-tools", "AmortizedLDA", topic_model, source=(topic_model, topics)),
]

if __name__ == "__main__":
    main(__file__, CASES)
