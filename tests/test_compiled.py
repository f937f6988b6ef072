import functools
import math
import warnings

import pytest
import torch
import torch._inductor.config as inductor
from torch import nn

from pinnlib.balancing import GradientBalancer
from pinnlib.compiled import CompiledGradients
from pinnlib.derivatives import nested, taylor
from pinnlib.gradients import gradient_matrix, gradient_rows
from pinnlib.networks import MLP, StackedMLP
from pinnlib.training import balanced_backward, compiled_backward

pytestmark = pytest.mark.usefixtures("nothing_hidden")


@pytest.fixture
def recorded_only(monkeypatch):
    """Record, but spare the C++ compiler, which takes seconds: for tests of all the rest."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


def network(seed=0, d=1):
    generator = torch.Generator().manual_seed(seed)
    return MLP([(0, 1)] * d, width=4, depth=2, generator=generator).double()


def points(seed=0, n=8):
    generator = torch.Generator().manual_seed(seed)
    return {"all": torch.rand(n, 1, dtype=torch.float64, generator=generator)}


def oscillator(model, derivatives=nested):
    """Losses of u'' + u = 0 with u(0) = 1, whose gradients differ in size."""

    def losses(batch):
        x = batch["all"]
        u, _, (u_xx,) = derivatives(model, x)
        start = model(torch.zeros_like(x[..., :1, :]))
        return {
            "data": (start - 1).square().mean(dim=(-2, -1)),
            "pde": 1e3 * (u_xx + u).square().mean(dim=(-2, -1)),
        }

    return losses


def test_it_equals_the_gradient_matrix_while_the_parameters_move():
    model = network()
    losses_of = oscillator(model)
    gradients = CompiledGradients(losses_of, model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(5):
        losses, G = gradients(points(step))
        expected = losses_of(points(step))
        assert list(losses) == ["data", "pde"]
        for term, loss in losses.items():
            torch.testing.assert_close(loss, expected[term].detach(), rtol=1e-12, atol=1e-14)
            assert not loss.requires_grad
        expected_G = gradient_matrix(expected, model.parameters())
        torch.testing.assert_close(G, expected_G, rtol=1e-11, atol=1e-13)
        assert not G.requires_grad
        for p, row in zip(
            model.parameters(), G.sum(0).split([p.numel() for p in model.parameters()]), strict=True
        ):
            p.grad = row.reshape(p.shape)
        optimizer.step()


def test_a_stack_equals_its_networks():
    models = [network(seed) for seed in range(3)]
    stack = StackedMLP(models)
    batch = {"all": torch.stack([points(seed)["all"] for seed in range(3)])}
    losses_of = oscillator(stack, taylor)
    _, G = CompiledGradients(losses_of, stack.parameters(), (3,))(batch)
    expected, _ = gradient_rows(losses_of(batch), list(stack.parameters()), stack=(3,))
    torch.testing.assert_close(G, expected, rtol=1e-11, atol=1e-13)
    alone = gradient_matrix(oscillator(models[1])(points(1)), models[1].parameters())
    torch.testing.assert_close(G[1], alone, rtol=1e-11, atol=1e-13)


def test_it_is_one_graph_and_compiled_once(recorded_only):
    model = network()
    backward = compiled_backward(
        oscillator(model), model.parameters(), GradientBalancer.simplified()
    )
    optimizer = torch.optim.Adam(model.parameters())
    backward(points())
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in range(5):
            optimizer.zero_grad()
            backward(points(step))
            optimizer.step()
    report = torch._dynamo.utils.counters
    assert not report["graph_break"]


def test_a_batch_of_another_shape_is_compiled_at_its_first_use(recorded_only):
    model = network()
    gradients = CompiledGradients(oscillator(model), model.parameters())
    for n in (8, 5, 8):
        _, G = gradients(points(n=n))
        expected = gradient_matrix(oscillator(model)(points(n=n)), model.parameters())
        torch.testing.assert_close(G, expected, rtol=1e-11, atol=1e-13)


def test_compiled_backward_equals_balanced_backward(recorded_only):
    runs = []
    for compile_it in (True, False):
        model = network()
        balancer = GradientBalancer(
            ["pde", "data"],  # not the order of the losses
            reference="data",
            every=3,
            warm_start=True,
            bounds=(0.95, 1.05),
        )
        losses_of = oscillator(model)
        backward = compiled_backward(losses_of, model.parameters(), balancer)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        weights = []
        for step in range(20):
            optimizer.zero_grad()
            if compile_it:
                losses, current = backward(points(step))
            else:
                losses = losses_of(points(step))
                current = balanced_backward(losses, model.parameters(), balancer)
            weights.append([current["data"], current["pde"], losses["pde"].item()])
            optimizer.step()
        runs.append((torch.tensor(weights), list(model.parameters()), balancer.state_dict()))
    (compiled, compiled_params, state), (eager, eager_params, eager_state) = runs
    torch.testing.assert_close(compiled, eager, rtol=1e-9, atol=0)
    for name in ("weights", "first_ratio", "step"):
        torch.testing.assert_close(state[name], eager_state[name], rtol=1e-9, atol=0)
    assert compiled[:, 0].eq(1).all()
    assert compiled[0, 1] != compiled[-1, 1]
    for p, q in zip(compiled_params, eager_params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)


def test_a_model_of_ones_own_with_an_unused_and_a_frozen_parameter(recorded_only):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.unused = (
                nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (2.0, 3.0, 5.0)
            )
            self.a.requires_grad_(False)

        def forward(self, x):
            return self.a * torch.sin(self.b * x)

    model = Own()
    backward = compiled_backward(
        lambda batch: {
            "data": model(batch["all"]).square().mean(),
            "pde": nested(model, batch["all"])[2][0].square().mean(),
        },
        model.parameters(),
        GradientBalancer.simplified(),
    )
    backward(points())
    assert model.a.grad is None
    assert model.unused.grad is None
    assert model.b.grad != 0


def test_bad_losses_are_refused_before_anything_changed(refused, recorded_only):
    model = network()
    balancer = GradientBalancer.simplified()
    losses_and_params = oscillator(model), list(model.parameters())
    for call in (
        compiled_backward(*losses_and_params, balancer),
        CompiledGradients(*losses_and_params),
    ):
        for _ in range(2):  # the first call, and the compiled one
            with refused(model, balancer, match="loss 'pde' is nan: lower the learning rate"):
                call({"all": torch.full((8, 1), math.nan, dtype=torch.float64)})
            call(points())
            model.zero_grad()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda u: u.square().flatten(), r"loss 'pde' has shape \(8,\): reduce it to a scalar"),
        (lambda u: u.detach().mean(), r"loss 'pde' has no graph \(requires_grad=False\): compute"),
    ],
)
def test_a_loss_that_has_no_gradient_is_refused(refused, recorded_only, bad, message):
    model = network()
    balancer = GradientBalancer.simplified()

    def losses(batch):
        u = model(batch["all"])
        return {"data": u.mean(), "pde": bad(u)}

    for call in (
        compiled_backward(losses, model.parameters(), balancer),
        CompiledGradients(losses, model.parameters()),
    ):
        with refused(model, balancer, match=message):
            call(points())


def test_no_loss_at_all_is_refused(recorded_only):
    with pytest.raises(ValueError, match="losses is empty: pass one scalar loss for each term"):
        CompiledGradients(lambda batch: {}, network().parameters())(points())


def test_a_bad_gradient_is_refused_before_anything_changed(refused, recorded_only):
    model = network()
    balancer = GradientBalancer.simplified()
    backward = compiled_backward(
        # The root has an infinite slope at zero, where its value is fine.
        lambda batch: (
            oscillator(model)(batch)
            | {"pde": (model(batch["all"]).square().mean() * batch["factor"]).sqrt()}
        ),
        model.parameters(),
        balancer,
    )
    good, bad = (points() | {"factor": torch.tensor(f, dtype=torch.float64)} for f in (1.0, 0.0))
    backward(good)
    model.zero_grad()
    with refused(model, balancer, match="gradient of loss 'pde' at step 1 has .* not finite"):
        backward(bad)


def test_other_terms_and_unused_ones_are_refused(recorded_only):
    model = network()
    with pytest.raises(ValueError, match=r"terms \['pde'\] are missing and \['x'\] are unknown"):
        compiled_backward(
            lambda batch: {"data": model(batch["all"]).mean(), "x": model(batch["all"]).mean()},
            model.parameters(),
            GradientBalancer.simplified(),
        )(points())
    other = network(1)
    with pytest.raises(ValueError, match="loss 'data' uses none of the parameters"):
        CompiledGradients(oscillator(model), other.parameters())(points())


@inductor.patch("cpp.cxx", ("no-such-compiler",))
def test_without_a_compiler_it_says_so_and_gives_the_same_numbers():
    model = network()
    gradients = CompiledGradients(oscillator(model), model.parameters())
    with pytest.warns(UserWarning, match=r"failed \(.*no-such-compiler.*g\+\+") as caught:
        gradients(points(n=3))
    assert caught[0].filename == __file__  # it points to the call, not into the package
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, G = gradients(points(1, n=3))
    expected = gradient_matrix(oscillator(model)(points(1, n=3)), model.parameters())
    torch.testing.assert_close(G, expected, rtol=1e-12, atol=1e-14)
