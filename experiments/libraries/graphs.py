"""The variational graph autoencoder of PyTorch Geometric: the rows are the nodes of one graph.

python -m experiments.libraries.graphs
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch_geometric.nn import VGAE, GCNConv

import certvae
from certvae.callbacks import Latents
from certvae.certificate.certificate import Certificate
from certvae.teachers import LabelTeacher
from experiments.libraries.comparison import Case, Watched, by_lightning, main, train

CLASSES, NODES = 4, 400
POSTERIOR = Latents(  # new
    lambda model, batch: (model.encode(*batch["graph"]), model.__mu__, model.__logstd__),
    "1,2",
    scale="log_std",  # new
)  # new


class Encoder(nn.Module):
    """Two convolutions: mean and logarithm of the deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mean, self.log_std = GCNConv(16, 16), GCNConv(16, 6), GCNConv(16, 6)

    def forward(self, features: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Of each node."""
        hidden = self.body(features, edges).relu()
        return self.mean(hidden, edges), self.log_std(hidden, edges)


def graph() -> tuple[Tensor, Tensor, Tensor]:
    """Features, edges and classes of nodes; most edges are within a class."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(CLASSES, (NODES,), generator=generator)
    likely = torch.where(classes[:, None] == classes, 0.05, 0.005)
    edges = (torch.rand(NODES, NODES, generator=generator) < likely).nonzero().T
    features = nn.functional.one_hot(classes, 16) + torch.randn(NODES, 16, generator=generator)
    return features, edges, classes


def nodes(watching: bool) -> Watched:
    """A plain loop over the whole graph."""
    features, edges, classes = graph()
    model = VGAE(Encoder())
    batch: dict[str, Any] = {"graph": (features, edges), "classes": classes}
    found: list[Certificate] = []
    whole: Any = [batch]
    if watching:
        teacher = LabelTeacher(CLASSES).measure([classes])  # new

    def loss(_: Any) -> Tensor:
        return model.recon_loss(model.encode(features, edges), edges) + model.kl_loss() / NODES

    def after_epoch() -> None:
        if watching:
            found.append(certvae.watch(model, [batch], teacher, POSTERIOR, images="classes"))  # new

    train(model, [batch] * 5, loss, after_epoch)
    model.eval()
    with torch.no_grad():
        mean, log_std = model.encoder(features, edges)
    lightning = (
        by_lightning(model, DataLoader(whole, batch_size=None), teacher, POSTERIOR, images="classes")
        if watching
        else None
    )
    return Watched(model, mean, 2 * log_std, classes, classes, found[-1] if watching else None, lightning)


CASES = [Case("torch-geometric", "VGAE", nodes, outside=3)]

if __name__ == "__main__":
    main(__file__, CASES)
