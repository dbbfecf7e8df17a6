"""Rows on a device: what is held there, what passes through staging buffers, and in which order."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch

from deepclust.cluster import _data
from deepclust.cluster._data import Rows, Staging

CPU = torch.device("cpu")
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
X = np.random.default_rng(0).normal(size=(103, 5)).astype(np.float32)


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i], 0


def sources(tmp_path):
    np.save(tmp_path / "X.npy", X)
    return {
        "array": X,
        "float64": X.astype(np.float64),
        "tensor": torch.from_numpy(X),
        "transposed": torch.from_numpy(np.ascontiguousarray(X.T)).T,
        "memory map": np.load(tmp_path / "X.npy", mmap_mode="r"),
        "sparse": scipy.sparse.csr_array(X),
        "Dataset": Pairs(),
    }


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(_data, "BLOCK_ROWS", 20)


@pytest.fixture
def nothing_fits(monkeypatch, small_blocks):
    monkeypatch.setattr(_data, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(_data, "RESIDENT_SHARE", 0.0)


def check_values(rows, name):
    assert (len(rows), rows.n_features) == X.shape
    assert [which.start for which, _ in rows.blocks()] == list(range(0, 103, 20))
    whole = torch.cat([x.clone() for _, x in rows.blocks()])
    assert (whole.dtype, whole.device) == (torch.float32, rows.device)
    np.testing.assert_array_equal(whole.cpu().numpy(), X, err_msg=name)
    some = torch.tensor([5, 102, 5, 0])
    for numbers in (some, some.to(rows.device)):
        np.testing.assert_array_equal(rows.take(numbers).cpu().numpy(), X[some], err_msg=name)
    np.testing.assert_array_equal(rows.take(slice(7, 9)).cpu().numpy(), X[7:9], err_msg=name)


def test_what_fits_is_one_tensor(tmp_path, small_blocks):
    for name, source in sources(tmp_path).items():
        rows = Rows(source, CPU)
        assert rows.on_device
        check_values(rows, name)


def test_what_does_not_fit_stays_where_it_is(tmp_path, nothing_fits):
    for name, source in sources(tmp_path).items():
        rows = Rows(source, CPU)
        assert rows.on_device == (name not in ("memory map", "sparse", "Dataset")), name
        check_values(rows, name)


def test_staging_gives_the_same_rows(tmp_path, nothing_fits):
    for name, source in sources(tmp_path).items():
        rows = Rows(source, CPU)
        rows._staging = Staging(CPU)
        check_values(rows, name)
        # Rows that were given before are not those of the buffers.
        blocks = list(rows.blocks())
        assert len({x.data_ptr() for _, x in blocks}) == len(blocks)


class Late(Staging):
    """Copies that take place when they are waited for, as late as on the busiest device."""

    def __init__(self):
        super().__init__(CPU)
        self.waiting = []
        self.most = 0

    def _copy(self, buffer):
        moved = torch.full_like(buffer, torch.nan)
        staging = self

        class Event:
            def synchronize(self):
                if self in staging.waiting:
                    staging.waiting.remove(self)
                    moved.copy_(buffer)

        event = Event()
        self.waiting.append(event)
        self.most = max(self.most, len(self.waiting))
        return moved, event


def test_no_buffer_is_overwritten_before_its_copy_ended(nothing_fits):
    rows = Rows(scipy.sparse.csr_array(X), CPU)
    rows._staging = Late()
    sent = [(X[which], x) for which, x in rows.blocks()]
    # Training takes rows of other numbers between full passes, and more of them.
    for numbers in (torch.arange(60), torch.arange(3), torch.arange(100)):
        sent.append((X[numbers], rows.take(numbers)))
    sent += [(X[which], x) for which, x in rows.blocks()]
    assert rows._staging.most == 2  # one block is read while the other is under way
    assert all(bool(x.isnan().all()) for _, x in sent[-2:])
    for event in list(rows._staging.waiting):
        event.synchronize()
    for expected, x in sent:
        np.testing.assert_array_equal(x.numpy(), expected)


def test_bad_rows_are_named_when_staged(nothing_fits):
    bad = X.copy()
    bad[77, 2] = np.inf
    rows = Rows(scipy.sparse.csr_array(bad), CPU)
    rows._staging = Staging(CPU)
    with pytest.raises(ValueError, match="X: row 77 has NaN or Inf"):
        rows.check_finite()


@pytest.mark.gpu
@no_gpu
def test_rows_on_a_gpu(tmp_path, small_blocks, monkeypatch):
    device = "cuda"
    given = {**sources(tmp_path), "on the GPU": torch.from_numpy(X).to(device)}
    for name, source in given.items():
        rows = Rows(source, torch.device(device))
        assert rows.on_device
        check_values(rows, name)
    monkeypatch.setattr(_data, "RESIDENT_SHARE", 0.0)
    for name, source in given.items():
        rows = Rows(source, torch.device(device))
        assert rows.on_device == (name == "on the GPU"), name
        check_values(rows, name)


@pytest.mark.gpu
@no_gpu
def test_staged_blocks_survive_a_busy_gpu(monkeypatch):
    device = "cuda"
    monkeypatch.setattr(_data, "RESIDENT_SHARE", 0.0)
    monkeypatch.setattr(_data, "BLOCK_ROWS", 1000)
    numbers = np.arange(50_000, dtype=np.float32)[:, None].repeat(64, 1)
    rows = Rows(numbers, torch.device(device))
    work = torch.randn(2000, 2000, device=device)
    sums = []
    for _, x in rows.blocks():
        for _ in range(3):
            work = (work @ work).clamp(-1, 1)
        # Read after that work, when later blocks have been sent already.
        sums.append(x.sum() + 0 * work.sum())
    expected = numbers.reshape(50, -1).sum(1, dtype=np.float64)
    np.testing.assert_allclose(torch.stack(sums).cpu().numpy(), expected, rtol=1e-5)
