"""Captured steps: on the CPU with a tape of torch's operations, on a GPU with CUDA graphs."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from deepclust import functional as F
from deepclust.cluster import DEC
from deepclust.cluster._data import Rows
from deepclust.cluster._graphs import Graphs, cuda_capture
from deepclust.cluster._trainer import Epochs, Method, Phase, Run, Settings, Stage, Updates
from deepclust.datasets import load_digits
from deepclust.kernels import adam
from deepclust.losses import ramp

CPU = torch.device("cpu")
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


class Tape(TorchDispatchMode):
    """What a graph keeps of a function: operations, on fixed tensors, with the numbers they had.

    Only torch's own operations are seen: methods have to run with backend="eager".
    """

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(*map(_pytree.tree_leaves, (out, again)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Tapes:
    """The capture that tests inject, and all that it captured."""

    def __init__(self):
        self.tapes = []

    def __call__(self, function):
        with Tape() as tape:
            outputs = function()
        self.tapes.append(tape)
        return tape.replay, outputs


def test_inputs_are_copied_and_python_is_not_run_again():
    tapes, calls = Tapes(), []
    graphs = Graphs(tapes, CPU)

    def step(inputs):
        calls.append(len(calls))
        return {"sum": (inputs["x"] * inputs["weight"]).sum(), "idx": inputs["idx"] + calls[-1]}

    for weight, start in ((1.0, 0), (0.5, 3), (2, 6)):
        x = torch.full((4, 2), 1.0 + start)
        out = graphs("a", step, {"x": x, "weight": weight, "idx": slice(start, start + 4)})
        assert float(out["sum"]) == 8 * (1 + start) * weight
        # The number of calls is Python's: it stays what it was at the capture.
        assert out["idx"].tolist() == list(range(start, start + 4))
    assert calls == [0]
    # Another shape, and another name, are captured for themselves.
    inputs = {"x": torch.ones(3, 2), "weight": 1.0, "idx": slice(0, 3)}
    assert float(graphs("a", step, inputs)["sum"]) == 6
    assert float(graphs("b", step, inputs)["sum"]) == 6
    assert float(graphs("a", step, {**inputs, "weight": 3.0})["sum"]) == 18
    assert len(tapes.tapes) == len(calls) == 3


def test_a_capture_changes_neither_buffers_nor_generators():
    mean = torch.zeros(3)

    def step(inputs):
        mean.add_(inputs["x"].mean(0))
        return torch.nn.functional.dropout(inputs["x"], 0.5)

    def warm(function):
        for _ in range(3):
            function()
        return Tapes()(function)

    graphs = Graphs(warm, CPU, [mean])
    x = torch.ones(8, 3)
    torch.manual_seed(0)
    outputs = [graphs("a", step, {"x": x}).clone() for _ in range(3)]
    assert mean.tolist() == [3, 3, 3]
    torch.manual_seed(0)
    for output in outputs:
        assert torch.equal(output, torch.nn.functional.dropout(x, 0.5))


def test_state_keeps_its_place():
    tapes = Tapes()
    graphs = Graphs(tapes, CPU)
    state = {"number": 1, "t": torch.ones(2), "other": {"t": torch.ones(2)}}

    def ask(rows):
        graphs.hold(state)

        def step(inputs):
            snapshot = state["snapshot"][inputs["idx"]]
            return snapshot.z.sum() + snapshot.head.params[0].sum() + state["t"].sum()

        return float(graphs("a", step, {"idx": rows}))

    def put(n, value):
        head = torch.full((2, 1), 10.0 * value)
        state["snapshot"] = F.freeze_target(torch.full((n, 1), value), head)

    rows = torch.tensor([0, 2])
    put(5, 1.0)
    given = state["t"]
    assert ask(rows) == 2 + 20 + 2
    assert state["t"] is not given  # what a method kept for itself is not written to
    held = state["snapshot"].z
    put(5, 2.0)
    assert ask(rows) == 4 + 40 + 2
    assert state["snapshot"].z is held
    state["t"] = torch.zeros(2)
    assert ask(rows) == 4 + 40
    state["t"].add_(1)
    assert ask(rows) == 4 + 40 + 2
    assert len(tapes.tapes) == 1
    # What does not fit into its place makes captures invalid.
    put(6, 3.0)
    assert ask(rows) == 6 + 60 + 2
    assert len(tapes.tapes) == 2
    assert state["number"] == 1


class Small(Method):
    """Two phases on shared parameters, buffers, dropout, a schedule of each kind, state."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        self.critic = torch.nn.Linear(4, 1)
        self.centroids = torch.nn.Parameter(torch.randn(3, 4))
        self.seen = []

    def head(self):
        return F.StudentT(self.centroids)

    def embed(self, x):
        return self.encoder(x)

    def stages(self):
        critic = Phase(
            "critic",
            self.critic.parameters,
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
            self.critic_losses,
            repeats=2,
            batch="fresh",
            schedule=lambda o, run: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
        )
        cluster = Phase(
            "cluster",
            lambda: [self.centroids, *self.encoder.parameters()],
            lambda p: torch.optim.Adam(p, lr=0.01),
            self.cluster_losses,
            weights={"fool": ramp(0.0, 1.0, 4), "kl": 2},
            after=self.after,
        )
        refresh = {"refresh": self.refresh, "every": Updates(3)}
        return [
            Stage("warm", (critic,), Epochs(2)),
            Stage("main", (critic, cluster), Updates(11), **refresh),
            Stage("ordered", (cluster,), Updates(7), order="sequential", **refresh),
        ]

    def critic_losses(self, run, batch):
        x = torch.nn.functional.dropout(batch.x, 0.5)
        return {"critic": (self.critic(self.encoder(x)) - batch.y[:, None]).square().mean()}, None

    def cluster_losses(self, run, batch):
        z = self.encoder(batch.x)
        target = run.state["snapshot"][batch.idx]
        kl = F.target_loss(z, self.head(), target, backend="eager", check=False)
        pull = (z * run.state["counts"].sum()).square().mean()
        return {"kl": kl, "fool": self.critic(z).mean(), "pull": pull}, {"z": z}

    def after(self, run, batch, aux):
        assert not aux["z"].requires_grad or run.settings.capture is None
        self.centroids.add_(aux["z"].mean(0), alpha=1e-2)
        run.state["counts"] = run.state["counts"] + 0.01  # replaced between refreshes
        self.seen.append((batch.idx, batch.x.sum()))

    def refresh(self, run):
        z = run.map(self.embed)
        run.state["snapshot"] = F.freeze_target(z, self.head())
        run.state["counts"] = torch.full((3,), 0.1, device=z.device)
        run.state["changed"] = run.update


def small_run(capture=None, device=CPU):
    torch.manual_seed(0)
    x = torch.randn(26, 3)
    y = torch.arange(26) % 2
    settings = Settings(8, 3, y=y, capture=capture)
    return Run(Small().to(device), Rows(x.to(device), device), settings)


def test_a_captured_run_is_the_run():
    plain, tapes = small_run(), Tapes()
    plain.train()
    captured = small_run(tapes)
    captured.train()
    # Batches of 8 and of 2 rows, in each phase of each stage.
    assert len(tapes.tapes) == 2 * (1 + 2 + 1)
    assert captured.history == plain.history
    for name, value in plain.method.state_dict().items():
        assert torch.equal(captured.method.state_dict()[name], value), name
    for (idx, x), (expected_idx, expected_x) in zip(
        captured.method.seen, plain.method.seen, strict=True
    ):
        assert torch.equal(x, expected_x)
        assert torch.equal(torch.arange(26)[idx], torch.arange(26)[expected_idx])
    # Nothing is left of the graphs.
    assert all(p.grad is None for p in captured.method.parameters())
    assert captured._graphs is None


def test_a_captured_step_reads_nothing_back():
    tapes = Tapes()
    small_run(tapes).train()
    for tape in tapes.tapes:
        names = {str(func) for func, *_ in tape.calls}
        assert not any("_local_scalar_dense" in name for name in names)


@pytest.fixture(scope="module")
def digits():
    return load_digits().X[:600]


SMALL = {
    "hidden": (32,),
    "latent_dim": 4,
    "layer_updates": 5,
    "tune_updates": 12,
    "max_updates": 20,
    "update_interval": 8,
    "tol": 0.0,
    "n_init": 2,
    "random_state": 0,
    "backend": "eager",
}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"preset": "paper", "layer_updates": 40, "tune_updates": 80, "pretrain_lr": 0.03},
        {"freeze_encoder": True},
        {"autocast": "bfloat16"},
    ],
)
def test_dec_captured_is_dec(digits, settings, monkeypatch):
    monkeypatch.setattr(adam, "extension", lambda: "")  # a GPU has no half weights
    settings = {**SMALL, **settings}
    plain = DEC(10, **settings).fit(digits)
    tapes = Tapes()
    monkeypatch.setattr(DEC, "_capture", lambda self, device: tapes)
    captured = DEC(10, **settings).fit(digits)
    assert len(tapes.tapes) == 2 * 4  # batches of 256 and 88 rows in four stages
    np.testing.assert_array_equal(captured.labels_, plain.labels_)
    np.testing.assert_array_equal(captured.cluster_centers_, plain.cluster_centers_)
    assert captured.history_ == plain.history_


def test_resumed_captured_run_ends_the_same(digits, monkeypatch):
    tapes = Tapes()
    monkeypatch.setattr(DEC, "_capture", lambda self, device: tapes)

    def interrupt(run):
        if run.stage.name == "cluster" and run.update == 8:
            raise KeyboardInterrupt

    whole = DEC(10, **SMALL).fit(digits)
    cut = DEC(10, **SMALL, callbacks=[interrupt])
    with pytest.raises(KeyboardInterrupt):
        cut.fit(digits)
    cut.callbacks = ()
    cut.fit(digits, resume=True)
    np.testing.assert_array_equal(cut.cluster_centers_, whole.cluster_centers_)
    assert cut.history_ == whole.history_


def test_cuda_graphs_are_refused_elsewhere(digits):
    with pytest.raises(ValueError, match="cuda_graphs: got True with device='cpu'; it takes True"):
        DEC(10, **SMALL, cuda_graphs=True).fit(digits)
    with pytest.raises(ValueError, match="cuda_graphs: got 1; it takes True or False"):
        DEC(10, **SMALL, cuda_graphs=1).fit(digits)


@pytest.mark.gpu
@no_gpu
def test_a_run_in_cuda_graphs_is_the_run():
    device = torch.device("cuda", torch.cuda.current_device())
    plain = small_run(device=device)
    plain.train()
    captured = small_run(partial(cuda_capture, device=device), device)
    captured.train()
    for name, series in plain.history.items():
        np.testing.assert_allclose(captured.history[name], series, rtol=1e-3, err_msg=name)
    for name, value in plain.method.state_dict().items():
        torch.testing.assert_close(captured.method.state_dict()[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@no_gpu
@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_dec_in_cuda_graphs(digits, autocast):
    settings = {**SMALL, "device": "cuda", "backend": "auto", "autocast": autocast}
    plain = DEC(10, **settings).fit(digits)
    captured = DEC(10, **settings, cuda_graphs=True).fit(digits)
    assert (captured.labels_ == plain.labels_).mean() > 0.99
    assert captured.history_.keys() == plain.history_.keys()
    np.testing.assert_array_equal(captured.predict(digits), captured.labels_)
