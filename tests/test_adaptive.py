"""The book's trainer, against its algorithm written out."""

import copy
import math

import pytest
import torch
from helpers import (
    BAD_LOSSES,
    EXPONENTS,
    Branched,
    assert_same_parameters,
    gradients,
    network,
    points,
    theta,
    two_losses,
)
from hypothesis import given
from torch import nn

from pinnlib.adaptive import AdaptivePINN
from pinnlib.step import balanced_backward
from pinnlib.weighting import GradientBalancer

pytestmark = pytest.mark.usefixtures("nothing_hidden")

OPTIMIZERS = {
    "SGD": lambda params: torch.optim.SGD(params, lr=1e-3),
    "momentum": lambda params: torch.optim.SGD(params, lr=1e-4, momentum=0.9),
    "Adam": lambda params: torch.optim.Adam(params, lr=1e-3),
}


def losses_of(model, coefficient=1.0):
    return tuple(two_losses(model, coefficient)({"x": points()}).values())


class Naive:
    """The algorithm of the book, step by step, with three walks through the graph."""

    def __init__(self, model, alpha):
        self.model, self.alpha, self.lambda_pde = model, alpha, 1.0

    def grad_norm(self, loss):
        params = [p for p in self.model.parameters() if p.requires_grad]
        grads = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
        used = [g.flatten() for g in grads if g is not None]
        return torch.cat(used).abs().mean().item()

    def step(self, optimizer, loss_data, loss_pde):
        norm_data, norm_pde = self.grad_norm(loss_data), self.grad_norm(loss_pde)
        target = norm_data / norm_pde if norm_pde > 0 else 1.0
        self.lambda_pde = (1 - self.alpha) * self.lambda_pde + self.alpha * target
        total = loss_data + self.lambda_pde * loss_pde
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return total.item(), self.lambda_pde


@pytest.mark.parametrize(("make_model", "alpha"), [(network, 0.9), (Branched, 0.1)])
@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_it_equals_the_naive_algorithm(make_optimizer, make_model, alpha):
    models = make_model(), make_model()
    unknowns = [nn.Parameter(torch.tensor(2.0, dtype=torch.float64)) for _ in models]
    optimizers = [
        make_optimizer([*model.parameters(), unknown])
        for model, unknown in zip(models, unknowns, strict=True)
    ]
    pinn, naive = AdaptivePINN(models[0], alpha), Naive(models[1], alpha)
    for _ in range(10):
        total, lambda_pde = pinn.train_step_with_balance(
            optimizers[0], *losses_of(models[0], unknowns[0])
        )
        expected = naive.step(optimizers[1], *losses_of(models[1], unknowns[1]))
        assert (total, lambda_pde) == pytest.approx(expected, rel=1e-6)
        assert pinn.lambda_pde == lambda_pde
    assert_same_parameters(*models, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(*unknowns, rtol=1e-6, atol=1e-8)
    assert abs(unknowns[0].item() - 2) > 1e-4
    found = [gradients(model) for model in models]
    assert [g is None for g in found[0]] == [g is None for g in found[1]]


def test_the_branched_model_is_what_it_says():
    model = Branched()
    for loss, missing in zip(losses_of(model), ("pde_only", "data_only"), strict=True):
        named = dict(model.named_parameters())
        del named["frozen"]
        grads = torch.autograd.grad(loss, named.values(), allow_unused=True, retain_graph=True)
        unused = {name for name, g in zip(named, grads, strict=True) if g is None}
        assert unused == {"unused", missing}


def test_it_is_balanced_backward_with_an_optimizer():
    models = network(), network()
    pinn, balancer = AdaptivePINN(models[0], 0.5), GradientBalancer.simplified(alpha=0.5)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in models]
    for _ in range(5):
        pinn.train_step_with_balance(optimizers[0], *losses_of(models[0]))
        optimizers[1].zero_grad()
        losses = dict(zip(("data", "pde"), losses_of(models[1]), strict=True))
        weights = balanced_backward(losses, models[1], balancer)
        optimizers[1].step()
        assert pinn.lambda_pde == weights["pde"]
    assert_same_parameters(*models, rtol=0, atol=0)


def test_unused_and_frozen_parameters_are_left_alone():
    model = Branched()
    optimizer = torch.optim.Adam(model.parameters())
    AdaptivePINN(model).train_step_with_balance(optimizer, *losses_of(model))
    assert model.unused.grad is None
    assert model.frozen.grad is None
    assert (model.unused == 1).all()


def test_lambda_is_the_ratio_of_get_grad_norm():
    model = Branched()
    pinn = AdaptivePINN(model, alpha=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        losses = losses_of(model)
        norms = [pinn.get_grad_norm(loss, model.parameters()) for loss in losses]
        _, lambda_pde = pinn.train_step_with_balance(optimizer, *losses)
        assert lambda_pde == pytest.approx(norms[0] / norms[1], rel=1e-12)


def test_it_starts_at_one_and_follows_by_default_with_alpha_0_9():
    model = network()
    pinn = AdaptivePINN(model)
    assert pinn.lambda_pde == 1.0
    assert type(pinn.lambda_pde) is float
    losses = losses_of(model)
    ratio = Naive(model, 0.9).grad_norm(losses[0]) / Naive(model, 0.9).grad_norm(losses[1])
    before = [loss.item() for loss in losses]
    total, lambda_pde = pinn.train_step_with_balance(
        torch.optim.SGD(model.parameters(), lr=0.01), *losses
    )
    assert type(total) is type(lambda_pde) is float
    assert lambda_pde == pytest.approx(0.1 + 0.9 * ratio, rel=1e-12)
    assert total == pytest.approx(before[0] + lambda_pde * before[1], rel=1e-12)
    assert pinn.model is model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(data=EXPONENTS, pde=EXPONENTS)
def test_over_scales(dtype, data, pde):
    model = nn.Module()
    model.w = nn.Parameter(torch.tensor([2.0, -3.0], dtype=dtype))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    a, b = 10.0**data, 10.0**pde
    losses = a * model.w.sum(), b * model.w.square().sum()  # mean gradients a and 5 b
    total, lambda_pde = AdaptivePINN(model, alpha=1.0).train_step_with_balance(optimizer, *losses)
    assert lambda_pde == pytest.approx(a / (5 * b), rel=1e-6)
    assert total == pytest.approx(a * (-1 + 13 / 5), rel=1e-5)
    assert (model.w.grad.double() / a).tolist() == pytest.approx([1 + 4 / 5, 1 - 6 / 5], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_keeps_the_dtype(dtype):
    model = network().to(dtype)
    u = model(points().to(dtype))
    optimizer = torch.optim.Adam(model.parameters())
    AdaptivePINN(model).train_step_with_balance(
        optimizer, (u - 1).square().mean(), 10 * u.square().mean()
    )
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()}
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "zero",
    [lambda u, unknown: 0 * u.sum(), lambda u, unknown: unknown**2],
    ids=["zero", "of another parameter only"],
)
def test_lambda_goes_to_one_where_the_pde_gradient_is_zero(zero):
    model, unknown = network(), nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    pinn = AdaptivePINN(model, alpha=0.5)
    optimizer = torch.optim.SGD([*model.parameters(), unknown], lr=0.001)
    pinn.train_step_with_balance(optimizer, *losses_of(model))
    before = pinn.lambda_pde
    u = model(points())
    _, lambda_pde = pinn.train_step_with_balance(optimizer, u.square().mean(), zero(u, unknown))
    assert lambda_pde == 0.5 * before + 0.5
    assert lambda_pde != 1.0


def test_lambda_goes_to_zero_where_the_data_gradient_is_zero():
    model = network()
    u = model(points())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    _, lambda_pde = AdaptivePINN(model, alpha=0.75).train_step_with_balance(
        optimizer, 0 * u.sum(), u.square().mean()
    )
    assert lambda_pde == 0.25


def test_it_walks_the_graph_twice_and_frees_it():
    model, walks = network(), []
    u = model(points())
    u.register_hook(lambda gradient: walks.append(gradient))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = (u - 1).square().mean(), u.square().mean()
    AdaptivePINN(model).train_step_with_balance(optimizer, *losses)
    assert len(walks) == 2
    with pytest.raises(RuntimeError, match="second time"):
        losses[1].backward()


def test_it_sets_gradients_anew():
    models = network(), network()
    for p in models[0].parameters():
        p.grad = torch.full_like(p, 1e6)
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        AdaptivePINN(model).train_step_with_balance(optimizer, *losses_of(model))
    assert_same_parameters(*models, rtol=0, atol=0)


def test_a_parameter_that_is_frozen_or_replaced_later_is_seen():
    """Each step looks at the model anew."""
    model = network()
    pinn = AdaptivePINN(model)
    pinn.train_step_with_balance(torch.optim.SGD(model.parameters(), lr=0.01), *losses_of(model))
    model.layers[0].requires_grad_(False)
    model.layers[1].bias = nn.Parameter(torch.ones(6, dtype=torch.float64))
    before = copy.deepcopy(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    pinn.train_step_with_balance(optimizer, *losses_of(model))
    assert_same_parameters(model.layers[0], before.layers[0], rtol=0, atol=0)
    assert not torch.equal(model.layers[1].bias, before.layers[1].bias)


# Refusals


@pytest.mark.parametrize("term", [0, 1])
@pytest.mark.parametrize("bad", BAD_LOSSES)
def test_bad_losses_are_refused_and_nothing_changes(refused, bad, term):
    model = network()
    pinn, optimizer = AdaptivePINN(model), torch.optim.Adam(model.parameters())
    for _ in range(3):
        pinn.train_step_with_balance(optimizer, *losses_of(model))
    spoil, message = BAD_LOSSES[bad]
    losses = list(losses_of(model))
    losses[term] = spoil(losses[term], list(model.parameters()))
    message = message.format(repr(("data", "pde")[term]))
    with refused(model, optimizer, pinn.balancer, match=message):
        pinn.train_step_with_balance(optimizer, *losses)


def test_a_bad_gradient_of_what_is_trained_beside_is_refused(refused):
    model, unknown = network(), nn.Parameter(torch.zeros(1, dtype=torch.float64))
    pinn = AdaptivePINN(model)
    optimizer = torch.optim.SGD([*model.parameters(), unknown], lr=0.1)
    loss_data, loss_pde = losses_of(model)
    with refused(model, optimizer, pinn.balancer, match="'pde' at step 0 has 1 of"):
        pinn.train_step_with_balance(optimizer, loss_data, loss_pde + unknown.sqrt().sum())
    assert unknown.item() == 0.0
    assert unknown.grad is None


def test_optimizers_that_do_not_fit_are_refused(refused):
    model, other = network(), network(seed=1)
    pinn = AdaptivePINN(model)
    elsewhere = torch.optim.Adam(other.parameters())
    in_part = torch.optim.Adam(list(model.parameters())[:-1])
    for optimizer in (elsewhere, in_part):
        message = r"optimizer lacks parameters of the model: give it model.parameters\(\)"
        with refused(model, other, optimizer, pinn.balancer, match=message):
            pinn.train_step_with_balance(optimizer, *losses_of(model))
    closure = torch.optim.LBFGS(model.parameters())
    with pytest.raises(TypeError, match=r"LBFGS evaluates the losses several times .* constant"):
        pinn.train_step_with_balance(closure, *losses_of(model))
    assert (pinn.balancer.step, pinn.lambda_pde) == (0, 1.0)
    assert gradients(model) == [None] * 6


def test_an_optimizer_that_fails_comes_last():
    """What the docstring says: the weight has moved then."""

    class Failing(torch.optim.SGD):
        def step(self):
            raise RuntimeError("no disk")

    model = network()
    pinn = AdaptivePINN(model)
    with pytest.raises(RuntimeError, match="no disk"):
        pinn.train_step_with_balance(Failing(model.parameters(), lr=0.1), *losses_of(model))
    assert pinn.balancer.step == 1


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.5, math.nan])
def test_alpha_is_checked(alpha):
    with pytest.raises(ValueError, match=rf"alpha is {alpha}: .* must lie in \(0, 1\]"):
        AdaptivePINN(network(), alpha)


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match=r"no trainable parameter: pass some with requires_grad"):
        AdaptivePINN(network().requires_grad_(False))


# get_grad_norm


@given(exponent=EXPONENTS)
def test_grad_norm_over_scales(exponent):
    w = theta(2.0, -3.0)
    norm = AdaptivePINN(network()).get_grad_norm(10.0**exponent * w.square().sum(), [w])
    assert norm == pytest.approx(5 * 10.0**exponent, rel=1e-12)
    assert type(norm) is float


def test_grad_norm_counts_the_parameters_it_is_given():
    model = network()
    pinn = AdaptivePINN(model)
    loss, _ = losses_of(model)
    everything = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
    weights = [layer.weight for layer in model.layers]
    some = torch.autograd.grad(loss, weights, retain_graph=True)
    for params, grads in (
        (model, everything),
        (model.parameters(), everything),
        (iter(weights), some),
    ):
        expected = torch.cat([g.flatten() for g in grads]).abs().mean().item()
        assert pinn.get_grad_norm(loss, params) == pytest.approx(expected, rel=1e-12)


def test_grad_norm_skips_unused_and_frozen_parameters():
    used, unused, frozen = theta(1.0, 2.0), theta(1.0, 2.0, 3.0), torch.ones(5)
    pinn = AdaptivePINN(network())
    assert pinn.get_grad_norm(4 * used.sum(), [frozen, unused, used]) == pytest.approx(4.0)
    assert pinn.get_grad_norm(4 * used.sum(), [unused]) == 0.0


def test_grad_norm_keeps_the_graph_and_writes_no_gradient():
    model = network()
    pinn = AdaptivePINN(model)
    loss, _ = losses_of(model)
    first, second = (pinn.get_grad_norm(loss, model.parameters()) for _ in range(2))
    assert first == second
    assert gradients(model) == [None] * 6
    assert pinn.lambda_pde == 1.0
    loss.backward()


@pytest.mark.parametrize("bad", BAD_LOSSES)
def test_grad_norm_refuses(refused, bad):
    model = network()
    pinn = AdaptivePINN(model)
    spoil, message = BAD_LOSSES[bad]
    loss = spoil(losses_of(model)[0], list(model.parameters()))
    message = message.format("'loss'").replace(" at step 3", "")
    with refused(model, pinn.balancer, match=message):
        pinn.get_grad_norm(loss, model.parameters())


def test_grad_norm_refuses_no_trainable_parameter():
    model = network()
    with pytest.raises(ValueError, match="no trainable parameter"):
        AdaptivePINN(model).get_grad_norm(losses_of(model)[0], [torch.ones(1)])
