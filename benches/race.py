"""One race a bench: ours and its peers in turn, on the same arrays, each result checked first.

    pytest benches/ --benchmark-only          full size; DEEPCLUST_BENCH_QUICK=1: small shapes
    make bench                                the same, then one table (table.py)

Contenders run in turn, five rounds of each, so that a slow minute of a shared machine hits all of
them. pytest-benchmark times ours; the peers' medians, their mismatches and everybody's versions are
in extra_info.

Where torch finds a GPU, all of it happens there. A time is then that of calls in a row between two
moments at which the whole device is idle: so what a library does on a stream of its own counts,
which events on torch's stream would miss, and launches overlap with work as they do in use.
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
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
# What "auto" takes. On a GPU it is asked for by name: where it cannot run, "auto" would let plain
# torch run under our name.
BACKEND = "triton" if ON_GPU else "auto"

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


def synchronise() -> None:
    """Wait until the device has done all that it was given; the CPU always has."""
    if ON_GPU:
        torch.cuda.synchronize()


def seconds_of(function: Callable[[], Any], repeats: int = 1) -> float:
    """How long one of `repeats` calls in a row takes."""
    synchronise()
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    synchronise()
    return (time.perf_counter() - start) / repeats


def repeats_of(shape: str) -> int:
    """Calls in a row: more than one where a call is shorter than what surrounds it."""
    return 20 if shape == "A" or ON_GPU else 1


@dataclass
class Machine:
    """What this machine does at best: what floors are made of."""

    flops: float  # of a matrix product, per second
    copying: Callable[[float], float]  # seconds of a copy that reads and writes so many bytes


@pytest.fixture(scope="session")
def machine() -> Machine:
    """Measured here and now."""
    n = 512 if QUICK else 8192 if ON_GPU else 2048
    a, b, c = (torch.randn(n, n, device=DEVICE) for _ in range(3))
    if ON_GPU:
        # The fastest product that a kernel for float32 may be made of: ours takes three.
        flops = 2 * n**3 / _fastest(lambda: tf32(torch.mm)(a, b, out=c), repeats=20)
        return Machine(flops, gpu_copying)
    source = torch.randn(n * n * 8)
    target = torch.empty_like(source)
    flops = 2 * n**3 / _fastest(lambda: torch.mm(a, b, out=c))
    speed = 2 * 4 * source.numel() / _fastest(lambda: target.copy_(source))
    return Machine(flops, lambda bytes: bytes / speed)


def tf32(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with matrix products in TF32, where the GPU has it."""

    def run(*args: Any, **options: Any) -> Any:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return function(*args, **options)
        finally:
            torch.set_float32_matmul_precision(before)

    return run


def gpu_copying(bytes: float) -> float:
    """Seconds of a copy of that size: a GPU's cache holds the smaller shapes whole."""
    source = torch.empty(int(bytes) // 8 + 1, device=DEVICE)
    target = torch.empty_like(source)
    return _fastest(lambda: target.copy_(source), repeats=20)


def _fastest(function: Callable[[], Any], repeats: int = 1) -> float:
    return min(seconds_of(function, repeats) for _ in range(7))


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
    made: dict[str, Any] = {"generator": torch.Generator(DEVICE).manual_seed(0), "device": DEVICE}
    centroids = torch.randn(k, d, **made)
    x = torch.randn(n, d, **made)
    if kind == "blobs":
        x = 0.3 * x + centroids[torch.randint(k, (n,), **made)]
        centroids = centroids + 0.1 * torch.randn(k, d, **made)
    return x, centroids


@dataclass
class Contender:
    """One way to do the work: `run` does it, `error` says how wrong its result is."""

    name: str
    run: Callable[[], Any]


def check(
    ours: Contender, peers: list[Contender], error: Callable[[Any], float], forgiving: bool
) -> tuple[dict[str, float], dict[str, str]]:
    """Everybody's error, and why the peers that have none failed.

    No peer fails on the CPU but by our mistake. A library may not know the GPU that is here, or
    these sizes: that is a finding, and the others race without it.
    """
    errors, failures = {ours.name: error(ours.run())}, {}
    for peer in peers:
        try:
            errors[peer.name] = error(peer.run())
        except Exception as problem:
            if not forgiving:
                raise
            failures[peer.name] = " ".join(f"{type(problem).__name__}: {problem}".split())[:200]
    return errors, failures


Race = Callable[..., None]


@pytest.fixture
def race(benchmark: Any, machine: Machine, request: pytest.FixtureRequest) -> Race:
    """Check everybody's result, then time ours with the peers in turn.

    race(work, shape, ours, peers, error=..., tolerance=..., flops=..., bytes=...): `error` maps a
    result to a number that must not exceed `tolerance` for ours; a peer's is only reported.
    `flops` make the floor, and `bytes` read and written in each of `passes`.
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
        passes: int = 1,
    ) -> None:
        errors, failures = check(ours, peers, error, forgiving=ON_GPU)
        assert errors[ours.name] <= tolerance, f"{ours.name} errs by {errors[ours.name]:.2e}"
        runners = [peer for peer in peers if peer.name in errors]
        times: dict[str, list[float]] = {peer.name: [] for peer in runners}
        repeats = repeats_of(shape)
        if ON_GPU:
            torch.cuda.empty_cache()  # not all peers take their memory from torch

        def run_peers() -> None:
            for peer in runners:
                times[peer.name].append(seconds_of(peer.run, repeats))

        def run_ours() -> None:
            for _ in range(repeats):
                ours.run()
            synchronise()

        benchmark.pedantic(run_ours, setup=run_peers, rounds=ROUNDS, warmup_rounds=1)
        # --benchmark-disable runs it once, without figures.
        seconds = benchmark.stats.stats.median / repeats if benchmark.stats else float("nan")
        floor = max(flops / machine.flops, passes * machine.copying(bytes))
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
            failures=failures,
            floor=floor,
            share_of_floor=floor / seconds,
            gflops=flops / seconds / 1e9,
            gbs=passes * bytes / seconds / 1e9,
            threads=torch.get_num_threads(),
            device=torch.cuda.get_device_name(DEVICE) if ON_GPU else "cpu",
            repeats=repeats,
            versions=_versions(),
            backend=deepclust.backends()["triton" if ON_GPU else "cpp"],
            quick=QUICK,
        )

    return run


def _versions() -> dict[str, str]:
    names = ["torch", "scikit-learn", "scikit-learn-intelex", "faiss-cpu", "numpy"]
    if ON_GPU:
        # Packages such as cuML's are named after the version of CUDA that they were built for.
        packages = metadata.packages_distributions()
        modules = ("triton", "flash_kmeans", "flashlib", "cuml")
        names = ["torch", *(packages.get(module, [module])[0] for module in modules)]
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
