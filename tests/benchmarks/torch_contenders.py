"""The contenders that run on PyTorch, with the threads that it takes by itself: one a core."""

import itertools
import math

import torch
from torch import nn
from torch.nn import functional

# Keras's optimizers in PyTorch's words. There is no fused RMSprop, and foreach makes none faster.
OPTIMIZERS = {
    "rmsprop": ("RMSprop", {"alpha": 0.9, "eps": 1e-7}),
    "adam": ("Adam", {"eps": 1e-7, "fused": True}),
}


def train(workload, x, epochs, report):
    """A loop written by hand, uncompiled."""
    torch.manual_seed(0)
    encoder, decoder = networks(workload)
    weights = [*encoder.parameters(), *decoder.parameters()]
    name, settings = OPTIMIZERS[workload.optimizer]
    optimizer = getattr(torch.optim, name)(weights, lr=1e-3, **settings)
    x = channels_first(x)
    for _ in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(x)).split(workload.batch_size):
            batch = x[rows]
            loc, log_variance = encoder(batch).chunk(2, dim=-1)
            if workload.num_samples:
                loss = importance_weighted(decoder, batch, loc, log_variance, workload.num_samples)
            else:
                z = loc + torch.exp(0.5 * log_variance) * torch.randn_like(loc)
                nll = functional.binary_cross_entropy_with_logits(
                    decoder(z), batch, reduction="sum"
                )
                kl = 0.5 * (loc.square() + log_variance.exp() - log_variance - 1).sum()
                loss = (nll + kl) / len(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(batch)
        report(float(total) / len(x))


def importance_weighted(decoder, batch, loc, log_variance, num_samples):
    """The negative bound -log(1/S sum_s w_s), a mean over the batch."""
    noise = torch.randn(num_samples, *loc.shape)
    z = loc + torch.exp(0.5 * log_variance) * noise
    every = batch.expand(num_samples, *batch.shape)
    nll = functional.binary_cross_entropy_with_logits(decoder(z), every, reduction="none").sum(-1)
    # The normalizing constants of prior and posterior cancel.
    log_ratio = 0.5 * (noise.square() + log_variance - z.square()).sum(-1)
    log_weights = log_ratio - nll
    return math.log(num_samples) - torch.logsumexp(log_weights, dim=0).mean()


def multiply(workload, x, epochs, report):
    """The limit for dense networks: an epoch's matrix products, as in keras_contenders.

    Written out, they are a sixth faster than with automatic gradients.
    """
    encoder, decoder = (
        [weight.detach() for weight in network.parameters() if weight.ndim == 2]
        for network in networks(workload)
    )
    batch = channels_first(x[: workload.batch_size])
    for _ in range(epochs):
        for _ in range(workload.steps):
            z = _multiply(encoder, batch)[:, : workload.latent_size]
            z = z.repeat_interleave(workload.num_samples or 1, dim=0)
            _multiply(decoder, z, input_gradient=True)
        report(math.nan)


def networks(workload):
    """Encoder and decoder with the layers and the initial distribution of tfpvae.networks."""
    size = workload.latent_size
    if len(workload.shape) == 1:
        encoder = dense(workload, workload.shape[0], 2 * size)
        decoder = dense(workload, size, workload.shape[0])
    else:
        encoder = [
            *(nn.Conv2d(1, 32, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(7 * 7 * 64, 16), nn.ReLU(), nn.Linear(16, 2 * size)),
        ]
        decoder = [
            *(nn.Linear(size, 7 * 7 * 64), nn.ReLU(), nn.Unflatten(1, (64, 7, 7))),
            *(nn.ConvTranspose2d(64, 64, 3, 2, padding=1, output_padding=1), nn.ReLU()),
            *(nn.ConvTranspose2d(64, 32, 3, 2, padding=1, output_padding=1), nn.ReLU()),
            nn.ConvTranspose2d(32, 1, 3, padding=1),
        ]
    pair = nn.Sequential(*encoder), nn.Sequential(*decoder)
    for network, count in zip(pair, workload.weights, strict=True):
        assert sum(weight.numel() for weight in network.parameters()) == count
        for weight in network.parameters():
            nn.init.xavier_uniform_(weight) if weight.ndim > 1 else nn.init.zeros_(weight)
        # In memory channels stay last: convolutions are a tenth faster than in PyTorch's order.
        network.to(memory_format=torch.channels_last)
    return pair


def dense(workload, inputs, outputs):
    """The layers of a dense network."""
    activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[workload.activation]
    sizes = [inputs, *workload.hidden]
    layers = [
        layer
        for size, following in itertools.pairwise(sizes)
        for layer in (nn.Linear(size, following), activation())
    ]
    return [*layers, nn.Linear(sizes[-1], outputs)]


def channels_first(x):
    return torch.from_numpy(x).movedim(-1, 1)


def _multiply(weights, h, input_gradient=False):
    """A chain's products forward and backward, for output gradients equal to the outputs."""
    inputs = []
    for weight in weights:
        inputs.append(h)
        h = h @ weight.T
    gradient = h
    for i in reversed(range(len(weights))):
        gradient.T @ inputs[i]
        if i or input_gradient:
            gradient = gradient @ weights[i]
    return h
