"""The kernels err no more than eager does, as a rule: over many inputs, not on one lucky one."""

from __future__ import annotations

import statistics

import pytest
import torch
from torch import Tensor

from deepclust import functional as F
from tests.cases import ONE_OF_EACH, Case, backends_for, gradients, make_case, random_target

BACKENDS = [name for name in backends_for("assign") if name not in ("eager", "auto")]


def results(case: Case, p: Tensor, backend: str) -> dict[str, Tensor]:
    """q, the loss, and its gradients, in float64."""
    case = case.leaves()
    q = F.assign(case.z, case.head, backend=backend)
    loss = F.target_loss(case.z, case.head, p, backend=backend)
    found = {"q": q, "loss": loss, **gradients(loss, case)}
    return {name: value.detach().double() for name, value in found.items()}


@pytest.mark.skipif(not BACKENDS, reason="there is no compiled backend")
@pytest.mark.parametrize("kind", [*ONE_OF_EACH, "student_t_nu3"])
def test_errors_are_those_of_eager(kind: str) -> None:
    for backend in BACKENDS:
        ratios: dict[str, list[float]] = {}
        for seed in range(40):
            case = make_case(kind, seed=seed)
            p = random_target(*map(len, (case.z, case.head.params[0])), torch.float32, seed=seed)
            exact = results(case.map(Tensor.double), p.double(), "eager")
            errors = [
                {name: float((v - exact[name]).abs().max()) for name, v in found.items()}
                for found in (results(case, p, backend), results(case, p, "eager"))
            ]
            for name in exact:
                if errors[1][name] > 0:
                    ratios.setdefault(name, []).append(errors[0][name] / errors[1][name])
        medians = {name: statistics.median(found) for name, found in ratios.items()}
        assert max(medians.values()) < 1.5, medians
