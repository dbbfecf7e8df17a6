"""Runs a function in several processes that torch.distributed joins."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# A server that has imported everything, and has no threads, forks the processes in no time. Adam
# imports torch._dynamo when it is first made.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.conftest", "tests.test_distributed", "torch._dynamo"])

ENDED = "ended"  # of a process that was killed
PATIENCE = 100.0  # seconds, on a busy machine


def on_ranks(size: int, function: Any, *args: Any) -> list[Any]:
    """What function(*args) gives on each rank, or the exception that it raises there."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        processes, ends = [], []
        for rank in range(size):
            end, others = _context.Pipe(duplex=False)
            job = (others, Path(folder) / "rendezvous", rank, size, function, args)
            processes.append(_context.Process(target=_run, args=job, daemon=True))
            processes[-1].start()
            others.close()
            ends.append(end)
        try:
            return [_received(end) for end in ends]
        finally:
            for process in processes:
                process.kill()
                process.join()


def _received(end: Connection) -> Any:
    if not end.poll(PATIENCE):
        raise TimeoutError(f"a rank said nothing for {PATIENCE} s")
    try:
        return end.recv()
    except EOFError:
        return ENDED


def _run(end: Connection, path: Path, rank: int, size: int, function: Any, args: Any) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=0.8 * PATIENCE)
    dist.init_process_group(
        "gloo", init_method=f"file://{path}", rank=rank, world_size=size, timeout=timeout
    )
    try:
        result = function(*args)
    except (Exception, KeyboardInterrupt) as error:
        traceback.print_exc()
        result = error
    end.send(result)
    time.sleep(PATIENCE)  # until it is killed: others may still read what it sent
