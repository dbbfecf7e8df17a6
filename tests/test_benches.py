"""The races of benches/: what must be right before a GPU runs them."""

from __future__ import annotations

import copy
import importlib
import sys

import pytest
import torch

from benches import bench_kmeans, peers, race, table
from benches.race import Contender

on_the_cpu = pytest.mark.skipif(race.ON_GPU, reason="make bench runs the real thing")


def failing():
    raise RuntimeError("no kernel\nfor this chip")


class TestCheck:
    def test_a_peer_that_fails_is_named_with_its_reason(self):
        others = [Contender("bad", failing), Contender("good", lambda: 0.5)]
        errors, failures = race.check(Contender("ours", lambda: 0.0), others, float, forgiving=True)
        assert errors == {"ours": 0.0, "good": 0.5}
        assert failures == {"bad": "RuntimeError: no kernel for this chip"}

    def test_ours_must_not_fail(self):
        with pytest.raises(RuntimeError, match="no kernel"):
            race.check(Contender("ours", failing), [], float, forgiving=True)

    def test_no_peer_fails_on_the_cpu(self):
        others = [Contender("bad", failing)]
        with pytest.raises(RuntimeError, match="no kernel"):
            race.check(Contender("ours", lambda: 0.0), others, float, forgiving=False)


def test_a_time_is_one_call_of_those_in_a_row():
    calls = []
    assert 0 < race.seconds_of(lambda: calls.append(0), repeats=5) < 1
    assert len(calls) == 5


def test_tf32_ends_with_its_function():
    before = torch.get_float32_matmul_precision()
    assert race.tf32(torch.get_float32_matmul_precision)() == "high"
    assert torch.get_float32_matmul_precision() == before


class TestLibraries:
    def test_only_what_is_installed_is_listed_and_nothing_imported(self, tmp_path, monkeypatch):
        (tmp_path / "some_library.py").write_text("raise RuntimeError('imported')")
        monkeypatch.syspath_prepend(tmp_path)

        def make(x):
            importlib.import_module("some_library")

        makers = {"Some-Library": make, "no-such-library": make}
        found = peers.installed(makers, 1)
        assert list(found) == ["Some-Library"]
        with pytest.raises(RuntimeError, match="imported"):
            found["Some-Library"]()
        assert "some_library" not in sys.modules

    def test_preparation_happens_once(self):
        made = []

        def make():
            made.append(0)
            return lambda: "result"

        function = peers.lazily(make)
        assert not made
        assert [function(), function()] == ["result", "result"]
        assert len(made) == 1

    @on_the_cpu
    def test_flash_kmeans_is_called_as_it_is_documented(self, monkeypatch):
        """Where the package is installed: its plain torch, whose arguments are the same."""
        fallback = pytest.importorskip("flash_kmeans.torch_fallback")
        import flash_kmeans

        def run(x, n_clusters, **options):
            return fallback.batch_kmeans_Euclid_torch_native(x, n_clusters, **options)

        monkeypatch.setattr(flash_kmeans, "batch_kmeans_Euclid", run)
        self.check_lloyd(peers.lloyd_flash_kmeans)

    @on_the_cpu
    def test_flashlib_is_called_as_it_is_documented(self):
        """Where the package is installed: without a GPU it takes plain torch by itself."""
        pytest.importorskip("flashlib.primitives.kmeans")
        self.check_lloyd(peers.lloyd_flashlib)

    def check_lloyd(self, make):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(500, 4, generator=generator)
        centroids = x[:5].clone()
        expected = peers.iterated(peers.step_index_add, x, centroids, 10)
        run = make(x, centroids, 10)
        for _ in range(2):  # the centroids that are given stay what they are
            assert torch.allclose(run(), expected, atol=1e-5)


class TestPlainTorch:
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    centroids = x[:7] + 0.1

    @pytest.mark.parametrize("name", ["product", "broadcast"])
    def test_assignments_agree(self, name):
        found = getattr(peers, f"nearest_{name}")(self.x, self.centroids)
        assert torch.equal(found, peers.nearest_cdist(self.x, self.centroids))

    def test_updates_agree(self):
        labels = peers.nearest_cdist(self.x, self.centroids)
        pairs = zip(
            peers.update_index_add(self.x, labels, 8),
            peers.update_one_hot(self.x, labels, 8),
            strict=True,
        )
        assert all(torch.allclose(a.double(), b.double(), atol=1e-4) for a, b in pairs)

    def test_steps_agree_and_leave_empty_clusters_where_they_are(self):
        centroids = torch.cat([self.centroids, torch.full((1, 4), 99.0)])
        moved = peers.step_index_add(self.x, centroids)
        assert torch.equal(moved[-1], centroids[-1])
        assert not torch.allclose(moved[0], centroids[0])
        assert torch.allclose(moved, peers.step_one_hot(self.x, centroids), atol=1e-5)

    def test_gradients_at_once_are_those_in_chunks(self):
        p = peers.target(peers.q_product(self.x, self.centroids))
        pairs = zip(
            peers.hand_gradient_at_once(self.x, self.centroids, p),
            peers.chunked(peers.hand_gradient, 100)(self.x, self.centroids, p),
            strict=True,
        )
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


INFO = {
    **{"work": "assign", "shape": "B", "data": "blobs", "ours": "deepclust", "seconds": 1e-3},
    **{"peers": {"torch cdist": 2e-3}, "errors": {"deepclust": 0.0, "torch cdist": 0.1}},
    **{"failures": {}, "share_of_floor": 0.5, "gflops": 1.0, "gbs": 1.0, "quick": False},
    **{"device": "cpu", "threads": 2, "versions": {"torch": "2"}, "backend": "avx2", "repeats": 1},
}


class TestTable:
    def test_a_failed_peer_has_its_row_and_its_reason(self):
        info = copy.deepcopy(INFO) | {"failures": {"flashlib": "RuntimeError: no kernel"}}
        assert table.rows(info)[-1][:3] == ["", "flashlib", "failed"]
        assert {len(row) for row in table.rows(info)} == {8}
        assert "flashlib failed, assign B blobs: RuntimeError: no kernel" in table.footer([info])

    def test_the_footer_names_the_device(self):
        assert "2 threads" in table.footer([INFO])[0]
        on_gpu = table.footer([INFO | {"device": "NVIDIA H100", "repeats": 20}])
        assert "NVIDIA H100" in on_gpu[0]
        assert "20 calls in a row" in on_gpu[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_used_where_there_is_one():
    x, centroids = race.make_data("blobs", "A")
    assert x.is_cuda
    assert centroids.is_cuda
    assert (race.BACKEND, race.repeats_of("B")) == ("triton", 20)
    assert bench_kmeans.FORMS is peers.forms
    assert 0 < race.gpu_copying(1e8) < 1
