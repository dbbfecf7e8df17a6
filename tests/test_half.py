"""Weights moved in float32 and computed with in bfloat16: the kernel, and autocast beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deepclust.cluster import DEC
from deepclust.cluster._half import HalfWeights
from deepclust.kernels import adam

NEEDS_C = pytest.mark.skipif(not adam.available(), reason="deepclust._C is blocked or not built")
LR, BETAS, EPS = 0.01, (0.9, 0.999), 1e-8


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def state(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    w = drawn(n)
    return w, torch.zeros(n), torch.zeros(n), torch.empty(n, dtype=torch.bfloat16)


def moved(n: int, steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    w, m, v, copy = state(n)
    for t in range(1, steps + 1):
        g = drawn(n, seed=t).bfloat16()
        adam.adam_(w, m, v, g, copy, step=t, lr=LR, betas=BETAS, eps=EPS)
    return w, m, v, copy


@NEEDS_C
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 1000, (1 << 15) + 5])
def test_adam_is_the_papers(n):
    w, m, v, copy = moved(n, 5)
    expected, first, second = drawn(n).double(), torch.zeros(n).double(), torch.zeros(n).double()
    for t in range(1, 6):
        g = drawn(n, seed=t).bfloat16().double()
        first = BETAS[0] * first + (1 - BETAS[0]) * g
        second = BETAS[1] * second + (1 - BETAS[1]) * g.square()
        root = (second / (1 - BETAS[1] ** t)).sqrt()
        expected = expected - LR * first / (1 - BETAS[0] ** t) / (root + EPS)
    torch.testing.assert_close(w, expected.float(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(m, first.float(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(v, second.float(), rtol=1e-5, atol=1e-9)
    assert torch.equal(copy, w.bfloat16())


@NEEDS_C
def test_adam_gives_the_same_bits_for_any_number_of_threads():
    threads, n = torch.get_num_threads(), 400_003
    found = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(moved(n, 2))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@NEEDS_C
def test_adam_rounds_as_torch_does_whatever_the_weight():
    patterns = torch.arange(0, 1 << 32, 65_521, dtype=torch.int64)
    bits = np.concatenate([patterns.numpy(), [0x7F7FFFFF, 0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF]])
    w = torch.from_numpy(bits.astype(np.uint32).view(np.float32))
    zeros, copy = torch.zeros_like(w), torch.empty_like(w, dtype=torch.bfloat16)
    g = zeros.bfloat16()
    adam.adam_(w, zeros, zeros.clone(), g, copy, step=1, lr=LR, betas=BETAS, eps=EPS)
    torch.testing.assert_close(copy, w.bfloat16(), rtol=0, atol=0, equal_nan=True)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 9), nn.Linear(9, 4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x))).float() * self.scale


def train(half: bool, optimizer=torch.optim.Adam, steps: int = 4, after=None):
    """The network, its optimiser and the types of gradients after some steps under autocast."""
    net = Net()
    made = optimizer(net.parameters(), lr=LR)
    weights = HalfWeights(net, [made] if half else [])
    kinds = set()
    for step in range(steps):
        with torch.autocast("cpu", torch.bfloat16), weights.in_use():
            kinds |= {net.first.weight.dtype}
            loss = net(drawn(12, 6, seed=step)).square().mean()
        made.zero_grad()
        loss.backward(inputs=weights.inputs(list(net.parameters())))
        weights.step(made)
        if after is not None:
            after(net)
    return net, made, kinds


def assert_same_run(found, expected):
    for (name, a), b in zip(found[0].named_parameters(), expected[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    states, others = found[1].state_dict()["state"], expected[1].state_dict()["state"]
    assert states.keys() == others.keys()
    for number, state in states.items():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(state[key], others[number][key], rtol=1e-4, atol=1e-7)


@NEEDS_C
def test_steps_are_those_of_autocast_and_adam():
    found, expected = train(half=True), train(half=False)
    assert (found[2], expected[2]) == ({torch.bfloat16}, {torch.float32})
    assert_same_run(found, expected)
    assert all(type(p) is nn.Parameter and p.dtype == torch.float32 for p in found[0].parameters())


@NEEDS_C
def test_a_weight_that_others_move_is_rounded_anew():
    def halve(net):
        with torch.no_grad():
            net.first.weight.mul_(0.5)

    assert_same_run(train(half=True, after=halve), train(half=False, after=halve))


@NEEDS_C
def test_weights_come_back_where_a_loss_fails():
    net = Net()
    own = dict(net.named_parameters())
    weights = HalfWeights(net, [torch.optim.Adam(net.parameters())])
    with pytest.raises(RuntimeError), weights.in_use():
        net(torch.zeros(2, 7, dtype=torch.bfloat16))
    assert all(p is own[name] for name, p in net.named_parameters())


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
        lambda p, lr: torch.optim.AdamW(p, lr=lr),
        lambda p, lr: torch.optim.Adam(p, lr=lr, weight_decay=0.1),
        lambda p, lr: torch.optim.Adam(p, lr=lr, amsgrad=True),
        lambda p, lr: torch.optim.Adam(p, lr=lr, maximize=True),
    ],
)
def test_other_optimisers_train_as_they_are(optimizer):
    found, expected = train(True, optimizer), train(False, optimizer)
    assert found[2] == {torch.float32}
    assert all(map(torch.equal, found[0].parameters(), expected[0].parameters()))


def test_without_the_kernel_training_is_autocasts(monkeypatch):
    monkeypatch.setattr(adam, "extension", lambda: "not built")
    found, expected = train(True), train(False)
    assert found[2] == {torch.float32}
    assert all(map(torch.equal, found[0].parameters(), expected[0].parameters()))
    with pytest.raises(RuntimeError, match="not built"):
        moved(1, 1)


@NEEDS_C
@pytest.mark.parametrize("at", [("tune", 30), ("cluster", 5)])
def test_a_fit_resumes_to_the_same_bits(at, tmp_path):
    X = drawn(200, 16).numpy()
    settings = {
        "hidden": (32,),
        "latent_dim": 4,
        "batch_size": 32,
        "tune_updates": 40,
        "max_updates": 20,
        "update_interval": 5,
        "tol": 0.0,
        "n_init": 1,
        "random_state": 0,
        "autocast": "bfloat16",
    }

    def interrupt(run):
        if run.stage.name == at[0] and run.update >= at[1]:
            raise KeyboardInterrupt

    whole = DEC(3, **settings).fit(X)
    broken = DEC(3, **settings, callbacks=[interrupt], checkpoint=tmp_path / "checkpoint")
    with pytest.raises(KeyboardInterrupt):
        broken.fit(X)
    resumed = DEC(3, **settings, checkpoint=tmp_path / "checkpoint").fit(X, resume=True)
    np.testing.assert_array_equal(resumed.labels_, whole.labels_)
    for a, b in zip(resumed.network_.parameters(), whole.network_.parameters(), strict=True):
        assert torch.equal(a, b)
