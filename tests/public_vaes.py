"""Small VAEs in the manners of public repositories: the layouts, names and spellings that people use; own code.

Every class names what it gives as ``latents``. Inputs are digits of shape ``(B, 1, 8, 8)``, or tokens made from them.
"""

from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from certvae.callbacks import Latents

__all__ = ["ALL", "PublicVAE"]


class PublicVAE(LightningModule):
    """The steps that all share."""

    latents: ClassVar[Any]

    def loss(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch[0])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch[0]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def kld(mu: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).flatten(1).sum(1).mean()


def mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Vanilla(PublicVAE):
    """Two heads on a convolutional backbone; everything in the main module."""

    latents = "fc_mu"

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.LeakyReLU())
        self.fc_mu, self.fc_var = nn.Linear(128, 6), nn.Linear(128, 6)
        self.decoder_input = nn.Linear(6, 128)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.LeakyReLU())
        self.final_layer = nn.Sequential(nn.Conv2d(8, 1, 3, 1, 1), nn.Tanh())

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.flatten(self.encoder(images), start_dim=1)
        return self.fc_mu(hidden), self.fc_var(hidden)

    def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
        std = torch.exp(0.5 * logvar)
        eps = torch.randn_like(std)
        return eps * std + mu

    def decode(self, z: Tensor) -> Tensor:
        return self.final_layer(self.decoder(self.decoder_input(z).view(-1, 8, 4, 4)))

    def loss(self, images: Tensor) -> Tensor:
        mu, logvar = self.encode(images)
        recons = self.decode(self.reparameterize(mu, logvar))
        return F.mse_loss(recons, images) + 0.00025 * kld(mu, logvar)


class Classic(PublicVAE):
    """One hidden layer each, in-place noise, binary cross-entropy summed over pixels."""

    latents = "fc21"

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(64, 32), nn.Linear(32, 6), nn.Linear(32, 6)
        self.fc3, self.fc4 = nn.Linear(6, 32), nn.Linear(32, 64)

    def loss(self, images: Tensor) -> Tensor:
        hidden = F.relu(self.fc1(images.view(-1, 64)))
        mu, logvar = self.fc21(hidden), self.fc22(hidden)
        std = logvar.mul(0.5).exp_()
        z = torch.randn_like(std).mul_(std).add_(mu)
        recon = torch.sigmoid(self.fc4(F.relu(self.fc3(z))))
        bce = F.binary_cross_entropy(recon, images.view(-1, 64), reduction="sum")
        return bce - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


class Bolts(PublicVAE):
    """Distributions for posterior and prior, and a KL from draws."""

    latents = "fc_mu"

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(64, 32, 32), mlp(6, 32, 64)
        self.fc_mu, self.fc_var = nn.Linear(32, 6), nn.Linear(32, 6)

    def loss(self, images: Tensor) -> Tensor:
        hidden = self.encoder(images.flatten(1))
        mu, log_var = self.fc_mu(hidden), self.fc_var(hidden)
        std = torch.exp(log_var / 2)
        p, q = Normal(torch.zeros_like(mu), torch.ones_like(std)), Normal(mu, std)
        z = q.rsample()
        kl = (q.log_prob(z) - p.log_prob(z)).mean()
        return F.mse_loss(self.decoder(z), images.flatten(1)) + 0.1 * kl


class Chunked(PublicVAE):
    """A convolutional encoder whose last layer gives both halves."""

    latents = Latents("encoder", "chunk", spatial="flatten")

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.SiLU(), nn.Conv2d(8, 4, 3, 2, 1))
        self.decoder = nn.Sequential(nn.ConvTranspose2d(2, 8, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1))

    def loss(self, images: Tensor) -> Tensor:
        mu, logvar = self.encoder(images).chunk(2, dim=1)
        z = mu + torch.randn_like(mu) * (0.5 * logvar).exp()
        return F.mse_loss(self.decoder(z), images, reduction="sum") / len(images) + kld(mu, logvar)


class ModelOutput(dict[str, Tensor]):
    """A dict whose keys are attributes."""

    def __getattr__(self, name: str) -> Tensor:
        return self[name]


class DictEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.embedding, self.log_var = mlp(64, 32, 32), nn.Linear(32, 6), nn.Linear(32, 6)

    def forward(self, images: Tensor) -> ModelOutput:
        hidden = self.layers(images.flatten(1))
        return ModelOutput(embedding=self.embedding(hidden), log_covariance=self.log_var(hidden))


class Benchmark(PublicVAE):
    """An encoder that answers a dict of named outputs, inside a model that is not the LightningModule."""

    latents = "model.encoder:embedding,log_covariance"

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"encoder": DictEncoder(), "decoder": mlp(6, 32, 64)})

    def loss(self, images: Tensor) -> Tensor:
        output = self.model["encoder"](images)
        mu, log_var = output.embedding, output.log_covariance
        std = torch.exp(0.5 * log_var)
        z = mu + torch.randn_like(std) * std
        recon = 0.5 * F.mse_loss(self.model["decoder"](z), images.flatten(1), reduction="none").sum(dim=-1)
        kl = -0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp(), dim=-1)
        return (recon + kl).mean(dim=0)


class DiagonalGaussian:
    """Parameters of a spatial posterior, with its clamp."""

    def __init__(self, parameters: Tensor) -> None:
        self.mean, logvar = torch.chunk(parameters, 2, dim=1)
        self.logvar = torch.clamp(logvar, -30.0, 20.0)
        self.std = torch.exp(0.5 * self.logvar)

    def sample(self) -> Tensor:
        return self.mean + self.std * torch.randn(self.mean.shape)

    def kl(self) -> Tensor:
        return 0.5 * torch.sum(self.mean.pow(2) + self.logvar.exp() - 1.0 - self.logvar, dim=[1, 2, 3])


class ResBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, channels), nn.Conv2d(channels, channels, 3, 1, 1)
        self.norm2, self.conv2 = nn.GroupNorm(4, channels), nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, values: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(values)))
        return values + 0.1 * self.conv2(F.dropout(F.silu(self.norm2(hidden)), 0.1, self.training))


class KLAutoencoder(PublicVAE):
    """A spatial code with quantization convolutions around it and residual blocks."""

    latents = Latents("quant_conv", "chunk", spatial="pool")

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), ResBlock(8), nn.Conv2d(8, 6, 1))
        self.quant_conv, self.post_quant_conv = nn.Conv2d(6, 6, 1), nn.Conv2d(3, 8, 1)
        self.decoder = nn.Sequential(ResBlock(8), nn.Upsample(scale_factor=2), nn.Conv2d(8, 1, 3, 1, 1))
        self.logvar = nn.Parameter(torch.zeros(()))

    def loss(self, images: Tensor) -> Tensor:
        posterior = DiagonalGaussian(self.quant_conv(self.encoder(images)))
        recon = self.decoder(self.post_quant_conv(posterior.sample()))
        nll = (images - recon).abs() / torch.exp(self.logvar) + self.logvar
        return nll.sum() / len(images) + 1e-6 * posterior.kl().sum() / len(images)


class Level(NamedTuple):
    mu: Tensor
    var: Tensor


class GaussianLevel(nn.Module):
    """Mean and softplus variance of a level."""

    def __init__(self, before: int, dim: int) -> None:
        super().__init__()
        self.mu, self.var = nn.Linear(before, dim), nn.Linear(before, dim)

    def forward(self, values: Tensor) -> Level:
        return Level(self.mu(values), F.softplus(self.var(values)) + 1e-4)


class Ladder(PublicVAE):
    """Deterministic upward pass, and downward levels whose posterior merges both passes by precision."""

    latents: ClassVar[Any] = {"top": "top:mu", "bottom": Latents("merge")}

    def __init__(self) -> None:
        super().__init__()
        self.up1 = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.LeakyReLU())
        self.up2 = nn.Sequential(nn.Linear(32, 16), nn.BatchNorm1d(16), nn.LeakyReLU())
        self.low, self.top, self.down = GaussianLevel(32, 6), GaussianLevel(16, 3), GaussianLevel(3, 6)
        self.merge, self.decoder = nn.Identity(), mlp(6, 32, 64)

    def loss(self, images: Tensor) -> Tensor:
        h1 = self.up1(images.flatten(1))
        top, low = self.top(self.up2(h1)), self.low(h1)
        z2 = top.mu + top.var.sqrt() * torch.randn_like(top.var)
        down = self.down(z2)
        p1, p2 = 1 / low.var, 1 / down.var
        mu, var = self.merge((low.mu * p1 + down.mu * p2) / (p1 + p2)), 1 / (p1 + p2)
        z1 = mu + torch.sqrt(var) * torch.randn_like(var)
        kl = kld(top.mu, top.var.log()) + kl_divergence(Normal(mu, var.sqrt()), Normal(down.mu, down.var.sqrt())).mean()
        return F.binary_cross_entropy_with_logits(self.decoder(z1), images.flatten(1).clamp(0, 1)) + kl


class Sentence(PublicVAE):
    """An LSTM over tokens, word dropout, and the code as the first state of the decoder."""

    latents = "hidden2mean"

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.embedding_dropout = nn.Embedding(8, 12), nn.Dropout(0.5)
        self.encoder_rnn, self.decoder_rnn = nn.LSTM(12, 16, batch_first=True), nn.GRU(12, 16, batch_first=True)
        self.hidden2mean, self.hidden2logv = nn.Linear(16, 5), nn.Linear(16, 5)
        self.latent2hidden, self.outputs2vocab = nn.Linear(5, 16), nn.Linear(16, 8)

    def loss(self, images: Tensor) -> Tensor:
        tokens = (images.flatten(1)[:, :20] * 7.99).long().clamp(0, 7)
        embedded = self.embedding(tokens)
        _, (hidden, _) = self.encoder_rnn(embedded)
        mean, logv = self.hidden2mean(hidden.squeeze(0)), self.hidden2logv(hidden.squeeze(0))
        std = torch.exp(0.5 * logv)
        z = torch.randn([len(tokens), 5]) * std + mean
        output, _ = self.decoder_rnn(self.embedding_dropout(embedded), self.latent2hidden(z).unsqueeze(0))
        logits = self.outputs2vocab(output)
        nll = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
        return (nll + 0.01 * kld(mean, logv)) / len(tokens)


class TotalCorrelation(PublicVAE):
    """Densities of every draw under every posterior of the batch; parameters in one view."""

    latents = "encoder"

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = PairEncoder(), mlp(6, 32, 64)

    def loss(self, images: Tensor) -> Tensor:
        mu, logvar = self.encoder(images)
        z = torch.randn_like(logvar).mul(torch.exp(logvar * 0.5)).add_(mu)
        recon = F.binary_cross_entropy_with_logits(self.decoder(z), images.flatten(1).clamp(0, 1), reduction="sum")
        table = Normal(mu[None], (0.5 * logvar[None]).exp()).log_prob(z[:, None])
        q_z, q_product = table.sum(2).logsumexp(1), table.logsumexp(1).sum(1)
        prior, own = Normal(0.0, 1.0).log_prob(z).sum(1), Normal(mu, (logvar / 2).exp()).log_prob(z).sum(1)
        return recon / len(images) + ((own - q_z) + 6 * (q_z - q_product) + (q_product - prior)).mean()


class PairEncoder(nn.Module):
    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.body = nn.Linear(64, hidden)
        self.mu, self.logvar = nn.Linear(hidden, 6), nn.Linear(hidden, 6)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(images.flatten(1)).relu()
        return self.mu(hidden), F.hardtanh(self.logvar(hidden), -6.0, 2.0)


class Vamp(PublicVAE):
    """A mixture of posteriors of learned pseudo-inputs as the prior, from a second call of the encoder."""

    latents = Latents("encoder", calls="first")

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = PairEncoder(), mlp(6, 32, 64)
        self.pseudo = nn.Parameter(torch.rand(7, 64))

    def loss(self, images: Tensor) -> Tensor:
        mu, logvar = self.encoder(images)
        z = mu + (0.5 * logvar).exp() * torch.randn_like(mu)
        means, logvars = self.encoder(self.pseudo)
        log_p = Normal(means, (0.5 * logvars).exp()).log_prob(z[:, None]).sum(2).logsumexp(1)
        log_q = Normal(mu, (0.5 * logvar).exp()).log_prob(z).sum(1)
        return F.mse_loss(self.decoder(z), images.flatten(1), reduction="sum") / len(images) + (log_q - log_p).mean()


class ImportanceWeighted(PublicVAE):
    """Several draws a row, from repeated parameters."""

    latents = "encoder"

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = PairEncoder(), mlp(6, 32, 64)

    def loss(self, images: Tensor) -> Tensor:
        mu, logvar = self.encoder(images)
        mu, logvar = (value.repeat(5, 1, 1).permute(1, 0, 2) for value in (mu, logvar))
        z = torch.addcmul(mu, torch.exp(0.5 * logvar), torch.randn_like(mu))
        error = (self.decoder(z) - images.flatten(1)[:, None]).pow(2).sum(2)
        weights = error + (-0.5 * (1 + logvar - mu**2 - logvar.exp())).sum(2)
        return (F.softmax(-weights, dim=1).detach() * weights).sum(1).mean()


class Conditional(PublicVAE):
    """The label goes into the encoder and beside the code into the decoder; the step calls forward."""

    latents = "encoder.linear_means"

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict(
            {"body": mlp(74, 32, 32), "linear_means": nn.Linear(32, 6), "linear_log_var": nn.Linear(32, 6)}
        )
        self.decoder = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 64), nn.Sigmoid())

    def loss(self, images: Tensor) -> Tensor:
        label = F.one_hot(images.flatten(1).argmax(1) % 10, 10).float()
        hidden = self.encoder["body"](torch.cat((images.flatten(1), label), dim=-1))
        means, log_var = self.encoder["linear_means"](hidden), self.encoder["linear_log_var"](hidden)
        z = means + torch.randn_like(means) * torch.exp(0.5 * log_var)
        recon = self.decoder(torch.cat((z, label), dim=-1))
        return F.mse_loss(recon, images.flatten(1)) + 0.01 * kld(means, log_var)


def soft_clamp(values: Tensor) -> Tensor:
    return values.div(5.0).tanh().mul(5.0)


class ResidualHierarchy(PublicVAE):
    """Two levels; the lower posterior is relative to a prior that depends on the upper draw; squeeze and excitation."""

    latents: ClassVar[Any] = {
        "upper": Latents("enc_sampler", "chunk", spatial="flatten"),
        "lower": Latents("delta", "chunk", spatial="flatten"),
    }

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), ResBlock(8))
        self.enc_sampler, self.dec_sampler, self.delta = (nn.Conv2d(n, 4, 3, 1, 1) for n in (8, 8, 16))
        self.embed, self.combine = nn.Conv2d(2, 8, 1), nn.Conv2d(2, 8, 1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.cell, self.post = ResBlock(8), nn.ConvTranspose2d(8, 1, 4, 2, 1)

    def loss(self, images: Tensor) -> Tensor:
        features = self.stem(2 * images - 1)
        mu, log_sigma = (soft_clamp(half) for half in self.enc_sampler(features).chunk(2, dim=1))
        z = (torch.exp(log_sigma) + 1e-2) * torch.randn_like(mu) + mu
        state = self.embed(z)
        state = state + 0.1 * self.gate(state) * self.cell(state)
        p_mu, p_log_sigma = torch.chunk(self.dec_sampler(state), 2, dim=1)
        q_mu, q_log_sigma = torch.chunk(self.delta(torch.cat([features, state], dim=1)), 2, dim=1)
        mu2, log_sigma2 = soft_clamp(p_mu + q_mu), soft_clamp(p_log_sigma + q_log_sigma)
        z2 = (torch.exp(log_sigma2) + 1e-2) * torch.randn_like(mu2) + mu2
        output = self.post(self.cell(state + self.combine(z2)))
        return F.mse_loss(output, images, reduction="sum") / len(images) + kld(mu, 2 * log_sigma)


class Distributions(PublicVAE):
    """An encoder that answers a distribution."""

    latents = "encoder"

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = DistributionEncoder(), mlp(6, 32, 64)

    def loss(self, images: Tensor) -> Tensor:
        posterior = self.encoder(images)
        prior = Independent(Normal(torch.zeros(6), torch.ones(6)), 1)
        error = Normal(self.decoder(posterior.rsample()), 0.3).log_prob(images.flatten(1)).sum(1)
        return (kl_divergence(posterior, prior) - error).mean()


class DistributionEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.loc, self.scale = mlp(64, 32, 32), nn.Linear(32, 6), nn.Linear(32, 6)

    def forward(self, images: Tensor) -> Any:
        hidden = self.body(images.flatten(1)).relu()
        return Independent(Normal(self.loc(hidden), F.softplus(self.scale(hidden)) + 1e-6), 1)


class FullCovariance(PublicVAE):
    """A full covariance by its Cholesky factor, drawn by the distribution."""

    latents = "loc"

    def __init__(self) -> None:
        super().__init__()
        self.body, self.loc, self.factor = mlp(64, 32, 32), nn.Linear(32, 3), nn.Linear(32, 9)
        self.decoder = mlp(3, 32, 64)

    def loss(self, images: Tensor) -> Tensor:
        hidden = self.body(images.flatten(1))
        lower = torch.tril(0.1 * self.factor(hidden).view(-1, 3, 3)) + torch.eye(3)
        posterior = MultivariateNormal(self.loc(hidden), scale_tril=lower)
        kl = kl_divergence(posterior, MultivariateNormal(torch.zeros(3), torch.eye(3))).mean()
        return F.mse_loss(self.decoder(posterior.rsample()), images.flatten(1)) + 0.01 * kl


class TwoHeadedDecoder(PublicVAE):
    """A decoder that gives mean and log-variance of the pixels; batch norm on the mean of the code."""

    latents = "mu_norm"

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.mu_norm = mlp(64, 32, 32), nn.Linear(32, 12), nn.BatchNorm1d(6, affine=False)
        self.up, self.pixels, self.pixels_logvar = nn.Linear(6, 32), nn.Linear(32, 64), nn.Linear(32, 64)

    def loss(self, images: Tensor) -> Tensor:
        mu, logvar = self.head(self.body(images.flatten(1))).split(6, dim=-1)
        mu = self.mu_norm(mu)
        z = mu + logvar.div(2).exp() * torch.empty_like(mu).normal_()
        hidden = self.up(z).tanh()
        mean, pixels_logvar = self.pixels(hidden), self.pixels_logvar(hidden)
        nll = 0.5 * (pixels_logvar + (images.flatten(1) - mean) ** 2 * torch.exp(-pixels_logvar))
        return nll.sum(1).mean() + kld(mu, logvar)


class Flow(PublicVAE):
    """Planar flows on a draw; the code is the mean of the base distribution."""

    latents = "q_mean"

    def __init__(self) -> None:
        super().__init__()
        self.body, self.q_mean, self.q_logvar = mlp(64, 32, 32), nn.Linear(32, 6), nn.Linear(32, 6)
        self.u, self.w = nn.Parameter(0.1 * torch.randn(2, 6)), nn.Parameter(0.1 * torch.randn(2, 6))
        self.decoder = mlp(6, 32, 64)

    def loss(self, images: Tensor) -> Tensor:
        hidden = self.body(images.flatten(1))
        mean, logvar = self.q_mean(hidden), self.q_logvar(hidden)
        z = mean + logvar.mul(0.5).exp() * torch.randn_like(mean)
        log_q = Normal(mean, logvar.mul(0.5).exp()).log_prob(z).sum(1)
        for u, w in zip(self.u, self.w, strict=True):
            inner = torch.tanh(z @ w)
            log_q = log_q - torch.log((1 + (1 - inner**2) * (u @ w)).abs() + 1e-6)
            z = z + u * inner[:, None]
        log_p = Normal(0.0, 1.0).log_prob(z).sum(1)
        return F.mse_loss(self.decoder(z), images.flatten(1), reduction="sum") / len(images) + (log_q - log_p).mean()


class Autoencoder(PublicVAE):
    """No noise; a residual, gated decoder."""

    latents = Latents("encoder", deterministic=True)

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.lift, self.gate = mlp(64, 32, 6), nn.Linear(6, 32), nn.Linear(6, 32)
        self.block, self.out = mlp(32, 32, 32), nn.Linear(32, 64)

    def loss(self, images: Tensor) -> Tensor:
        code = self.encoder(images.flatten(1))
        hidden = self.lift(code) * torch.sigmoid(self.gate(code))
        hidden = hidden + 0.1 * F.softplus(self.block(F.dropout(hidden, 0.2, self.training)))
        return F.mse_loss(self.out(hidden), images.flatten(1))


ALL: list[type[PublicVAE]] = [
    Vanilla,
    Classic,
    Bolts,
    Chunked,
    Benchmark,
    KLAutoencoder,
    Ladder,
    Sentence,
    TotalCorrelation,
    Vamp,
    ImportanceWeighted,
    Conditional,
    ResidualHierarchy,
    Distributions,
    FullCovariance,
    TwoHeadedDecoder,
    Flow,
    Autoencoder,
]
