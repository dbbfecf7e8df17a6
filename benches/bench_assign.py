"""Soft assignment: q written, N K numbers."""

from __future__ import annotations

import torch

from benches import peers
from benches.race import BACKEND, SHAPES, Contender, Race
from deepclust import functional as F
from tests import reference


def bench_assign(race: Race, shape: str, data: tuple[torch.Tensor, torch.Tensor]) -> None:
    z, mu = data
    n, d, k = SHAPES[shape]
    some = slice(0, 500)
    head = reference.StudentT(mu.double().cpu().numpy())
    expected = torch.from_numpy(reference.assign(z[some].double().cpu().numpy(), head)).to(z.device)
    functions = {"cdist": peers.q_cdist, "product": peers.q_product}
    if d <= 16:
        functions["broadcast"] = peers.q_broadcast
    race(
        "assign",
        shape,
        Contender("deepclust", lambda: F.assign(z, mu, backend=BACKEND)),
        [Contender(name, lambda f=f: f(z, mu)) for name, f in peers.forms(functions).items()],
        error=lambda q: float((q[some].double() - expected).abs().max()),
        tolerance=1e-5,
        flops=2 * n * d * k,
        bytes=4 * (n * d + n * k),
    )
