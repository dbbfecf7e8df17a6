"""The loop on a method small enough to follow by hand: what runs when, and resuming anywhere."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest
import torch

from deepclust import _files
from deepclust import functional as F
from deepclust.cluster._data import Rows
from deepclust.cluster._trainer import Epochs, Method, Phase, Run, Settings, Stage, Updates
from deepclust.losses import ramp, switch

N = 10


class Toy(Method):
    """Two phases, dropout, a snapshot and a log, on ten rows of two numbers."""

    def __init__(self, updates=7, order="shuffle", stop_at=None):
        super().__init__()
        self.encoder = torch.nn.Linear(2, 2)
        self.critic = torch.nn.Linear(2, 1)
        self.centroids = torch.nn.Parameter(torch.eye(2))
        self.length, self.order, self.stop_at = Updates(updates), order, stop_at
        self.events = []

    def head(self):
        return F.StudentT(self.centroids)

    def embed(self, x):
        return self.encoder(x)

    def stages(self):
        adam, sgd = torch.optim.Adam, torch.optim.SGD
        critic = Phase(
            "critic",
            self.critic.parameters,
            lambda p: sgd(p, lr=0.1, momentum=0.9),
            self.critic_losses,
            repeats=2,
            batch="fresh",
            schedule=lambda o, run: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
        )
        cluster = Phase(
            "cluster",
            lambda: [self.centroids, *self.encoder.parameters()],
            lambda p: adam(p, lr=0.01),
            self.cluster_losses,
            weights={"fool": ramp(0.0, 1.0, 4)},
            after=self.after,
        )
        return [
            Stage("warm", (critic,), Epochs(2), begin=self.begin),
            Stage(
                "main",
                (critic, cluster),
                self.length,
                refresh=self.refresh,
                every=Updates(3),
                stop=self.stop,
                order=self.order,
            ),
            Stage("last", begin=self.begin),
        ]

    def begin(self, run):
        self.events.append(("begin", run.stage.name))

    def critic_losses(self, run, batch):
        self.events.append(("critic", run.update, numbers(batch.idx)))
        x = torch.nn.functional.dropout(batch.x, 0.5)
        return {"critic": self.critic(self.encoder(x)).square().mean()}, None

    def cluster_losses(self, run, batch):
        self.events.append(("cluster", run.update, numbers(batch.idx)))
        z = self.encoder(batch.x)
        kl = F.target_loss(z, self.head(), run.state["snapshot"][batch.idx])
        return {"kl": kl, "fool": self.critic(z).mean()}, "aux"

    def after(self, run, batch, aux):
        assert aux == "aux"
        assert not torch.is_grad_enabled()
        noise = torch.randn(self.centroids.shape, generator=run.rng("noise"))
        self.centroids.add_(noise, alpha=1e-3)

    def refresh(self, run):
        self.events.append(("refresh", run.update))
        z = run.map(self.embed)
        run.state["snapshot"] = F.freeze_target(z, self.head())
        run.state["labels"] = z.argmax(1)
        run.log("spread", z.std())

    def stop(self, run):
        return "far enough" if run.update == self.stop_at else None


def numbers(idx):
    return list(range(*idx.indices(N))) if isinstance(idx, slice) else idx.tolist()


def toy_run(callbacks=(), checkpoint=None, seed=3, method=None, **toy):
    torch.manual_seed(0)
    x = torch.randn(N, 2)
    method = method or Toy(**toy)
    settings = Settings(4, seed, tuple(callbacks), checkpoint, {"seed": seed})
    return Run(method, Rows(x, torch.device("cpu")), settings)


def result(run):
    return {
        "method": {k: v.numpy() for k, v in run.method.state_dict().items()},
        "history": run.history,
        "reasons": run.reasons,
    }


def assert_same(a, b):
    assert a["history"] == b["history"]
    assert a["reasons"] == b["reasons"]
    for name, value in a["method"].items():
        np.testing.assert_array_equal(value, b["method"][name], err_msg=name)


def test_stages_phases_and_refreshes_come_in_order():
    run = toy_run()
    run.train()
    events = [event[:2] for event in run.method.events]
    warm = [("begin", "warm")] + [("critic", u) for u in range(6) for _ in range(2)]
    main = []
    for update in range(7):
        if update % 3 == 0:
            main.append(("refresh", update))
        main += [("critic", update)] * 2 + [("cluster", update)]
    assert events == warm + main + [("refresh", 7), ("begin", "last")]
    assert run.total_updates == 13


def test_every_pass_sees_every_row_once_and_the_last_batch_is_kept():
    run = toy_run()
    run.train()
    seen = [event[2] for event in run.method.events if event[0] == "critic"][:12]
    assert [len(rows) for rows in seen] == [4, 4, 2] * 4
    for start in range(0, 12, 3):
        assert sorted(row for rows in seen[start : start + 3] for row in rows) == list(range(N))
    assert seen[0] != seen[3]


def test_sequential_order_and_same_or_fresh_batches():
    run = toy_run(order="sequential")
    run.train()
    main = [e for e in run.method.events if len(e) == 3][12:]
    assert [e[2] for e in main[:2]] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    # The second phase takes the batch that the update has already.
    assert main[2][0] == "cluster"
    assert main[2][2] == main[1][2]


def test_a_phase_moves_its_own_parameters_only():
    run = toy_run(updates=0)
    before = {name: p.clone() for name, p in run.method.named_parameters()}
    run.train()
    for name, p in run.method.named_parameters():
        assert torch.equal(p, before[name]) == (not name.startswith("critic")), name


def test_stop_gives_a_reason_and_ends_the_stage():
    run = toy_run(stop_at=3)
    run.train()
    assert run.reasons == {
        "warm": "length of 6 updates",
        "main": "far enough",
        "last": "length of 0 updates",
    }
    assert max(e[1] for e in run.method.events if e[0] == "cluster") == 2


def test_history_holds_means_between_readings():
    run = toy_run()
    run.train()
    assert [update for update, _ in run.history["main/spread"]] == [0, 3, 6, 7]
    assert [update for update, _ in run.history["main/kl"]] == [3, 6, 7]
    assert [update for update, _ in run.history["warm/critic"]] == [6]


def test_callbacks_see_each_refresh_and_each_end():
    seen = []
    run = toy_run([lambda run: seen.append((run.stage.name, run.update, run.refreshed))])
    run.train()
    assert seen == [
        ("warm", 6, False),
        *[("main", update, True) for update in (0, 3, 6, 7)],
        ("last", 0, False),
    ]


def test_schedules():
    assert [ramp(1.0, 3.0, 2)(u) for u in range(4)] == [1.0, 2.0, 3.0, 3.0]
    assert [switch(0.0, 2.0, 1)(u) for u in range(3)] == [0.0, 2.0, 2.0]
    with pytest.raises(ValueError, match="updates: got 0"):
        ramp(0, 1, 0)
    with pytest.raises(ValueError, match="update: got -1"):
        switch(0, 1, -1)


class Interrupter:
    """Asks for an interrupt at the given events, as Ctrl-C would."""

    def __init__(self, at):
        self.at, self.count = at, 0

    def __call__(self, run):
        self.count += 1
        if self.count == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_resumed_run_ends_the_same(at, tmp_path):
    whole = toy_run()
    whole.train()
    path = tmp_path / "checkpoint"
    cut = toy_run([Interrupter(at)], checkpoint=path)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    resumed = toy_run()
    resumed.load_state_dict(_files.load_tree(path, kind="checkpoint"))
    resumed.train()
    assert_same(result(resumed), result(whole))


@pytest.mark.parametrize("update", range(1, 7))
def test_resume_after_any_update(update, tmp_path):
    """A real signal in the middle of a step: the step is finished, then the run is kept."""

    class Cut(Toy):
        def after(self, run, batch, aux):
            super().after(run, batch, aux)
            if run.update == update - 1:
                os.kill(os.getpid(), signal.SIGINT)

    whole = toy_run()
    whole.train()
    path = tmp_path / "checkpoint"
    cut = toy_run(checkpoint=path, method=Cut())
    cut.method.load_state_dict(toy_run().method.state_dict())
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    assert signal.getsignal(signal.SIGINT) is handler
    assert cut.update == update
    resumed = toy_run()
    resumed.load_state_dict(_files.load_tree(path, kind="checkpoint"))
    resumed.train()
    assert_same(result(resumed), result(whole))


def test_training_in_another_thread_needs_no_signal_handler():
    run, whole = toy_run(), toy_run()
    thread = threading.Thread(target=run.train)
    thread.start()
    thread.join()
    whole.train()
    assert_same(result(run), result(whole))


def test_global_generator_is_left_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    run = toy_run()
    torch.manual_seed(11)
    run.train()
    assert torch.equal(torch.rand(3), expected)


def test_a_run_that_began_on_a_gpu_goes_on_elsewhere():
    cut = toy_run([Interrupter(2)])
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    tree = cut.state_dict()
    tree["torch_rng"]["cuda"] = torch.zeros(16, dtype=torch.uint8)
    whole, resumed = toy_run(), toy_run()
    whole.train()
    resumed.load_state_dict(tree)
    resumed.train()
    assert_same(result(resumed), result(whole))


def test_checkpoint_of_another_run_is_refused():
    run = toy_run()
    tree = run.state_dict()
    with pytest.raises(ValueError, match="other parameters: seed was 3 and is 4"):
        toy_run(seed=4).load_state_dict(tree)
    tree["data"] = {**tree["data"], "n": 11}
    with pytest.raises(ValueError, match="other data: n was 11 and is 10"):
        run.load_state_dict(tree)


def test_divergence_is_an_error_that_names_the_series():
    class Diverging(Toy):
        def critic_losses(self, run, batch):
            return {"critic": self.critic(self.encoder(batch.x)).mean() * float("nan")}, None

    with pytest.raises(RuntimeError, match="warm/critic is nan at update"):
        toy_run(method=Diverging()).train()


def test_map_fills_arrays_and_memory_maps(tmp_path):
    run = toy_run()
    expected = run.map(run.method.embed)
    assert expected.shape == (N, 2)
    assert not expected.requires_grad
    out = np.lib.format.open_memmap(tmp_path / "z.npy", "w+", np.float32, (N, 2))
    assert run.map(run.method.embed, out=out) is out
    np.testing.assert_array_equal(np.load(tmp_path / "z.npy"), expected.numpy())
    assert run.sum(torch.ones(2)).dtype == torch.float64


def test_batches_carry_labels_views_and_companions():
    seen = []

    class Views(Toy):
        def stages(self):
            def losses(run, batch):
                seen.append(batch)
                return {"loss": self.critic(self.encoder(batch.x)).mean()}, None

            phase = Phase("p", self.critic.parameters, lambda p: torch.optim.SGD(p, 0.1), losses)
            return [
                Stage(
                    "only",
                    (phase,),
                    Updates(1),
                    augment=lambda x, generator: x + torch.rand(x.shape, generator=generator),
                    companions=lambda run, idx: (
                        torch.stack([idx, (idx + 1) % N], 1),
                        torch.ones(len(idx), 2),
                    ),
                )
            ]

    run = toy_run(method=Views())
    run.settings.y = torch.arange(N) - 1
    run.train()
    batch = seen[0]
    assert torch.equal(batch.y, batch.idx - 1)
    assert bool((batch.view > batch.x).all())
    assert batch.companions.shape == (4, 2, 2)
    assert batch.companion_weights.shape == (4, 2)
    assert torch.equal(batch.companions[:, 0], batch.x)
    assert torch.equal(batch.companions[:, 1], run.take((batch.idx + 1) % N))
