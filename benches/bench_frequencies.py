"""f, labels and changed labels in one pass, against the same from a stored q."""

from __future__ import annotations

import torch
from torch import Tensor

from benches import peers
from benches.race import BACKEND, SHAPES, Contender, Race
from deepclust import functional as F


def plain(z: Tensor, mu: Tensor, previous: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q = peers.q_product(z, mu)
    labels = q.argmax(1)
    return q.sum(0), labels, (labels != previous).sum()


def bench_frequencies(race: Race, shape: str, data: tuple[Tensor, Tensor]) -> None:
    z, mu = data
    n, d, k = SHAPES[shape]
    previous = torch.zeros(n, dtype=torch.int64, device=z.device)
    expected, labels, _ = F.frequencies(z.double(), mu.double(), backend="eager")

    def error(result: tuple[Tensor, Tensor, Tensor]) -> float:
        f, found, _ = result
        mismatch = float((found != labels).double().mean())
        return max(mismatch, float(((f.double() - expected) / expected).abs().max()))

    race(
        "frequencies",
        shape,
        Contender(
            "deepclust", lambda: F.frequencies(z, mu, previous_labels=previous, backend=BACKEND)
        ),
        [
            Contender(name, lambda f=f: f(z, mu, previous))
            for name, f in peers.forms({"stored q": plain}).items()
        ],
        error=error,
        tolerance=1e-4,
        flops=2 * n * d * k,
        bytes=4 * n * d + 16 * n,
    )
