"""The order of the rows in one pass, and generators by numbers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from deepclust.distributed import Ranks

# Of the rows that several processes share: enough that each process has rows in every batch.
STRETCHES = 64


def generator(*numbers: int) -> torch.Generator:
    """A generator whose seed is made of these numbers."""
    sequence = np.random.SeedSequence(numbers)
    seed = int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator().manual_seed(seed)


def shared_order(ranks: Ranks, *seed: int) -> tuple[Tensor, Tensor]:
    """One random order of all rows, of which each rank makes the part that it holds.

    The whole is cut into STRETCHES, whose sizes differ by one at most. Each has a permutation of
    its own, and the order takes a row of each by turns, which are drawn too. So it does not depend
    on who holds which rows, and a rank permutes those stretches alone that it holds rows of.

    Args:
        ranks: Who holds which rows.
        seed: What tells this order from others.

    Returns:
        The places (n,) of this rank's rows in the order, ascending, and their numbers (n,) among
        its own.
    """
    least, larger = divmod(ranks.total, STRETCHES)
    turns = torch.randperm(STRETCHES, generator=generator(*seed))
    places, numbers = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    stop = 0
    for stretch, turn in enumerate(turns):
        start, stop = stop, stop + least + (stretch < larger)
        if stop <= ranks.start or start >= ranks.stop:
            continue
        permuted = start + torch.randperm(stop - start, generator=generator(*seed, stretch))
        rounds = torch.arange(stop - start)
        # In the last round the larger stretches alone have a turn.
        turn_of = torch.where(rounds < least, turn, (turns[:larger] < turn).sum())
        own = (permuted >= ranks.start) & (permuted < ranks.stop)
        places.append((rounds * STRETCHES + turn_of)[own])
        numbers.append(permuted[own] - ranks.start)
    all_places, order = torch.cat(places).sort()
    return all_places, torch.cat(numbers)[order]
