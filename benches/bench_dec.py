"""One clustering step of DEC at its paper's sizes: where an update spends its time."""

from __future__ import annotations

from itertools import pairwise

import torch

from benches import peers
from benches.race import BACKEND, DEVICE, Contender, Race
from deepclust import functional as F
from deepclust.networks import MLPAutoencoder


def bench_dec_step(race: Race) -> None:
    """Batch 256, D-500-500-2000-10 on 784 columns, 10 clusters: encoder, loss, backward."""
    torch.manual_seed(0)
    n, k, sizes = 256, 10, (784, 500, 500, 2000, 10)
    network = MLPAutoencoder(sizes).to(DEVICE)
    x = 50 * torch.randn(
        n, 784, device=DEVICE
    )  # codes of an untrained network are small; spread them out
    with torch.no_grad():
        z = network.encode(x)
        mu = z[:k].clone().requires_grad_()
        target = F.freeze_target(z, mu)
        p = target.probabilities()
    parameters = [mu, *network.encoder.parameters()]

    def ours() -> torch.Tensor:
        loss = F.target_loss(network.encode(x), mu, target, backend=BACKEND)
        return torch.autograd.grad(loss, parameters)[0]

    def plain() -> torch.Tensor:
        return torch.autograd.grad(peers.loss_product(network.encode(x), mu, p), parameters)[0]

    expected = torch.autograd.grad(
        F.target_loss(z.double(), mu.double(), p.double(), backend="eager"), mu
    )[0].double()
    weights = sum(a * b for a, b in pairwise(sizes))
    race(
        "DEC step, MNIST network",
        "A",
        Contender("deepclust", ours),
        [Contender("torch product", plain)],
        error=lambda dmu: float((dmu.double() - expected).abs().max() / expected.abs().max()),
        tolerance=1e-3,
        flops=6 * n * weights,
        bytes=4 * 3 * weights,
    )
