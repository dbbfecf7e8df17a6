"""The C++ kernels against the strongest peer known, in minutes: `make bench` has all of them.

THP_MEM_ALLOC_ENABLE=1 python -m experiments.kernels

Medians of five rounds in turn, on Gaussian data, at the shapes B, C and D of the benches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benches import peers
from benches.race import make_data
from deepclust import functional as F


def gradients(z: Tensor, mu: Tensor, target: Any) -> tuple[Tensor, ...]:
    z, mu = z.detach().requires_grad_(), mu.detach().requires_grad_()
    return torch.autograd.grad(F.target_loss(z, mu, target), (z, mu))


def race(name: str, **contenders: Callable[[], Any] | None) -> None:
    runs = {who: run for who, run in contenders.items() if run is not None}
    times: dict[str, list[float]] = {who: [] for who in runs}
    for run in runs.values():
        run()
        run()
    for _ in range(5):
        for who, run in runs.items():
            start = time.perf_counter()
            run()
            times[who].append(1000 * (time.perf_counter() - start))
    medians = {who: statistics.median(taken) for who, taken in times.items()}
    for who, taken in medians.items():
        print(
            f"{name:18s} {who:20s} {taken:8.1f} ms  {taken / medians['deepclust']:6.2f}", flush=True
        )


def main() -> None:
    torch.set_num_threads(2)
    product = torch.compile(peers.q_product, dynamic=False)
    by_hand = torch.compile(peers.hand_gradient, dynamic=False)
    for shape in "BCD":
        z, mu = make_data("gaussian", shape)
        p, snapshot = F.dec_target(F.assign(z, mu)), F.freeze_target(z, mu)
        race(
            f"assign {shape}",
            deepclust=lambda z=z, mu=mu: F.assign(z, mu),
            compiled_product=lambda z=z, mu=mu: product(z, mu),
            cdist=lambda z=z, mu=mu: peers.q_cdist(z, mu),
        )
        race(
            f"target_loss {shape}",
            deepclust=lambda z=z, mu=mu, p=p: gradients(z, mu, p),
            from_a_snapshot=lambda z=z, mu=mu, s=snapshot: gradients(z, mu, s),
            compiled_in_chunks=lambda z=z, mu=mu, p=p: peers.chunked(by_hand)(z, mu, p),
        )
        race(
            f"kmeans_assign {shape}",
            deepclust=lambda z=z, mu=mu: F.kmeans_assign(z, mu),
            sklearn=peers.assign_sklearn(z.numpy(), mu.numpy()),
            faiss=peers.assign_faiss(z.numpy(), mu.numpy()),
        )


if __name__ == "__main__":
    main()
