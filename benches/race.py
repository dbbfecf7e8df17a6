"""One race a bench: ours and its peers in turn, on the same arrays, each result checked first.

    pytest benches/ --benchmark-only          full size; DEEPCLUST_BENCH_QUICK=1: small shapes
    make bench                                the same, then one table (table.py)

Contenders run in turn, five rounds of each, so that a slow minute of a shared machine hits all of
them. pytest-benchmark times ours; the peers' medians, their mismatches and everybody's versions are
in extra_info.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import pytest
import torch

import deepclust

QUICK = bool(os.environ.get("DEEPCLUST_BENCH_QUICK"))
ROUNDS = 5

# PERFORMANCE shapes (N, D, K); the quick ones only show that every bench runs.
SHAPES = {
    "A": (256, 10, 10),
    "B": (1_000_000, 10, 10),
    "C": (200_000, 64, 256),
    "D": (100_000, 128, 1024),
    "E": (70_000, 784, 10),
}
if QUICK:
    SHAPES = {
        "A": (256, 10, 10),
        "B": (20_000, 10, 10),
        "C": (4_000, 64, 256),
        "D": (2_000, 128, 512),
        "E": (2_000, 784, 10),
    }


@dataclass
class Machine:
    """What this machine does at best: the two numbers that floors are made of."""

    flops: float  # of a float32 matrix product, per second
    bytes: float  # read and written by a copy, per second


@pytest.fixture(scope="session")
def machine() -> Machine:
    """Measured here and now."""
    n = 512 if QUICK else 2048
    a, b, c = (torch.randn(n, n) for _ in range(3))
    source = torch.randn(n * n * 8)
    target = torch.empty_like(source)
    flops = 2 * n**3 / _fastest(lambda: torch.mm(a, b, out=c))
    return Machine(flops, 2 * 4 * source.numel() / _fastest(lambda: target.copy_(source)))


def _fastest(function: Callable[[], Any]) -> float:
    times = []
    for _ in range(7):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.fixture(params=list(SHAPES))
def shape(request: pytest.FixtureRequest) -> str:
    """The letter of a shape."""
    return str(request.param)


@pytest.fixture(params=["gaussian", "blobs"])
def data(request: pytest.FixtureRequest, shape: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (N, D) and centroids (K, D): noise, or blobs around K true centres."""
    return make_data(request.param, shape)


def make_data(kind: str, shape: str) -> tuple[torch.Tensor, torch.Tensor]:
    n, d, k = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    centroids = torch.randn(k, d, generator=generator)
    x = torch.randn(n, d, generator=generator)
    if kind == "blobs":
        x = 0.3 * x + centroids[torch.randint(k, (n,), generator=generator)]
        centroids = centroids + 0.1 * torch.randn(k, d, generator=generator)
    return x, centroids


@dataclass
class Contender:
    """One way to do the work: `run` does it, `error` says how wrong its result is."""

    name: str
    run: Callable[[], Any]
    version: str = ""


Race = Callable[..., None]


@pytest.fixture
def race(benchmark: Any, machine: Machine, request: pytest.FixtureRequest) -> Race:
    """Check everybody's result, then time ours with the peers in turn.

    race(work, shape, ours, peers, error=..., tolerance=..., flops=..., bytes=...): `error` maps a
    result to a number that must not exceed `tolerance` for ours; a peer's is only reported.
    """

    def run(
        work: str,
        shape: str,
        ours: Contender,
        peers: list[Contender],
        *,
        error: Callable[[Any], float],
        tolerance: float,
        flops: float,
        bytes: float,
    ) -> None:
        errors = {c.name: error(c.run()) for c in (ours, *peers)}
        assert errors[ours.name] <= tolerance, f"{ours.name} errs by {errors[ours.name]:.2e}"
        times: dict[str, list[float]] = {peer.name: [] for peer in peers}
        repeats = 20 if shape == "A" else 1

        def run_peers() -> None:
            for peer in peers:
                start = time.perf_counter()
                for _ in range(repeats):
                    peer.run()
                times[peer.name].append((time.perf_counter() - start) / repeats)

        def run_ours() -> None:
            for _ in range(repeats):
                ours.run()

        benchmark.pedantic(run_ours, setup=run_peers, rounds=ROUNDS, warmup_rounds=1)
        # --benchmark-disable runs it once, without figures.
        seconds = benchmark.stats.stats.median / repeats if benchmark.stats else float("nan")
        floor = max(flops / machine.flops, bytes / machine.bytes)
        benchmark.group = f"{work} {shape}"
        benchmark.extra_info.update(
            work=work,
            shape=shape,
            sizes=SHAPES[shape],
            data=request.node.callspec.params["data"] if hasattr(request.node, "callspec") else "",
            ours=ours.name,
            seconds=seconds,
            # The first round of a peer is the warm-up of ours.
            peers={name: statistics.median(t[1:] or t) for name, t in times.items() if t},
            errors=errors,
            floor=floor,
            share_of_floor=floor / seconds,
            gflops=flops / seconds / 1e9,
            gbs=bytes / seconds / 1e9,
            threads=torch.get_num_threads(),
            versions=_versions(),
            backend=deepclust.backends()["cpp"],
            quick=QUICK,
        )

    return run


def _versions() -> dict[str, str]:
    names = ("torch", "scikit-learn", "faiss-cpu", "numpy")
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
