"""Nothing of N x K numbers is ever held: measured in torch's allocator and in the process."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch.autograd.profiler import profile

from deepclust import functional as F
from deepclust.cluster import KMeans, MiniBatchKMeans, _lloyd
from tests.cases import backends_for, make_case

BUDGET = 64 << 20
M_MMAP_THRESHOLD = -3  # glibc's malloc.h
# One float32 array of N x K is 80 MB: alone more than the budget.
N, D, K = 40_000, 8, 500


def read_status(name: str) -> int:
    """A line of the process's memory use, in bytes (Linux)."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) << 10


def measure(work: Callable[[], object]) -> tuple[int, int, int]:
    """What `work` takes beyond what is there before it, in bytes, its results included.

    The most that torch's allocator holds at a time, its largest piece, and by how much the
    process's resident peak grows, which sees other allocators too (0 where it cannot be asked).
    """
    with profile(profile_memory=True) as recorded:
        kept = work()
    held = peak = largest = 0
    for event in sorted(recorded.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak, largest = max(peak, held), max(largest, event.nbytes())
    # By now the code that `work` runs is resident, of which a busy system takes pages away.
    del kept, recorded
    gc.collect()
    try:
        # Arrays of 1 MB and more come and go as pages of their own, so that holes in the heap,
        # earlier tests' or those that `work` leaves, neither hide what it takes nor add to it.
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 20)
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        before = read_status("VmRSS")
    except (AttributeError, OSError, TypeError):  # not glibc on Linux
        before = None
    kept = work()
    resident = 0 if before is None else read_status("VmHWM") - before
    del kept
    return peak, largest, resident


def check(
    backend: str, make: Callable[[int], Callable[[], object]], results: int, n: int = N
) -> None:
    """Hold `make(n)()` to the budget, not counting `results` bytes that it returns."""
    make(4_000)()  # what torch loads and buffers at its first calls is not the kernel's
    peak, largest, resident = measure(make(n))
    assert largest < n * K, "a quarter of an N x K array in one piece"
    assert peak <= results + BUDGET, f"{peak / 2**20:.0f} MB"
    # Compiled kernels take memory beside torch's. Plain torch does not, but its many small arrays
    # fill holes of the heap that were not resident, up to all that earlier tests left: 80 MB seen.
    if backend != "eager" and "cpp" in backends_for("target_loss"):
        assert resident <= results + BUDGET, f"resident {resident / 2**20:.0f} MB more"


@pytest.fixture(autouse=True)
def one_thread(threads: Callable[[int], None]) -> None:
    """Threads of other jobs on the machine would make these the slowest tests of all."""
    threads(1)


def test_the_measure_sees_an_array() -> None:
    size = 4 * N * K
    peak, largest, resident = measure(lambda: torch.ones(N, K).sum())
    assert peak >= size
    assert largest == size
    assert resident == 0 or resident >= 0.9 * size
    # one that torch does not know of
    resident = measure(lambda: np.ones((N, K), np.float32).sum())[2]
    assert resident == 0 or resident >= 0.9 * size


def check_target_loss(backend: str, kind: str, n: int) -> None:
    def make(n: int) -> Callable[[], object]:
        case = make_case(kind, (n, D, K)).leaves()
        f = torch.full((K,), n / K)
        snapshot = F.freeze_target(case.z, case.head, frequencies=f, backend="eager")

        def work() -> object:
            loss = F.target_loss(case.z, case.head, snapshot, backend=backend)
            return torch.autograd.grad(loss, list(case.inputs.values()))

        return work

    # gradients as the forward leaves them, and as the backward gives them
    check(backend, make, 2 * 4 * (n * D + 2 * K * D + K), n)


@pytest.mark.parametrize("backend", backends_for("target_loss"))
@pytest.mark.parametrize("kind", ["student_t", "gaussian"])
def test_target_loss_from_a_snapshot(backend: str, kind: str) -> None:
    check_target_loss(backend, kind, N)


@pytest.mark.parametrize(
    "backend", [name for name in backends_for("target_loss") if name != "eager"]
)
def test_target_loss_of_more_rows_takes_no_more(backend: str) -> None:
    check_target_loss(backend, "student_t", 200_000)


@pytest.mark.parametrize("backend", backends_for("frequencies"))
def test_frequencies(backend: str) -> None:
    def make(n: int) -> Callable[[], object]:
        case = make_case("student_t", (n, D, K))
        return lambda: F.frequencies(case.z, case.head, backend=backend)

    check(backend, make, 8 * N)


def test_freeze_target() -> None:
    def make(n: int) -> Callable[[], object]:
        case = make_case("student_t", (n, D, K))
        return lambda: F.freeze_target(case.z, case.head)

    check("auto", make, 8 * N)


@pytest.mark.parametrize("backend", backends_for("frequencies"))
def test_freeze_balanced_target(backend: str) -> None:
    def make(n: int) -> Callable[[], object]:
        case = make_case("linear", (n, D, K))
        return lambda: F.freeze_balanced_target(case.z, case.head, tol=0.1, backend=backend)

    check(backend, make, 8 * N)


def test_balance_objective() -> None:
    def make(n: int) -> Callable[[], object]:
        case = make_case("linear", (n, D, K))
        target = F.freeze_target(case.z, case.head, power=1.0, frequencies=torch.ones(K))
        return lambda: F.balance_objective(target)

    check("auto", make, 8)


@pytest.mark.parametrize("backend", backends_for("kmeans_assign"))
def test_kmeans_assign(backend: str) -> None:
    def make(n: int) -> Callable[[], object]:
        case = make_case("student_t", (n, D, K))
        return lambda: F.kmeans_assign(case.z, case.parameters["centroids"], backend=backend)

    check(backend, make, 12 * N)


@pytest.mark.filterwarnings("ignore:k-means stopped at max_iter")
def test_kmeans_that_follows_centroids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lloyd._Passes, "FEW", 2.0)  # from the second iteration on
    d = 32

    def make(n: int) -> Callable[[], object]:
        x = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
        start = x[:K].numpy()
        return lambda: KMeans(K, init=start, n_init=1, max_iter=5, tol=0.0).fit(x)

    # Labels as they are, were and were guessed; d / 8 bounds and one; distances.
    check("auto", make, (3 * 8 + 4 * (d // 8 + 1) + 4) * N)


@pytest.mark.parametrize("backend", backends_for("kmeans_loss"))
def test_kmeans_loss(backend: str) -> None:
    def make(n: int) -> Callable[[], object]:
        inputs = list(make_case("student_t", (n, D, K)).leaves().inputs.values())
        return lambda: torch.autograd.grad(F.kmeans_loss(*inputs, backend=backend), inputs)

    check(backend, make, 2 * 4 * (N * D + K * D) + 12 * N)


@pytest.mark.parametrize("backend", backends_for("kmeans_candidates"))
def test_kmeans_candidates(backend: str) -> None:
    def make(n: int) -> Callable[[], object]:
        x = make_case("student_t", (n, D, K)).z
        return lambda: F.kmeans_candidates(x, x[:6], torch.ones(n), backend=backend)

    check(backend, make, 7 * 4 * N)


@pytest.mark.parametrize("backend", backends_for("kmeans_update"))
def test_kmeans_update(backend: str) -> None:
    def make(n: int) -> Callable[[], object]:
        x, labels = make_case("student_t", (n, D, K)).z, torch.arange(n) % K
        return lambda: F.kmeans_update(x, labels, K, backend=backend)

    check(backend, make, 8 * K * (D + 1))


@pytest.mark.parametrize("backend", backends_for("assign"))
def test_assign_holds_q_and_nothing_like_it(backend: str) -> None:
    case = make_case("student_t", (N, D, K)).leaves()
    dq = torch.ones(()).expand(N, K)

    def work() -> object:
        q = F.assign(case.z, case.head, backend=backend)
        return torch.autograd.grad(q, list(case.inputs.values()), dq)

    # torch's own derivative holds q in pieces, then whole, and so its gradient
    arrays = 2 if backend == "eager" else 1
    peak, _, _ = measure(work)
    assert peak <= arrays * 4 * N * K + 2 * 4 * (N * D + K * D) + BUDGET


def test_memory_map_is_read_by_block(tmp_path: Path) -> None:
    n, d = 400_000, 64  # 102 MB
    path = tmp_path / "z.npy"
    written = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, d))
    written[::1000] = 1.0
    del written
    z = np.load(path, mmap_mode="r")
    centroids = torch.randn(5, d, generator=torch.Generator().manual_seed(0))
    peak, _, _ = measure(lambda: F.freeze_target(z, centroids))
    assert peak <= 8 * n + BUDGET / 2


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("Estimator", "form"), [(KMeans, "sparse"), (MiniBatchKMeans, "memory map")]
)
def test_kmeans_makes_rows_dense_by_block(Estimator: Any, form: str, tmp_path: Path) -> None:
    n, d, mapped = 400_000, 256, 0  # 410 MB in float32
    if form == "sparse":
        options: dict[str, Any] = {"density": 1e-3, "random_state": 0, "dtype": np.float32}
        X = scipy.sparse.random(n, d, format="csr", **options)
    else:
        path, mapped = tmp_path / "x.npy", n * d
        written = np.lib.format.open_memmap(path, mode="w+", dtype=np.int8, shape=(n, d))
        written[::7, ::5] = 1
        del written
        X = np.load(path, mmap_mode="r")
    made = Estimator(5, init="random", n_init=1, max_iter=1, random_state=0)
    peak, _, resident = measure(lambda: made.fit(X))
    # labels and distances of two passes; pages of the map are resident while they are read
    assert peak <= 4 * 8 * n + BUDGET
    # As much again for NumPy's blocks, and holes that earlier tests left in the heap.
    assert resident <= 4 * 8 * n + 2 * BUDGET + mapped
