"""The compiled kernels: raw pointers in, no checks of shapes; see `deepclust.functional`."""

def isa() -> str:
    """Name the instruction set that the kernels use on this machine."""

def kmeans_assign(
    x_ptr: int,
    x_strides: tuple[int, int],
    c_ptr: int,
    c_strides: tuple[int, int],
    n: int,
    d: int,
    k: int,
    dtype: str,
    labels_ptr: int,
    sq_dist_ptr: int,
    n_threads: int,
    check: bool,
) -> int:
    """Write the nearest centroid of each of n points, and its squared distance.

    Args:
        x_ptr: Address of x (n, d).
        x_strides: Strides of x in elements; may be zero or negative.
        c_ptr: Address of the centroids (k, d), of the same type as x.
        c_strides: Strides of the centroids in elements.
        n: Points; may be 0.
        d: Width, at least 1.
        k: Centroids, at least 1.
        dtype: ``"float32"`` or ``"float64"``.
        labels_ptr: Address of n int64, contiguous; written.
        sq_dist_ptr: Address of n numbers of type ``dtype``, contiguous; written.
        n_threads: The most threads to use, at least 1. Results do not depend on it.
        check: Look for NaN and Inf in x.

    Returns:
        The first row of x that has NaN or Inf, or -1 (always -1 without ``check``).

    Raises:
        ValueError: An argument out of the range above.
    """
