"""DEC's loss with gradients to z and the centroids: from a given p, and from a snapshot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benches import peers
from benches.race import BACKEND, ON_GPU, SHAPES, Contender, Race
from deepclust import functional as F


def gradients(z: Tensor, mu: Tensor, target: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    z, mu = z.detach().requires_grad_(), mu.detach().requires_grad_()
    loss = F.target_loss(z, mu, target, **options)
    dz, dmu = torch.autograd.grad(loss, (z, mu))
    return loss.detach(), dz, dmu


def error_against(expected: tuple[Tensor, Tensor, Tensor]) -> Any:
    """The largest error of loss, dz and dmu, each relative to its largest value."""

    def error(result: tuple[Tensor, Tensor, Tensor]) -> float:
        pairs = zip(result, expected, strict=True)
        return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs)

    return error


def bench_target_loss(race: Race, shape: str, data: tuple[Tensor, Tensor]) -> None:
    z, mu = data
    n, d, k = SHAPES[shape]
    p = F.dec_target(F.assign(z, mu))
    # torch's own derivative in float64 is the witness.
    expected = gradients(z.double(), mu.double(), p.double(), backend="eager")
    functions = {"cdist": peers.loss_cdist, "product": peers.loss_product}
    contenders = [
        Contender(name, lambda f=f: peers.backward_of(f)(z, mu, p))
        for name, f in peers.forms(functions).items()
    ]
    if ON_GPU:  # which has no use for chunks of a CPU cache's size
        contenders += [
            Contender(name, lambda f=f: f(z, mu, p))
            for name, f in peers.forms({"hand gradient": peers.hand_gradient_at_once}).items()
        ]
    else:
        contenders += [
            Contender(f"{name} in chunks", lambda f=f: peers.chunked(f)(z, mu, p))
            for name, f in peers.forms({"hand gradient": peers.hand_gradient}).items()
        ]
    race(
        "target_loss",
        shape,
        Contender("deepclust", lambda: gradients(z, mu, p, backend=BACKEND)),
        contenders,
        error=error_against(expected),
        tolerance=1e-3,
        flops=6 * n * d * k,
        bytes=4 * (2 * n * d + n * k),
    )


def bench_target_loss_from_a_snapshot(race: Race, shape: str, data: tuple[Tensor, Tensor]) -> None:
    z_old, mu_old = data
    n, d, k = SHAPES[shape]
    generator = torch.Generator(z_old.device).manual_seed(1)
    z = z_old + 0.01 * torch.randn(z_old.shape, generator=generator, device=z_old.device)
    mu = mu_old + 0.01 * torch.randn(mu_old.shape, generator=generator, device=z_old.device)
    snapshot = F.freeze_target(z_old, mu_old)
    p = snapshot.probabilities()
    double = F.freeze_target(z_old.double(), mu_old.double())
    expected = gradients(z.double(), mu.double(), double, backend="eager")
    race(
        "target_loss snapshot",
        shape,
        Contender("deepclust", lambda: gradients(z, mu, snapshot, backend=BACKEND)),
        [Contender("deepclust, given p", lambda: gradients(z, mu, p, backend=BACKEND))],
        error=error_against(expected),
        tolerance=1e-2,  # the loss is small, of second order in the change
        flops=8 * n * d * k,
        bytes=4 * 3 * n * d,
    )
