"""Fixtures of every bench."""

import os

import torch

from benches.race import data, machine, race, shape

__all__ = ["data", "machine", "race", "shape"]

torch.set_num_threads(len(os.sched_getaffinity(0)))
