# The compiled kernels: see csrc/bindings.cpp. Addresses are of memory that outlives the call.

_Matrix = tuple[int, int, int]  # address, row stride, column stride
_Head = tuple[str, float, int, int, list[int]]  # kind, nu, k, d, addresses of the parameters
_Bad = tuple[int, int] | None  # the input and the row that were refused

def isa() -> str: ...
def assign_forward(
    z: _Matrix, n: int, head: _Head, dtype: str, q: int, n_threads: int, check: bool, /
) -> _Bad: ...
def assign_backward(
    dq: _Matrix,
    q: _Matrix,
    z: _Matrix,
    n: int,
    head: _Head,
    dtype: str,
    dz: int,
    dparams: list[int],
    n_threads: int,
    /,
) -> _Bad: ...
def frequencies(
    z: _Matrix,
    n: int,
    head: _Head,
    dtype: str,
    previous: int,
    f: int,
    labels: int,
    n_changed: int,
    n_threads: int,
    check: bool,
    /,
) -> _Bad: ...
def targets(
    q: _Matrix,
    n: int,
    k: int,
    dtype: str,
    frequencies: int,
    prior: int,
    power: float,
    p: int,
    n_threads: int,
    check: bool,
    /,
) -> _Bad: ...
def target_loss(
    z: _Matrix,
    n: int,
    head: _Head,
    target: tuple[_Matrix] | tuple[_Matrix, _Head, int, float],
    kl: bool,
    scale: float,
    dtype: str,
    loss: int,
    dz: int,
    dparams: list[int],
    n_threads: int,
    check: bool,
    /,
) -> _Bad: ...
def kmeans_assign(
    x: _Matrix,
    centroids: _Matrix,
    n: int,
    d: int,
    k: int,
    dtype: str,
    labels: int,
    sq_dist: int,
    weight: int,
    sums: int,
    counts: int,
    n_threads: int,
    check: bool,
    /,
) -> _Bad: ...
def kmeans_round(
    x: _Matrix, n: int, d: int, dtype: str, rounded: int, n_threads: int, /
) -> _Bad: ...
def kmeans_rounded(
    rounded: int,
    x: _Matrix,
    centroids: _Matrix,
    n: int,
    d: int,
    k: int,
    dtype: str,
    labels: int,
    sq_dist: int,
    n_threads: int,
    /,
) -> int: ...
def kmeans_rounded_bytes(n: int, d: int, dtype: str, /) -> int: ...
def kmeans_batch(
    x: _Matrix,
    rows: int,
    centroids: _Matrix,
    n: int,
    d: int,
    k: int,
    dtype: str,
    weight: int,
    counts: int,
    new_centroids: int,
    new_counts: int,
    n_threads: int,
    /,
) -> float: ...
def kmeans_candidates(
    x: _Matrix,
    candidates: _Matrix,
    n: int,
    d: int,
    k: int,
    dtype: str,
    nearest: int,
    weight: int,
    sq_dist: int,
    potentials: int,
    n_threads: int,
    check: bool,
    /,
) -> _Bad: ...
def kmeans_update(
    x: _Matrix,
    n: int,
    d: int,
    k: int,
    dtype: str,
    labels: int,
    before: int,
    weight: int,
    sums: int,
    counts: int,
    n_threads: int,
    check: bool,
    /,
) -> _Bad: ...
def kmeans_loss(
    z: _Matrix,
    centroids: _Matrix,
    n: int,
    d: int,
    k: int,
    dtype: str,
    labels: int,
    scale: float,
    loss: int,
    dz: int,
    dmu: int,
    n_threads: int,
    check: bool,
    /,
) -> _Bad: ...
def kmeans_step(
    x: _Matrix,
    centroids: _Matrix,
    n: int,
    d: int,
    k: int,
    dtype: str,
    moved: int,
    labels: int,
    upper: int,
    lower: int,
    sq_dist: int,
    n_threads: int,
    /,
) -> _Bad: ...
def kmeans_step_groups(d: int, k: int, dtype: str, /) -> int: ...
def adam(
    weight: int,
    first: int,
    second: int,
    gradient: int,
    copy: int,
    n: int,
    step_size: float,
    beta1: float,
    beta2: float,
    root_correction: float,
    eps: float,
    n_threads: int,
    /,
) -> None: ...
