"""The blocks of the page "Use it on your own PINN", run as they stand there.

Those that need another library are marked `peers` and run with `make test-peers`.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import default_dtype
from torch.optim.optimizer import register_optimizer_step_post_hook

import pinnlib
from chapters import blocks

BLOCKS = {heading: code for heading, code, _ in blocks("own_pinn.md")}
DIGITS = "The last digits in"

Run = Callable[[str], dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run a block; compare the gradient of each step with the balanced one, computed apart."""
    balanced_backward = pinnlib.balanced_backward
    gradients: list[torch.Tensor] = []
    weights: list[float] = []
    steps = 0

    def watched(losses: Any, params: Any, balancer: Any) -> Any:
        params = list(params)
        rows = {
            term: torch.autograd.grad(loss, params, retain_graph=True, materialize_grads=True)
            for term, loss in losses.items()
        }
        result = balanced_backward(losses, params, balancer)
        gradients[:] = [
            sum(result[term] * row[i] for term, row in rows.items()) for i in range(len(params))
        ]
        weights.append(result["pde"])
        assert result[balancer.terms[0]] == 1
        return result

    def compare(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        nonlocal steps
        steps += 1
        params = [p for group in optimizer.param_groups for p in group["params"]]
        torch.testing.assert_close([p.grad for p in params], gradients, rtol=1e-4, atol=1e-7)

    def run(code: str) -> dict[str, Any]:
        torch.manual_seed(0)
        names: dict[str, Any] = {"__name__": "block"}
        hook = register_optimizer_step_post_hook(compare)
        try:
            exec(compile(code, "block", "exec"), names)
        finally:
            hook.remove()
        assert len(weights) == steps == 1000
        assert len(set(weights)) > 5, "the weights do not move"
        return names

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pinnlib, "balanced_backward", watched)
    with default_dtype(torch.float32):  # a block may set another
        yield run


def test_page_has_these_blocks() -> None:
    alone = ["A bare loop", "Two inputs, and two conditions", "The last digits"]
    alone += ["How far off it is", "A small network: Gauss–Newton"]
    alone += ["An unknown coefficient, and noise", "A checkpoint"]
    with_peers = ["DeepXDE", f"{DIGITS} DeepXDE", "PINA", f"{DIGITS} PINA"]
    assert list(BLOCKS) == [*alone, "PyTorch Lightning", *with_peers]


def assert_solved(u: torch.Tensor) -> None:
    assert u.item() == pytest.approx(math.exp(-1), abs=0.02)


def test_bare_loop(run: Run) -> None:
    """It solves the problem; without bounds the weight sinks."""
    names = run(BLOCKS["A bare loop"])
    assert_solved(names["model"](torch.ones(1, 1)))
    unbounded: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(BLOCKS["A bare loop"].replace('"pde"])', '"pde"], bounds=None)'), unbounded)
    assert unbounded["balancer"].rule.bounds is None
    assert unbounded["weights"]["pde"] < names["weights"]["pde"] / 10


def test_two_conditions(run: Run) -> None:
    names = run(BLOCKS["Two inputs, and two conditions"])
    x, t = torch.rand(2, 500, 1)
    exact = torch.exp(-0.1 * math.pi**2 * t) * torch.sin(math.pi * x)
    error = (names["u"](x, t) - exact).norm() / exact.norm()
    assert error < 0.05
    weights = dict(names["weights"])
    assert weights["initial"] == 1
    assert len(set(weights.values())) == 3


def test_unknown_coefficient_is_found_to_the_noise(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    names: dict[str, Any] = {}
    exec(BLOCKS["An unknown coefficient, and noise"], names)
    assert names["log_rate"].exp().item() == pytest.approx(3, rel=0.12)
    assert 0.01 < names["losses"]["data"].sqrt().item() < 0.03
    assert 0.01 < names["weights"]["pde"] < 10
    assert names["weights"]["pde"] != 1
    assert capsys.readouterr().out.startswith("rate ")


def largest_error(names: dict[str, Any]) -> float:
    """At points that the network has not seen."""
    x = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    error: float = (names["model"](x) - torch.exp(-x)).abs().max().item()
    return error


@cache
def last_digits(seed: int) -> tuple[dict[str, Any], float]:
    """What the block leaves, and the error after Adam."""
    torch.manual_seed(seed)
    names: dict[str, Any] = {}
    before, after = BLOCKS["The last digits"].split("broyden = SSBroyden")
    exec(before, names)
    by_adam = largest_error(names)
    exec("broyden = SSBroyden" + after, names)
    return names, by_adam


@pytest.mark.parametrize("seed", [0, 1])
def test_the_last_digits(seed: int) -> None:
    """Far below what Adam reaches."""
    names, by_adam = last_digits(seed)
    assert largest_error(names) < 1e-6
    assert largest_error(names) < by_adam / 1000
    fresh = names["fresh"]
    assert names["broyden"].stalled or len(fresh) >= 12
    assert fresh[-1] < fresh[0] / 1000


def test_two_networks_tell_how_far_off_they_are() -> None:
    runs = [last_digits(seed)[0] for seed in (0, 1)]
    torch.manual_seed(0)
    exec(BLOCKS["How far off it is"], names := {"torch": torch})
    distance = names["distance"](*(run["model"] for run in runs))
    assert 0.05 < distance / max(map(largest_error, runs)) < 5  # u is about 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gauss_newton(seed: int) -> None:
    torch.manual_seed(seed)
    names: dict[str, Any] = {}
    exec(BLOCKS["A small network: Gauss–Newton"], names)
    assert largest_error(names) < 1e-6
    assert names["balancer"].step == 5


def test_a_checkpoint_goes_on_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether killed between two stages of Adam and two of Broyden, or never."""
    code = BLOCKS["A checkpoint"].replace("max_iter=100", "max_iter=20")
    ends = []
    for name, stops in {"whole": [], "in parts": [2, 4]}.items():
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        for stop in stops:
            with pytest.raises(ZeroDivisionError):  # before this stage is saved
                exec(code.replace("stage()\n", f"stage()\n    1 / ({stop} - done)\n"), {})
            assert torch.load("pinn.pt")["done"] == stop
        names: dict[str, Any] = {}
        exec(code, names)
        assert largest_error(names) < 1e-3
        ends.append(torch.load("pinn.pt"))
        assert ends[-1]["done"] == 6
        assert ends[-1]["balancer"].pop("terms") == ["data", "pde"]
    torch.testing.assert_close(*ends, rtol=0, atol=0)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_lightning(run: Run, tmp_path: Path) -> None:
    names = run(BLOCKS["PyTorch Lightning"])
    pinn = names["pinn"]
    assert_solved(pinn.model(torch.ones(1, 1)))
    names["trainer"].save_checkpoint(tmp_path / "pinn.ckpt")
    again = names["BalancedPINN"].load_from_checkpoint(tmp_path / "pinn.ckpt")
    assert again.balancer.step == pinn.balancer.step == 1000
    assert torch.equal(again.balancer.weights, pinn.balancer.weights)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_deepxde(run: Run) -> None:
    names = run(BLOCKS["DeepXDE"])
    model = names["model"]
    assert_solved(model.net(torch.ones(1, 1)))
    weights = names["balancer"].weights.tolist()
    model.compile("L-BFGS", loss_weights=weights)
    model.train_step(*model.data.train_next_batch())
    losses = model.outputs_losses_train(*model.data.train_next_batch())[1]
    assert losses.sum() < 1e-3

    by_adam = largest_error(names | {"model": model.net})
    exec(BLOCKS[f"{DIGITS} DeepXDE"], names)
    assert largest_error(names | {"model": model.net}) < min(1e-6, by_adam / 100)
    assert model.loss_weights == weights
    assert names["broyden"].state_dict()["state"]


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_pina(run: Run) -> None:
    names = run(BLOCKS["PINA"])
    assert_solved(names["model"](torch.ones(1, 1)))
    solver, balancer = names["solver"], names["balancer"]
    losses = solver.weighting.losses.values()
    torch.testing.assert_close(solver.trainer.callback_metrics["train_loss"], sum(losses))
    checkpoint: dict[str, Any] = {}
    solver.on_save_checkpoint(checkpoint)
    weights, balancer.weights = balancer.weights, torch.zeros_like(balancer.weights)
    solver.on_load_checkpoint(checkpoint)
    assert torch.equal(balancer.weights, weights)

    by_adam = largest_error(names)
    exec(BLOCKS[f"{DIGITS} PINA"], names)
    assert largest_error(names) < min(1e-6, by_adam / 100)
    assert names["weights"].values == dict(zip(balancer.terms, weights.tolist(), strict=True))
