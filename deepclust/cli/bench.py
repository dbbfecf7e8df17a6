"""`deepclust bench`: a short race of the primitives on this machine's CPU.

Results are compared with those in float64 before anything is timed; then all run in turn, so that a
slow minute of the machine hits each of them. The full benches, with torch.compile among the peers,
are in benches/ of the repository.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import metadata
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

import deepclust
from deepclust import functional as F
from deepclust.cli import _config, _output

SHAPES = {
    "A": (256, 10, 10),
    "B": (1_000_000, 10, 10),
    "C": (200_000, 64, 256),
    "D": (100_000, 128, 1024),
    "E": (70_000, 784, 10),
}
_LEAST = 2e-3  # seconds that one timing takes: shorter calls are made several times
_CHECKED = 20_000  # rows of which each is computed by itself: so many of them are compared
_PLAIN = 6  # arrays (N, K) that plain torch holds at once for a gradient

_EXAMPLES = """\b
Examples:
  deepclust bench
  deepclust bench --shape C --threads 1
  deepclust bench --shape 50000,32,100 --primitive kmeans_assign --json
"""


class Work(NamedTuple):
    """What is raced: ours, the others by their names, and how wrong a result is."""

    ours: Callable[[], Any]
    others: Mapping[str, Callable[[], Any]]
    error: Callable[[Any], float]
    tolerance: float


def _assign(z: Tensor, mu: Tensor) -> Work:
    some = _some(z)
    expected = F.assign(z[some].double(), mu.double(), backend="eager")
    others = {
        "torch cdist": lambda: _student(_cdist(z, mu)),
        "torch product": lambda: _student(_squared(z, mu)),
    }
    return Work(lambda: F.assign(z, mu), others, lambda q: _largest(q[some], expected), 1e-5)


def _frequencies(z: Tensor, mu: Tensor) -> Work:
    expected = F.frequencies(z.double(), mu.double(), backend="eager")

    def plain() -> tuple[Tensor, Tensor]:
        q = _student(_squared(z, mu))
        return q.sum(0), q.argmax(1)

    def error(found: tuple[Tensor, ...]) -> float:
        relative = ((found[0].double() - expected[0]) / expected[0]).abs().max()
        return max(float(relative), _mismatch(found[1], expected[1]))

    return Work(lambda: F.frequencies(z, mu), {"torch, q stored": plain}, error, 1e-4)


def _dec_target(z: Tensor, mu: Tensor) -> Work:
    q = F.assign(z, mu)
    f = q.sum(0, dtype=torch.float64)
    some = _some(z)
    weight = q[some].double().square() / f
    expected = weight / weight.sum(1, keepdim=True)

    def plain() -> Tensor:
        weight = q.square() / q.sum(0)
        return weight / weight.sum(1, keepdim=True)

    return Work(
        lambda: F.dec_target(q), {"torch": plain}, lambda p: _largest(p[some], expected), 1e-5
    )


def _target_loss(z: Tensor, mu: Tensor) -> Work:
    p = F.dec_target(F.assign(z, mu))

    def gradients(loss: Callable[..., Tensor], *args: Tensor, **options: Any) -> list[Tensor]:
        leaves = [arg.detach().requires_grad_() for arg in args[:2]]
        value = loss(*leaves, args[2], **options)
        return [value.detach(), *torch.autograd.grad(value, leaves)]

    def plain(distances: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def loss(z: Tensor, mu: Tensor, p: Tensor) -> Tensor:
            q = _student(distances(z, mu))
            return torch.nn.functional.kl_div(q.log(), p, reduction="sum") / len(z)

        return loss

    expected = gradients(F.target_loss, z.double(), mu.double(), p.double(), backend="eager")

    def error(found: list[Tensor]) -> float:
        pairs = zip(found, expected, strict=True)
        return max(_largest(a, b) / float(b.abs().max()) for a, b in pairs)

    forms = {"torch cdist": plain(_cdist), "torch product": plain(_squared)}
    others = {by: partial(gradients, loss, z, mu, p) for by, loss in forms.items()}
    return Work(lambda: gradients(F.target_loss, z, mu, p), others, error, 1e-3)


def _kmeans_assign(z: Tensor, mu: Tensor) -> Work:
    some = _some(z)
    expected, _ = F.kmeans_assign(z[some].double(), mu.double(), backend="eager")
    others: dict[str, Callable[[], Any]] = {
        "torch cdist": lambda: torch.cdist(z, mu).argmin(1),
        "scikit-learn": _sklearn(z.numpy(), mu.numpy()),
    }
    if importlib.util.find_spec("faiss") is not None:
        others["faiss"] = _faiss(z.numpy(), mu.numpy())
    return Work(
        lambda: F.kmeans_assign(z, mu)[0],
        others,
        lambda labels: _mismatch(torch.as_tensor(labels)[some], expected),
        1e-4,
    )


def _kmeans_update(z: Tensor, mu: Tensor) -> Work:
    labels, _ = F.kmeans_assign(z, mu)
    k, d = mu.shape
    expected = torch.zeros(k, d, dtype=torch.float64).index_add_(0, labels, z.double())

    def plain() -> tuple[Tensor, Tensor]:
        sums = z.new_zeros(k, d).index_add_(0, labels, z)
        return sums, torch.bincount(labels, minlength=k)

    def error(found: tuple[Tensor, Tensor]) -> float:
        return _largest(found[0], expected) / float(expected.abs().max())

    return Work(lambda: F.kmeans_update(z, labels, k), {"torch index_add": plain}, error, 1e-6)


# By the names of the functions.
PRIMITIVES: dict[str, Callable[[Tensor, Tensor], Work]] = {
    "assign": _assign,
    "frequencies": _frequencies,
    "dec_target": _dec_target,
    "target_loss": _target_loss,
    "kmeans_assign": _kmeans_assign,
    "kmeans_update": _kmeans_update,
}


def _sizes(shape: str) -> tuple[int, int, int]:
    """N, D and K of a letter or of three numbers."""
    if shape.upper() in SHAPES:
        return SHAPES[shape.upper()]
    try:
        n, d, k = (int(part) for part in shape.split(","))
    except ValueError:
        n = d = k = 0
    if min(n, d, k) < 1:
        raise click.UsageError(
            f"--shape: got {shape!r}; it takes a letter from A to E, or N,D,K, such as 50000,32,100"
        )
    return n, d, k


@click.command("bench", short_help="Race the primitives on this CPU.", epilog=_EXAMPLES)
@click.option(
    "--shape",
    default="B",
    metavar="SHAPE",
    show_default=True,
    help="N,D,K (samples, features, clusters), or a letter: "
    + ", ".join(f"{name} {n},{d},{k}" for name, (n, d, k) in SHAPES.items()),
)
@click.option(
    "--primitive",
    "primitives",
    multiple=True,
    metavar="NAME",
    type=click.Choice(list(PRIMITIVES)),
    help=f"Only this one of {', '.join(PRIMITIVES)}. May be given again.",
)
@click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(min=1),
    help="CPU threads; by default torch's own.",
)
@click.option(
    "--rounds",
    metavar="N",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="How often each is timed; the median is told.",
)
@_config.config_option
@_output.json_option
def command(
    *,
    shape: str,
    primitives: tuple[str, ...],
    threads: int | None,
    rounds: int,
    as_json: bool,
) -> int:
    """Race the primitives on this CPU against plain PyTorch, scikit-learn and faiss, if installed.

    Results are compared with those in float64 first: one of deepclust's that is wrong is not timed,
    and the exit code is 1. Then all run in turn; a time is the median of the rounds. The data are
    Gaussian noise in float32.
    """
    n, d, k = _sizes(shape)
    _check_memory(n, k)
    if threads is not None:
        torch.set_num_threads(threads)
    threads = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    z, mu = torch.randn(n, d, generator=generator), torch.randn(k, d, generator=generator)
    versions = _versions()
    tell = (lambda line: None) if as_json else _output.say
    many = "s" * (threads > 1)
    tell(f"{n:,} samples x {d} features x {k} clusters, float32, {threads} thread{many}")
    tell(", ".join(f"{name} {version}" for name, version in versions.items()))
    tell(click.style(_row("", "", "ms", "deepclust is", "error"), bold=True))
    works: list[dict[str, Any]] = []
    wrong = []
    with threadpool_limits(threads):  # the other libraries' threads, too
        for name in primitives or PRIMITIVES:
            rows = list(_race(PRIMITIVES[name](z, mu), rounds))
            works.append({"primitive": name, "contenders": rows})
            wrong += [name] * (not rows[0]["right"])
            for line in _table(name, rows):
                tell(line)
    tell(
        f"Medians of {rounds} rounds in turn. Error: against float64, as the largest difference or"
        " the share of wrong labels."
    )
    result = {
        "shape": {"n": n, "d": d, "k": k},
        "threads": threads,
        "rounds": rounds,
        "versions": versions,
        "works": works,
    }
    _output.conclude("bench", result, [], as_json)
    if wrong:
        _output.note(f"wrong results of {', '.join(wrong)}")
    return int(bool(wrong))


def _race(work: Work, rounds: int) -> Iterator[dict[str, Any]]:
    """Ours, then the others: who it is, the error, whether that is right, the median time."""
    runs = {"deepclust": work.ours, **work.others}
    errors = {by: work.error(run()) for by, run in runs.items()}
    right = {by: error <= work.tolerance for by, error in errors.items()}
    # Others round in their own way: what they lose is told, and timed.
    racing = {by: run for by, run in runs.items() if right[by] or by != "deepclust"}
    calls = {by: max(1, int(_LEAST / _seconds(run, 1))) for by, run in racing.items()}
    times: dict[str, list[float]] = {by: [] for by in racing}
    for _ in range(rounds):
        for by, run in racing.items():
            times[by].append(_seconds(run, calls[by]))
    for by in runs:
        seconds = statistics.median(times[by]) if by in times else None
        yield {"by": by, "seconds": seconds, "error": errors[by], "right": right[by]}


def _seconds(run: Callable[[], Any], calls: int) -> float:
    """How long one of so many calls in a row takes."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def _table(name: str, rows: list[dict[str, Any]]) -> Iterator[str]:
    ours = rows[0]["seconds"]
    for row in rows:
        seconds, error = row["seconds"], f"{row['error']:.1e}"
        first = row is rows[0]
        if seconds is None:
            yield click.style(_row(name, row["by"], "wrong", "", error), fg="red")
            continue
        ratio = "" if first or ours is None else f"{seconds / ours:.2f} x as fast"
        ms = f"{1000 * seconds:.3g}" if seconds < 1 else f"{1000 * seconds:.0f}"
        line = _row(name if first else "", row["by"], ms, ratio, error)
        yield click.style(line, fg="green") if first else line


def _row(work: str, by: str, ms: str, ratio: str, error: str) -> str:
    return f"{work:<14} {by:<16} {ms:>8} {ratio:>16} {error:>9}".rstrip()


def _check_memory(n: int, k: int) -> None:
    """Refuse shapes at which the plain forms of the others would fill the memory."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = _PLAIN * 4 * n * k + 8 * 2 * n * k
    if needed > 0.7 * there:
        raise click.UsageError(
            f"--shape: got {n} samples and {k} clusters; plain PyTorch takes about"
            f" {needed / 1e9:.1f} GB for these, and the machine has {there / 1e9:.1f}"
        )


def _versions() -> dict[str, str]:
    found = {"deepclust": deepclust.__version__, "kernels": deepclust.backends()["cpp"]}
    for name in ("torch", "scikit-learn", "faiss-cpu"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _some(z: Tensor) -> Tensor:
    return torch.linspace(0, len(z) - 1, min(len(z), _CHECKED)).long()


def _largest(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max())


def _mismatch(found: Tensor, expected: Tensor) -> float:
    return float((found != expected).double().mean())


# As PyTorch's users write them.


def _cdist(z: Tensor, mu: Tensor) -> Tensor:
    return torch.cdist(z, mu).square()


def _squared(z: Tensor, mu: Tensor) -> Tensor:
    return (z.square().sum(1, keepdim=True) + mu.square().sum(1) - 2 * z @ mu.T).clamp_min(0)


def _student(sq_dist: Tensor) -> Tensor:
    q = 1 / (1 + sq_dist)
    return q / q.sum(1, keepdim=True)


def _sklearn(x: np.ndarray[Any, Any], centroids: np.ndarray[Any, Any]) -> Callable[[], Any]:
    from sklearn.metrics import pairwise_distances_argmin

    return lambda: pairwise_distances_argmin(x, centroids)


def _faiss(x: np.ndarray[Any, Any], centroids: np.ndarray[Any, Any]) -> Callable[[], Any]:
    import faiss

    index = faiss.IndexFlatL2(x.shape[1])
    index.add(centroids)
    return lambda: index.search(x, 1)[1].ravel()
