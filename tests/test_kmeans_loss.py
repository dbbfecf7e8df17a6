from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from deepclust import functional as F
from tests import budget, reference
from tests.cases import DTYPES, LAYOUTS, SHAPES, as_numpy, backends_for, judge, lay_out

backends = pytest.mark.parametrize("backend", backends_for("kmeans_loss"))
dtypes = pytest.mark.parametrize("dtype", DTYPES)
reductions = pytest.mark.parametrize("reduction", ["mean", "sum"])
labelled = pytest.mark.parametrize("labelled", [False, True])


def make_points(
    shape: tuple[int, int, int], dtype: torch.dtype, *, shift: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    n, d, k = shape
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(n, d, generator=rng, dtype=torch.float64) + shift
    centroids = torch.randn(k, d, generator=rng, dtype=torch.float64) + shift
    return z.to(dtype), centroids.to(dtype), torch.randint(k, (n,), generator=rng)


def check_against_oracle(
    z: Tensor, centroids: Tensor, labels: Tensor | None, backend: str, reduction: str = "mean"
) -> None:
    exact_z, exact_mu = as_numpy(z), as_numpy(centroids)
    n, d = exact_z.shape
    u = budget.roundoff(z.dtype)
    exact_labels = None if labels is None else as_numpy(labels)
    if labels is None and n and len(exact_mu) > 1:  # the choice must not be a matter of rounding
        ranked = np.sort(reference.squared_distances(exact_z, exact_mu), axis=1)
        slack = 2 * budget.Scores(exact_z, reference.StudentT(exact_mu), u).ed2.max(1)
        assert (ranked[:, 1] - ranked[:, 0] > slack).all()

    def compute(backend: str) -> dict[str, Tensor]:
        leaves = [value.detach().requires_grad_() for value in (z, centroids)]
        loss = F.kmeans_loss(*leaves, labels, reduction=reduction, backend=backend)
        dz, dmu = torch.autograd.grad(loss, leaves)
        return {"loss": loss, "z": dz, "centroids": dmu}

    gradients = reference.kmeans_loss_gradients(
        exact_z, exact_mu, exact_labels, reduction=reduction
    )
    loss = reference.kmeans_loss(exact_z, exact_mu, exact_labels, reduction=reduction)
    nearest = reference.kmeans_assign(exact_z, exact_mu)[0] if n else np.zeros(0, int)
    members = nearest if exact_labels is None else exact_labels
    sizes, _ = reference.kmeans_update(np.abs(gradients["z"]), members, len(exact_mu))
    # differences are direct, so every error is relative to the sum of the terms' sizes
    judge(
        compute,
        backend,
        {"loss": loss, **gradients},
        {
            "loss": (budget.growth(n) + budget.growth(d) + 6) * u * loss,
            "z": 5 * u * np.abs(gradients["z"]),
            "centroids": (budget.growth(n) + 5) * u * sizes,
        },
    )


@backends
@dtypes
@labelled
@reductions
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_oracle(
    backend: str,
    dtype: torch.dtype,
    labelled: bool,
    reduction: str,
    shape: tuple[int, int, int],
) -> None:
    z, centroids, labels = make_points(shape, dtype)
    check_against_oracle(z, centroids, labels if labelled else None, backend, reduction)


@backends
@labelled
def test_far_from_the_origin(backend: str, labelled: bool) -> None:
    z, centroids, labels = make_points((127, 11, 10), torch.float32, shift=100.0)
    check_against_oracle(z, centroids, labels if labelled else None, backend)


@backends
@labelled
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(backend: str, labelled: bool, layout: str) -> None:
    z, centroids, labels = make_points((127, 11, 10), torch.float32)
    if layout == "expanded":
        z, layout = z[:1].expand(127, 11), "strided"
    else:
        z = lay_out(z, layout)
    labels = torch.stack([labels, labels], 1)[:, 1]
    check_against_oracle(z, lay_out(centroids, layout), labels if labelled else None, backend)


@backends
@dtypes
def test_without_labels_it_is_to_the_nearest(backend: str, dtype: torch.dtype) -> None:
    z, centroids, _ = make_points((127, 11, 10), dtype)
    labels, distance = F.kmeans_assign(z, centroids, backend="eager")
    loss = F.kmeans_loss(z, centroids, backend=backend)
    torch.testing.assert_close(loss, distance.mean())
    assert torch.equal(loss, F.kmeans_loss(z, centroids, labels, backend=backend))


@pytest.mark.large
@backends
@labelled
def test_many_blocks_of_rows(backend: str, labelled: bool) -> None:
    z, centroids, labels = make_points((100_001, 11, 10), torch.float64)
    leaves = [z.requires_grad_(), centroids.requires_grad_()]
    chosen = labels if labelled else torch.cdist(z, centroids).argmin(1)
    plain = ((z - centroids[chosen]) ** 2).sum(1).mean()
    loss = F.kmeans_loss(*leaves, labels if labelled else None, backend=backend)
    torch.testing.assert_close(loss, plain, rtol=1e-12, atol=0)
    found, expected = torch.autograd.grad(loss, leaves), torch.autograd.grad(plain, leaves)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-16)


@backends
@labelled
def test_segments_add_up_to_the_whole(backend: str, labelled: bool) -> None:
    z, centroids, labels = make_points((127, 11, 10), torch.float64)
    total = F.kmeans_loss(
        z, centroids, labels if labelled else None, reduction="sum", backend=backend
    )
    parts = [
        F.kmeans_loss(
            z[r], centroids, labels[r] if labelled else None, reduction="sum", backend=backend
        )
        for r in (slice(0, 50), slice(50, 127))
    ]
    torch.testing.assert_close(sum(parts), total, rtol=1e-13, atol=0)


@backends
@dtypes
def test_points_on_their_centroids(backend: str, dtype: torch.dtype) -> None:
    _, centroids, _ = make_points((1, 5, 8), dtype)
    leaves = [centroids.clone().requires_grad_(), centroids.clone().requires_grad_()]
    loss = F.kmeans_loss(*leaves, backend=backend)
    assert loss.item() == 0.0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, leaves))


@backends
def test_clusters_without_points_get_no_gradient(backend: str) -> None:
    z, centroids, labels = make_points((20, 3, 4), torch.float32)
    centroids.requires_grad_()
    labels.clamp_(max=1)
    dmu = torch.autograd.grad(F.kmeans_loss(z, centroids, labels, backend=backend), centroids)[0]
    assert not dmu[2:].any()
    assert dmu[:2].all()


@backends
@pytest.mark.parametrize("value", [-1, 10])
def test_labels_out_of_range(backend: str, value: int) -> None:
    z, centroids, labels = make_points((127, 11, 10), torch.float32)
    labels[5] = value
    with pytest.raises(ValueError, match=rf"^labels: .*{value}"):
        F.kmeans_loss(z, centroids, labels, backend=backend)


def test_bad_arguments() -> None:
    z, centroids, labels = make_points((127, 11, 10), torch.float32)
    for bad, error in (
        (labels[:5], ValueError),
        (labels[:, None], ValueError),
        (labels.float(), TypeError),
        (labels.tolist(), TypeError),
    ):
        with pytest.raises(error, match=r"^labels: "):
            F.kmeans_loss(z, centroids, bad, backend="eager")
    with pytest.raises(ValueError, match=r"^reduction: got 'none'"):
        F.kmeans_loss(z, centroids, reduction="none", backend="eager")
