"""What every test shares: the environment's switches, threads, and where real data lies.

DEEPCLUST_TEST_BLOCK="deepclust._C,triton" makes these modules absent, whether installed or not.
DEEPCLUST_DATA is a folder of data sets; tests that need one are skipped without it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Before anything imports deepclust. None is how sys.modules marks a module that cannot be imported.
for _name in filter(None, os.environ.get("DEEPCLUST_TEST_BLOCK", "").split(",")):
    sys.modules[_name.strip()] = None  # type: ignore[assignment]

# Idle OpenMP threads that spin take the cores from whoever has work on a shared machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

# More threads than cores fight over them, of all processes that run tests together.
_cores = len(os.sched_getaffinity(0)) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(1, min(torch.get_num_threads(), _cores)))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """A setter of torch's thread count, which is put back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets."""
    named = os.environ.get("DEEPCLUST_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data sets: DEEPCLUST_DATA does not name a folder, nor is there {folder}")
    return folder
