"""Very many clusters: the same values, and no index of a pair that is too large."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial import cKDTree

from deepclust import functional as F
from tests.cases import backends_for

K = 100_000
compiled = pytest.mark.skipif("cpp" not in backends_for("kmeans_assign"), reason="no extension")


def make(n: int, d: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=rng), torch.randn(k, d, generator=rng)


def test_values_are_those_of_float64() -> None:
    z, mu = make(60, 8, K)
    exact = F.kmeans_assign(z.double(), mu.double(), backend="eager")
    labels, sq_dist = F.kmeans_assign(z, mu)
    torch.testing.assert_close(sq_dist.double(), exact[1], rtol=1e-5, atol=0)
    assert (labels == exact[0]).float().mean() > 0.95  # up to rounding of near ties
    expected = F.frequencies(z.double(), mu.double(), backend="eager")[0]
    torch.testing.assert_close(F.frequencies(z, mu)[0].double(), expected, rtol=1e-4, atol=0)


def test_the_loss_and_its_gradients_are_those_of_float64() -> None:
    z, mu = make(60, 8, K)
    found = []
    for dtype, backend in ((torch.float32, "auto"), (torch.float64, "eager")):
        leaves = [z.to(dtype).requires_grad_(), mu.to(dtype).requires_grad_()]
        target = F.freeze_target(leaves[0].detach(), leaves[1].detach(), backend=backend)
        loss = F.target_loss(*leaves, target, backend=backend)
        found.append((loss, *torch.autograd.grad(loss, leaves)))
    for value, expected in zip(*found, strict=True):
        scale = float(expected.detach().abs().max())
        torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=1e-4 * scale)


@compiled
def test_more_pairs_than_32_bits_count() -> None:
    n = k = 46_500
    assert n * k > 2**31
    z, mu = make(n, 2, k)
    labels, sq_dist = F.kmeans_assign(z, mu, backend="cpp")
    distance, nearest = cKDTree(mu.double().numpy()).query(z.double().numpy())
    torch.testing.assert_close(
        sq_dist.double().sqrt(), torch.from_numpy(distance), rtol=1e-4, atol=1e-6
    )
    assert (labels.numpy() == nearest).mean() > 0.999  # but for near ties
    f, soft_labels, _ = F.frequencies(z, mu, backend="cpp")
    torch.testing.assert_close(float(f.sum()), float(n), rtol=1e-4, atol=0)
    assert (soft_labels == labels).float().mean() > 0.999
