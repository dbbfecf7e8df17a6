"""DEC's target from a stored q."""

from __future__ import annotations

import torch

from benches import peers
from benches.race import BACKEND, SHAPES, Contender, Race
from deepclust import functional as F
from tests import reference


def bench_dec_target(race: Race, shape: str, data: tuple[torch.Tensor, torch.Tensor]) -> None:
    z, mu = data
    n, _, k = SHAPES[shape]
    q = F.assign(z, mu)
    some = slice(0, 500)
    f = q.double().sum(0)
    rows = q[some].double().cpu().numpy()
    expected = torch.from_numpy(reference.dec_target(rows, f.cpu().numpy())).to(q.device)
    race(
        "dec_target",
        shape,
        Contender("deepclust", lambda: F.dec_target(q, backend=BACKEND)),
        [
            Contender(name, lambda g=g: g(q))
            for name, g in peers.forms({"target": peers.target}).items()
        ],
        error=lambda p: float((p[some].double() - expected).abs().max()),
        tolerance=1e-5,
        flops=0,
        bytes=4 * 3 * n * k,  # q is read twice
    )
