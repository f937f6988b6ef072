import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pinnlib import training
from pinnlib.balancing import GradientBalancer, mean_of_terms
from pinnlib.derivatives import nested
from pinnlib.gradients import gradient_matrix
from pinnlib.networks import MLP, StackedMLP
from pinnlib.problems import KleinGordon, Problem
from pinnlib.training import AdaptivePINN, balanced_backward, relative_l2_error, train, train_many

pytestmark = pytest.mark.usefixtures("nothing_hidden")

TERMS = ["data", "initial", "pde"]
EXPONENTS = st.integers(-12, 12)
OPTIMIZERS = {
    "SGD": lambda params: torch.optim.SGD(params, lr=1e-3),
    "momentum": lambda params: torch.optim.SGD(params, lr=1e-4, momentum=0.9),
    "Adam": lambda params: torch.optim.Adam(params, lr=1e-3),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(seed=0, width=6):
    return MLP([(0, 1)] * 2, width=width, depth=2, generator=seeded(seed)).double()


def points(n=8, seed=0):
    return torch.rand(n, 2, dtype=torch.float64, generator=seeded(seed))


def three_losses(model, x=None):
    x = points() if x is None else x
    u, (u_x, u_t), _ = nested(model, x, order=1)
    return {
        "data": (u - x[:, :1]).square().mean(),
        "initial": 10 * (model(x.flip(1)) - 1).square().mean(),
        "pde": 100 * (u_t - u_x + u**2).square().mean(),
    }


def theta(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def gradients_of(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def assert_same_parameters(first, second, **tolerance):
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(p, q, **tolerance)


BAD_LOSSES = {  # made from a good loss and the parameters it is made of
    "nan": (lambda loss, params: loss * math.nan, "loss {} is nan: lower the learning rate or che"),
    "inf": (lambda loss, params: loss * math.inf, "loss {} is inf: lower the learning rate or che"),
    "vector": (
        lambda loss, params: loss * torch.ones(2),
        r"loss {} has shape \(2,\): reduce it to",
    ),
    "detached": (
        lambda loss, params: loss.detach(),
        r"loss {} has no graph \(requires_grad=False\): compute it fro",
    ),
    "nan gradient": (
        lambda loss, params: loss + (params[0] * 0).abs().sqrt().sum(),
        "gradient of loss {} at step 3 has 12 of .* not finite, such as nan: lower the learning",
    ),
    "infinite gradient": (
        lambda loss, params: loss + (params[1] - params[1].detach()).pow(0.5).sum(),
        "gradient of loss {} at step 3 has 6 of .* not finite, such as inf: lower the learning",
    ),
}


# balanced_backward


BALANCERS = {
    "simplified": lambda: GradientBalancer.simplified(TERMS, alpha=0.5),
    "mean": lambda: GradientBalancer(TERMS, reference=mean_of_terms),
    "journal": lambda: GradientBalancer.journal(network().named_parameters(), TERMS),
}


@pytest.mark.parametrize("make_balancer", BALANCERS.values(), ids=BALANCERS)
def test_balanced_backward_equals_backward_of_the_weighted_sum(make_balancer):
    model, balancer, other = network(), make_balancer(), make_balancer()
    for _ in range(3):
        model.zero_grad()
        weights = balanced_backward(three_losses(model), model.parameters(), balancer)
        actual = gradients_of(model)
        expected = other.update(gradient_matrix(three_losses(model), model.parameters()))
        assert weights == dict(zip(TERMS, expected.tolist(), strict=True))
        assert all(type(weight) is float for weight in weights.values())
        model.zero_grad()
        losses = three_losses(model)
        sum(weights[term] * losses[term] for term in TERMS).backward()
        torch.testing.assert_close(actual, gradients_of(model))
    assert len(set(weights.values())) > 1


@given(exponents=st.tuples(EXPONENTS, EXPONENTS, EXPONENTS))
def test_balanced_backward_over_scales(exponents):
    w = theta(2.0, -3.0, 0.5)
    scales = dict(zip(TERMS, (10.0**e for e in exponents), strict=True))
    losses = {"data": w.sum(), "initial": w.prod(), "pde": w.square().sum()}
    balancer = GradientBalancer.simplified(TERMS, alpha=1.0)
    scaled = {term: scales[term] * losses[term] for term in TERMS}
    weights = balanced_backward(scaled, [w], balancer)
    # Mean absolute gradients are 1, 2.8333… and 3.6667… before they are scaled.
    ratios = {"data": 1.0, "initial": 6 / 17, "pde": 3 / 11}
    for term in TERMS:
        assert weights[term] == pytest.approx(ratios[term] * scales["data"] / scales[term])
    direction = torch.tensor(
        [1 - 1.5 * 6 / 17 + 4 * 3 / 11, 1 + 6 / 17 - 6 * 3 / 11, 1 - 6 * 6 / 17 + 3 / 11],
        dtype=torch.float64,
    )
    torch.testing.assert_close(w.grad / scales["data"], direction)


def test_balanced_backward_takes_losses_in_any_order():
    first, second = theta(1.0, 2.0), theta(1.0, 2.0)
    for w, names in ((first, ["data", "pde"]), (second, ["pde", "data"])):
        losses = {"data": w.sum(), "pde": w.prod()}
        balancer = GradientBalancer.simplified()
        weights = balanced_backward({name: losses[name] for name in names}, [w], balancer)
        assert list(weights) == ["data", "pde"]
    assert torch.equal(first.grad, second.grad)


def test_balanced_backward_adds_up_micro_batches():
    model, balancer = network(), GradientBalancer.simplified(TERMS)
    expected = None
    for seed in range(3):
        weights = balanced_backward(
            three_losses(model, points(seed=seed)), model.parameters(), balancer
        )
        losses = three_losses(model, points(seed=seed))
        total = sum(weights[term] * losses[term] for term in TERMS)
        part = torch.autograd.grad(total, list(model.parameters()))
        expected = (
            part if expected is None else [a + b for a, b in zip(expected, part, strict=True)]
        )
    torch.testing.assert_close(gradients_of(model), list(expected))
    assert balancer.step == 3


def test_balanced_backward_walks_the_graph_once_a_term():
    model, walks = network(), []
    u = model(points())
    u.register_hook(lambda gradient: walks.append(gradient))
    losses = {"data": u.mean(), "initial": u.square().mean(), "pde": u.pow(4).mean()}
    balanced_backward(losses, model.parameters(), GradientBalancer.simplified(TERMS))
    assert len(walks) == 3
    with pytest.raises(RuntimeError, match="second time"):
        losses["pde"].backward()


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_clipping_and_schedulers_go_on_as_before(make_optimizer):
    models = network(), network()
    balancers = [GradientBalancer.simplified(TERMS) for _ in models]
    for model, balancer in zip(models, balancers, strict=True):
        optimizer = make_optimizer(model.parameters())
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        for _ in range(20):
            optimizer.zero_grad()
            losses = three_losses(model)
            if model is models[0]:
                balanced_backward(losses, model.parameters(), balancer)
            else:
                G = gradient_matrix(three_losses(model), model.parameters())
                weights = balancer.update(G)
                torch.dot(weights, torch.stack([*losses.values()])).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            scheduler.step()
    assert_same_parameters(*models, rtol=1e-8, atol=1e-10)


def test_lbfgs_with_a_closure_goes_on_as_before():
    models = network(), network()
    values = {model: [] for model in models}
    for model in models:
        balancer = GradientBalancer.simplified(TERMS, alpha=0.1)
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5, lr=0.1)

        def closure(model=model, balancer=balancer, optimizer=optimizer):
            optimizer.zero_grad()
            losses = three_losses(model)
            if model is models[0]:
                weights = balanced_backward(losses, model.parameters(), balancer)
                total = sum(weights[term] * losses[term] for term in TERMS)
            else:
                G = gradient_matrix(three_losses(model), model.parameters())
                total = torch.dot(balancer.update(G), torch.stack([*losses.values()]))
                total.backward()
            values[model].append(total.item())
            return total

        for _ in range(3):
            optimizer.step(closure)
    assert values[models[0]] == pytest.approx(values[models[1]], rel=1e-6)
    assert len(values[models[0]]) > 10
    assert_same_parameters(*models, rtol=1e-5, atol=1e-8)


def test_balanced_backward_leaves_unused_and_frozen_parameters_alone():
    a, b, unused, frozen = theta(1.0), theta(2.0), theta(3.0), torch.ones(1, dtype=torch.float64)
    losses = {"data": (a * frozen).sum(), "pde": (2 * b).sum()}
    balancer = GradientBalancer.simplified(alpha=1.0)
    balanced_backward(losses, [a, b, unused, frozen], balancer)
    assert a.grad.tolist() == [1.0]
    assert b.grad.tolist() == [1.0]
    assert unused.grad is None
    assert frozen.grad is None


def test_balanced_backward_counts_a_shared_parameter_once():
    def tied():
        torch_model = nn.Sequential(
            nn.utils.skip_init(nn.Linear, 2, 2), nn.Tanh(), nn.utils.skip_init(nn.Linear, 2, 2)
        ).double()
        for p in torch_model.parameters():
            nn.init.normal_(p, generator=seeded())
        torch_model[2].weight = torch_model[0].weight
        return torch_model

    model = tied()
    x = points()

    def losses():
        return {"data": model(x).square().mean(), "pde": model(x).sum(dim=1).exp().mean()}

    twice = [*model[0].parameters(), *model[2].parameters()]
    assert len(twice) == len(list(model.parameters())) + 1
    weights = balanced_backward(losses(), twice, GradientBalancer.simplified())
    actual = gradients_of(model)
    model.zero_grad()
    sum(weights[term] * loss for term, loss in losses().items()).backward()
    torch.testing.assert_close(actual, gradients_of(model))


def test_balanced_backward_of_mixed_dtypes():
    single, double = theta(2.0, 1.0, dtype=torch.float32), theta(3.0, 4.0)
    for _ in range(2):
        losses = {"data": (single * double).sum(), "pde": 10 * double.sum() + single.sum()}
        balanced_backward(losses, [single, double], GradientBalancer.simplified(alpha=1.0))
    assert single.grad.dtype == torch.float32
    assert double.grad.dtype == torch.float64
    weight = (2 + 1 + 3 + 4) / 22
    torch.testing.assert_close(single.grad, 2 * torch.tensor([3 + weight, 4 + weight]))
    torch.testing.assert_close(double.grad, 2 * (theta(2.0, 1.0).detach() + 10 * weight))


def test_balanced_backward_of_a_parameter_that_is_not_contiguous():
    w = torch.arange(6.0, dtype=torch.float64).reshape(2, 3).T.requires_grad_()
    factor = torch.arange(6.0, dtype=torch.float64).reshape(3, 2)
    losses = {"data": (w * factor).sum(), "pde": (w * factor).sum()}
    balanced_backward(losses, [w], GradientBalancer.simplified())
    torch.testing.assert_close(w.grad, 2 * factor)
    assert w.grad.stride() == w.stride()  # a fused optimizer relies on it


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("bad", BAD_LOSSES)
def test_balanced_backward_refuses_and_changes_nothing(refused, bad, term):
    model, balancer = network(), GradientBalancer.simplified(TERMS)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(3):
        balanced_backward(three_losses(model), model.parameters(), balancer)
        optimizer.step()
    spoil, message = BAD_LOSSES[bad]
    losses = three_losses(model)
    losses[term] = spoil(losses[term], list(model.parameters()))
    with refused(model, optimizer, balancer, match=message.format(repr(term))):
        balanced_backward(losses, model.parameters(), balancer)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["data", "pde"], r"terms \['initial'\] are missing and \[\] are unknown: pass exactly"),
        ([*TERMS, "edge"], r"terms \[\] are missing and \['edge'\] are unknown: pass exactly"),
        (["data", "inital", "pde"], r"\['initial'\] .* \['inital'\] are unknown: .* every step"),
        (["z", "y", "x"], r"\['data', 'initial', 'pde'\] are missing and \['x', 'y', 'z'\] are"),
        ([], r"terms \['data', 'initial', 'pde'\] are missing"),
    ],
)
def test_balanced_backward_refuses_other_terms(refused, names, message):
    model, balancer = network(), GradientBalancer.simplified(TERMS)
    balanced_backward(three_losses(model), model.parameters(), balancer)
    losses = {name: model(points()).mean() for name in names}
    with refused(model, balancer, match=message):
        balanced_backward(losses, model.parameters(), balancer)
    balanced_backward(three_losses(model), model.parameters(), balancer)  # and goes on


def test_balanced_backward_refuses_a_term_without_gradient_and_no_parameters(refused):
    model, balancer = network(), GradientBalancer.simplified()
    losses = {"data": model(points()).mean(), "pde": theta(1.0).sum()}
    with refused(model, balancer, match="'pde' uses none of the parameters: compute it from"):
        balanced_backward(losses, model.parameters(), balancer)
    losses["pde"] = model(points()).mean()
    with refused(model, balancer, match="no trainable parameter: pass some with requires_grad"):
        balanced_backward(losses, [], balancer)


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_whole_training_resumes_bit_exactly_from_a_file(tmp_path, make_optimizer):
    def parts():
        model = network()
        optimizer = make_optimizer(model.parameters())
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        balancer = GradientBalancer(
            TERMS, reference="data", alpha=0.3, every=4, warm_start=True, bounds=(0.1, 10.0)
        )
        return model, optimizer, scheduler, balancer, seeded(1)

    def advance(model, optimizer, scheduler, balancer, generator):
        for _ in range(10):
            x = torch.rand(8, 2, dtype=torch.float64, generator=generator)
            optimizer.zero_grad()
            balanced_backward(three_losses(model, x), model.parameters(), balancer)
            optimizer.step()
            scheduler.step()

    whole, first, second = parts(), parts(), parts()
    advance(*whole)
    advance(*whole)
    advance(*first)
    *objects, generator = first
    states = [thing.state_dict() for thing in objects]
    torch.save([*states, generator.get_state()], tmp_path / "run.pt")
    *states, random_state = torch.load(tmp_path / "run.pt", weights_only=True)
    *objects, generator = second
    for thing, state in zip(objects, states, strict=True):
        thing.load_state_dict(state)
    generator.set_state(random_state)
    advance(*second)
    assert_same_parameters(whole[0], second[0], rtol=0, atol=0)
    assert torch.equal(whole[3].weights, second[3].weights)


# AdaptivePINN


class Branched(nn.Module):
    """A network with parameters that one term, no term, or nobody may use."""

    def __init__(self):
        super().__init__()
        self.body = network()
        self.data_only = nn.Parameter(torch.tensor([0.5, 1.5], dtype=torch.float64))
        self.pde_only = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.unused = nn.Parameter(torch.ones(7, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.ones(3, dtype=torch.float64), requires_grad=False)

    def forward(self, x):
        return self.body(x)


def two_losses(model, coefficient=1.0):
    x = points()
    u, (u_x, u_t), _ = nested(model, x, order=1)
    scale, shift = getattr(model, "data_only", (1.0, 0.0)), getattr(model, "pde_only", 0.0)
    loss_data = (scale[0] * u + scale[1] - x[:, :1]).square().mean()
    loss_pde = 10 * (u_t - coefficient * u_x + u**2 + shift).square().mean()
    return loss_data, loss_pde * getattr(model, "frozen", torch.ones(1)).sum()


class Naive:
    """The algorithm of the book, step by step, with three walks through the graph."""

    def __init__(self, model, alpha):
        self.model, self.alpha, self.lambda_pde = model, alpha, 1.0

    def grad_norm(self, loss):
        params = [p for p in self.model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
        used = [g.flatten() for g in gradients if g is not None]
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
def test_adaptive_pinn_equals_the_naive_algorithm(make_optimizer, make_model, alpha):
    models = make_model(), make_model()
    unknowns = [nn.Parameter(torch.tensor(2.0, dtype=torch.float64)) for _ in models]
    optimizers = [
        make_optimizer([*model.parameters(), unknown])
        for model, unknown in zip(models, unknowns, strict=True)
    ]
    pinn, naive = AdaptivePINN(models[0], alpha), Naive(models[1], alpha)
    for _ in range(200):
        total, lambda_pde = pinn.train_step_with_balance(
            optimizers[0], *two_losses(models[0], unknowns[0])
        )
        expected = naive.step(optimizers[1], *two_losses(models[1], unknowns[1]))
        assert (total, lambda_pde) == pytest.approx(expected, rel=1e-6)
        assert pinn.lambda_pde == lambda_pde
    assert_same_parameters(*models, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(*unknowns, rtol=1e-6, atol=1e-8)
    assert abs(unknowns[0].item() - 2) > 1e-3
    gradients = [gradients_of(model) for model in models]
    assert [g is None for g in gradients[0]] == [g is None for g in gradients[1]]


def test_branched_model_is_what_it_says():
    model = Branched()
    for loss, missing in zip(two_losses(model), ("pde_only", "data_only"), strict=True):
        named = dict(model.named_parameters())
        del named["frozen"]
        gradients = torch.autograd.grad(loss, named.values(), allow_unused=True, retain_graph=True)
        unused = {name for name, g in zip(named, gradients, strict=True) if g is None}
        # The last bias shifts u, but not its derivatives; u² brings it back into the equation.
        assert unused == {"unused", missing}


def test_adaptive_pinn_leaves_unused_and_frozen_parameters_alone():
    model = Branched()
    optimizer = torch.optim.Adam(model.parameters())
    AdaptivePINN(model).train_step_with_balance(optimizer, *two_losses(model))
    assert model.unused.grad is None
    assert model.frozen.grad is None
    assert (model.unused == 1).all()


def test_lambda_is_the_ratio_of_get_grad_norm():
    model = Branched()
    pinn = AdaptivePINN(model, alpha=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(5):
        loss_data, loss_pde = two_losses(model)
        norms = [pinn.get_grad_norm(loss, model.parameters()) for loss in (loss_data, loss_pde)]
        _, lambda_pde = pinn.train_step_with_balance(optimizer, loss_data, loss_pde)
        assert lambda_pde == pytest.approx(norms[0] / norms[1], rel=1e-12)


def test_adaptive_pinn_starts_at_one_and_follows_by_default_with_alpha_0_9():
    model = network()
    pinn = AdaptivePINN(model)
    assert pinn.lambda_pde == 1.0
    assert type(pinn.lambda_pde) is float
    loss_data, loss_pde = two_losses(model)
    ratio = Naive(model, 0.9).grad_norm(loss_data) / Naive(model, 0.9).grad_norm(loss_pde)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = (loss_data.item(), loss_pde.item())
    total, lambda_pde = pinn.train_step_with_balance(optimizer, loss_data, loss_pde)
    assert type(total) is type(lambda_pde) is float
    assert lambda_pde == pytest.approx(0.1 + 0.9 * ratio, rel=1e-12)
    assert total == pytest.approx(before[0] + lambda_pde * before[1], rel=1e-12)
    assert pinn.model is model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(data=EXPONENTS, pde=EXPONENTS)
def test_adaptive_pinn_over_scales(dtype, data, pde):
    model = nn.Module()
    model.w = nn.Parameter(torch.tensor([2.0, -3.0], dtype=dtype))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    a, b = 10.0**data, 10.0**pde
    losses = a * model.w.sum(), b * model.w.square().sum()  # mean gradients a and 5 b
    total, lambda_pde = AdaptivePINN(model, alpha=1.0).train_step_with_balance(optimizer, *losses)
    assert lambda_pde == pytest.approx(a / (5 * b), rel=1e-6)
    assert total == pytest.approx(a * (-1 + 13 / 5), rel=1e-5)
    assert (model.w.grad / a).tolist() == pytest.approx([1 + 4 / 5, 1 - 6 / 5], rel=1e-5)


def test_adaptive_pinn_equals_balanced_backward():
    models = network(), network()
    pinn, balancer = AdaptivePINN(models[0], 0.5), GradientBalancer.simplified(alpha=0.5)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in models]
    for _ in range(5):
        pinn.train_step_with_balance(optimizers[0], *two_losses(models[0]))
        optimizers[1].zero_grad()
        loss_data, loss_pde = two_losses(models[1])
        losses = {"data": loss_data, "pde": loss_pde}
        weights = balanced_backward(losses, models[1].parameters(), balancer)
        optimizers[1].step()
        assert pinn.lambda_pde == weights["pde"]
    assert_same_parameters(*models, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_adaptive_pinn_keeps_the_dtype(dtype):
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
    pinn.train_step_with_balance(optimizer, *two_losses(model))
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


def test_adaptive_pinn_walks_the_graph_twice_and_frees_it():
    model, walks = network(), []
    u = model(points())
    u.register_hook(lambda gradient: walks.append(gradient))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = (u - 1).square().mean(), u.square().mean()
    AdaptivePINN(model).train_step_with_balance(optimizer, *losses)
    assert len(walks) == 2
    with pytest.raises(RuntimeError, match="second time"):
        losses[1].backward()


def test_adaptive_pinn_sets_gradients_anew():
    models = network(), network()
    for p in models[0].parameters():
        p.grad = torch.full_like(p, 1e6)
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        AdaptivePINN(model).train_step_with_balance(optimizer, *two_losses(model))
    assert_same_parameters(*models, rtol=0, atol=0)


@pytest.mark.parametrize("term", ["data", "pde"])
@pytest.mark.parametrize("bad", BAD_LOSSES)
def test_adaptive_pinn_refuses_and_changes_nothing(refused, bad, term):
    model = network()
    pinn, optimizer = AdaptivePINN(model), torch.optim.Adam(model.parameters())
    for _ in range(3):
        pinn.train_step_with_balance(optimizer, *two_losses(model))
    spoil, message = BAD_LOSSES[bad]
    losses = dict(zip(["data", "pde"], two_losses(model), strict=True))
    losses[term] = spoil(losses[term], list(model.parameters()))
    with refused(model, optimizer, pinn.balancer, match=message.format(repr(term))):
        pinn.train_step_with_balance(optimizer, losses["data"], losses["pde"])


def test_adaptive_pinn_refuses_a_bad_gradient_of_an_extra_parameter(refused):
    model, unknown = network(), nn.Parameter(torch.zeros(1, dtype=torch.float64))
    pinn = AdaptivePINN(model)
    optimizer = torch.optim.SGD([*model.parameters(), unknown], lr=0.1)
    loss_data, loss_pde = two_losses(model)
    with refused(model, optimizer, pinn.balancer, match="'pde' at step 0 has 1 of"):
        pinn.train_step_with_balance(optimizer, loss_data, loss_pde + unknown.sqrt().sum())
    assert unknown.item() == 0.0
    assert unknown.grad is None


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.5, math.nan])
def test_adaptive_pinn_refuses_alpha(alpha):
    with pytest.raises(ValueError, match=rf"alpha is {alpha}: .* must lie in \(0, 1\]"):
        AdaptivePINN(network(), alpha)


def test_adaptive_pinn_refuses_a_model_without_trainable_parameters():
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
    loss, _ = two_losses(model)
    everything = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
    weights = [layer.weight for layer in model.layers]
    some = torch.autograd.grad(loss, weights, retain_graph=True)
    for params, gradients in ((model.parameters(), everything), (iter(weights), some)):
        expected = torch.cat([g.flatten() for g in gradients]).abs().mean().item()
        assert pinn.get_grad_norm(loss, params) == pytest.approx(expected, rel=1e-12)


def test_grad_norm_skips_unused_and_frozen_parameters():
    used, unused, frozen = theta(1.0, 2.0), theta(1.0, 2.0, 3.0), torch.ones(5)
    pinn = AdaptivePINN(network())
    assert pinn.get_grad_norm(4 * used.sum(), [frozen, unused, used]) == pytest.approx(4.0)
    assert pinn.get_grad_norm(4 * used.sum(), [unused]) == 0.0


def test_grad_norm_keeps_the_graph_and_writes_no_gradient():
    model = network()
    pinn = AdaptivePINN(model)
    loss, _ = two_losses(model)
    assert pinn.get_grad_norm(loss, model.parameters()) == pinn.get_grad_norm(
        loss, model.parameters()
    )
    assert gradients_of(model) == [None] * len(gradients_of(model))
    assert pinn.lambda_pde == 1.0
    loss.backward()


@pytest.mark.parametrize("bad", BAD_LOSSES)
def test_grad_norm_refuses(refused, bad):
    model = network()
    pinn = AdaptivePINN(model)
    spoil, message = BAD_LOSSES[bad]
    loss = spoil(two_losses(model)[0], list(model.parameters()))
    message = message.format("'loss'").replace(" at step 3", "")
    with refused(model, pinn.balancer, match=message):
        pinn.get_grad_norm(loss, model.parameters())


def test_grad_norm_refuses_no_trainable_parameter():
    model = network()
    with pytest.raises(ValueError, match="no trainable parameter"):
        AdaptivePINN(model).get_grad_norm(two_losses(model)[0], [torch.ones(1)])


# train and train_many


class Curve(Problem):
    """The curve exp(-t), cheap enough for a thousand steps."""

    variables = ("t",)
    domain = ((0.0, 2.0),)
    terms = {"data": ("start",), "pde": ("curve",)}

    def sample(self, n, generator):
        return {"all": self._interior(n, generator)}

    def residuals(self, model, batch):
        x = batch["all"]
        zero = torch.zeros_like(x[..., :1, :])
        return {"curve": 5 * (model(x) - self.exact(x)), "start": model(zero) - 1}

    def exact(self, x):
        return torch.exp(-x)


CONSTANT = {"data": 2.0, "pde": 0.5}
CURVE_BALANCERS = {
    "simplified": GradientBalancer.simplified,
    "mean": lambda: GradientBalancer(["data", "pde"], reference=mean_of_terms, every=3),
}


@pytest.fixture
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def curve_network(seed=0):
    return MLP(Curve.domain, width=4, depth=1, generator=seeded(seed))


def train_by_hand(model, weights, *, steps, generator, n=128, learning_rate=1e-3):
    """What train documents, written out: losses, weights and error at every step."""
    problem, params, records = Curve(), list(model.parameters()), []
    optimizer = torch.optim.Adam(params, lr=learning_rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * 0.9 ** (step // 1000)
        losses = problem.losses(model, problem.sample(n, generator))
        if isinstance(weights, GradientBalancer):
            rows = [
                torch.cat(
                    [g.flatten() for g in torch.autograd.grad(loss, params, retain_graph=True)]
                )
                for loss in losses.values()
            ]
            current = dict(zip(losses, weights.update(torch.stack(rows)).tolist(), strict=True))
        else:
            current = weights
        optimizer.zero_grad()
        sum(current[term] * loss for term, loss in losses.items()).backward()
        optimizer.step()
        values = {term: loss.item() for term, loss in losses.items()}
        records.append((values, current, relative_l2_error(model, problem)))
    return records


def assert_history(history, records, steps):
    assert history.steps.tolist() == steps
    expected = [records[step - 1] for step in steps]
    for term in ("data", "pde"):
        losses, weights = ([record[i][term] for record in expected] for i in (0, 1))
        np.testing.assert_allclose(history.losses[term], losses, rtol=1e-7)
        np.testing.assert_allclose(history.weights[term], weights, rtol=1e-7)
    np.testing.assert_allclose(history.errors, [record[2] for record in expected], rtol=1e-7)


@pytest.mark.parametrize(
    ("record_every", "recorded"),
    [(1, [*range(1, 13)]), (4, [4, 8, 12]), (5, [5, 10, 12]), (50, [12])],
)
@pytest.mark.parametrize(
    "make_weights",
    [lambda: CONSTANT, *CURVE_BALANCERS.values()],
    ids=["constant", *CURVE_BALANCERS],
)
def test_train_equals_a_loop_by_hand(in_float64, make_weights, record_every, recorded):
    models = curve_network(), curve_network()
    settings = {"steps": 12, "n": 16, "learning_rate": 0.01}
    history = train(
        Curve(),
        models[0],
        make_weights(),
        generator=seeded(1),
        record_every=record_every,
        **settings,
    )
    records = train_by_hand(models[1], make_weights(), generator=seeded(1), **settings)
    assert_history(history, records, recorded)
    assert_same_parameters(*models, rtol=1e-7, atol=1e-10)
    assert history.errors[-1] == relative_l2_error(models[0], Curve())


def test_train_by_default_and_its_decay_of_the_learning_rate(in_float64):
    models = curve_network(), curve_network()
    history = train(Curve(), models[0], CONSTANT, steps=1002, generator=seeded(1))
    records = train_by_hand(models[1], CONSTANT, steps=1002, generator=seeded(1))
    assert_history(history, records, [*range(100, 1001, 100), 1002])
    assert_same_parameters(*models, rtol=1e-7, atol=1e-10)
    assert history.errors[-1] < 0.5 * history.errors[0]


def test_train_depends_on_its_generator_only():
    def run(seed):
        model = curve_network()
        balancer = GradientBalancer.simplified()
        history = train(Curve(), model, balancer, steps=5, generator=seeded(seed), record_every=1)
        return model, history

    (first, history), (second, again), (_, other) = run(0), run(0), run(1)
    assert_same_parameters(first, second, rtol=0, atol=0)
    for term in ("data", "pde"):
        assert history.losses[term].tolist() == again.losses[term].tolist()
    assert history.losses["pde"].tolist() != other.losses["pde"].tolist()


def test_history_holds_arrays_of_numbers():
    history = train(Curve(), curve_network(), CONSTANT, steps=3, generator=seeded(), record_every=2)
    arrays = [*history.losses.values(), *history.weights.values(), history.errors, history.seconds]
    assert all(array.dtype == np.float64 and array.shape == (2,) for array in arrays)
    assert history.steps.dtype == np.int64
    assert list(history.losses) == list(history.weights) == ["data", "pde"]


def test_seconds_count_training_but_not_recording(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(training, "perf_counter", lambda: clock[0])

    class Slow(Curve):
        def sample(self, n, generator):
            clock[0] += 1
            return super().sample(n, generator)

        def grid(self, n=100):
            clock[0] += 50
            return super().grid(n)

    history = train(Slow(), curve_network(), CONSTANT, steps=7, generator=seeded(), record_every=3)
    assert history.seconds.tolist() == [3.0, 6.0, 7.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0, record_every 100: use 1 or more of each"),
        ({"record_every": 0}, "steps is 1, record_every 0: use 1 or more of each"),
        ({"weights": {"data": 1.0}}, r"terms \['pde'\] are missing and \[\] are unknown: pass ex"),
        ({"weights": CONSTANT | {"x": 1.0}}, r"missing and \['x'\] are unknown: pass exactly"),
        (
            {"weights": GradientBalancer.simplified(["edge", "data"])},
            r"terms \['pde'\] are missing and \['edge'\] are unknown",
        ),
        ({"weights": GradientBalancer.simplified(TERMS)}, r"\['initial'\] are unknown"),
    ],
)
def test_train_refuses_and_changes_nothing(refused, settings, message):
    model, generator = curve_network(), seeded()
    settings = {"weights": CONSTANT, "steps": 1} | settings
    with refused(model, match=message):
        train(Curve(), model, generator=generator, **settings)
    assert torch.equal(generator.get_state(), seeded().get_state())


def test_train_refuses_a_frozen_model():
    model = curve_network().requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        train(Curve(), model, CONSTANT, steps=1, generator=seeded())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: r * math.nan, "loss 'pde' is nan: lower the learning rate"),
        (lambda r: r + (r - r.detach()).sqrt(), "gradient of loss 'pde'.* not finite, such as "),
    ],
    ids=["loss", "gradient"],
)
@pytest.mark.parametrize("make_weights", [lambda: CONSTANT, GradientBalancer.simplified])
def test_train_stops_at_a_loss_or_gradient_that_is_not_finite(make_weights, spoil, message):
    class Broken(Curve):
        samples = 0

        def residuals(self, model, batch):
            self.samples += 1
            residuals = super().residuals(model, batch)
            return residuals | ({"curve": spoil(residuals["curve"])} if self.samples > 2 else {})

    model, healthy = curve_network(), curve_network()
    with pytest.raises(ValueError, match=message):
        train(Broken(), model, make_weights(), steps=10, generator=seeded())
    train(Curve(), healthy, make_weights(), steps=2, generator=seeded())
    assert_same_parameters(model, healthy, rtol=0, atol=0)


MANY = {
    "constant": (lambda: CONSTANT, [lambda: CONSTANT] * 3),
    "constants": (
        lambda: {"data": torch.tensor([1.0, 2.0, 3.0]), "pde": 0.5},
        [lambda w=w: {"data": w, "pde": 0.5} for w in (1.0, 2.0, 3.0)],
    ),
    "balancer": (GradientBalancer.simplified, [GradientBalancer.simplified] * 3),
    "alphas": (
        lambda: GradientBalancer.simplified(alpha=torch.tensor([[0.1], [0.5], [0.9]])),
        [lambda a=a: GradientBalancer.simplified(alpha=a) for a in (0.1, 0.5, 0.9)],
    ),
}


@pytest.mark.parametrize("case", MANY)
def test_train_many_equals_one_training_each(in_float64, case):
    make_weights, separate = MANY[case]
    seeds = [3, 4, 3]
    settings = {"steps": 7, "n": 16, "record_every": 3, "learning_rate": 0.01}
    stack, together = train_many(Curve(), make_weights(), seeds=seeds, **settings)
    assert isinstance(stack, StackedMLP)
    assert together.steps.tolist() == [3, 6, 7]
    assert together.seconds.shape == (3,)
    for s, (seed, make) in enumerate(zip(seeds, separate, strict=True)):
        generator = seeded(seed)
        model = MLP(Curve.domain, generator=generator)
        history = train(Curve(), model, make(), generator=generator, **settings)
        np.testing.assert_allclose(together.errors[s], history.errors, rtol=1e-6)
        for term in ("data", "pde"):
            for name in ("losses", "weights"):
                of_all, of_one = getattr(together, name)[term], getattr(history, name)[term]
                assert of_all.shape == (3, 3)
                np.testing.assert_allclose(of_all[s], of_one, rtol=1e-6)
        for p, q in zip(stack.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(p[s].reshape(q.shape), q, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("case", MANY)
def test_compiled_training_equals_the_other(in_float64, case, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    settings = {"seeds": [3, 4, 3], "steps": 20, "n": 16, "record_every": 5, "learning_rate": 0.01}
    (_, compiled), (_, eager) = (
        train_many(Curve(), MANY[case][0](), **settings, compiled=choice)
        for choice in (True, False)
    )
    np.testing.assert_allclose(compiled.errors, eager.errors, rtol=1e-6)
    for term in ("data", "pde"):
        np.testing.assert_allclose(compiled.losses[term], eager.losses[term], rtol=1e-6)
        np.testing.assert_allclose(compiled.weights[term], eager.weights[term], rtol=1e-6)


def test_training_compiles_when_asked_to(in_float64, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda f, **options: calls.append(options) or f)
    for choice in ({}, {"compiled": True}):
        train(Curve(), curve_network(), CONSTANT, steps=2, generator=seeded(), **choice)
        train_many(Curve(), CONSTANT, seeds=[0], steps=2, **choice)
    assert calls == [{"fullgraph": True, "dynamic": False}] * 2


def test_train_many_by_default():
    stack, history = train_many(Curve(), CONSTANT, seeds=[0], steps=101)
    generator = seeded(0)
    model = MLP(Curve.domain, generator=generator)
    expected = train(Curve(), model, CONSTANT, steps=101, generator=generator)
    assert history.steps.tolist() == expected.steps.tolist() == [100, 101]
    np.testing.assert_allclose(history.losses["pde"], [expected.losses["pde"]], rtol=1e-3)
    np.testing.assert_allclose(history.errors, [expected.errors], rtol=1e-3)
    assert stack.layers[1].weight.shape == (1, 50, 50)


def test_train_many_refuses_no_seed_and_names_a_bad_term():
    with pytest.raises(ValueError, match="seeds is empty: pass one seed or more"):
        train_many(Curve(), CONSTANT, seeds=[], steps=1)
    bad = {"data": torch.tensor([1.0, 1.0]), "curve": 1.0}
    with pytest.raises(ValueError, match=r"\['pde'\] are missing and \['curve'\] are unknown"):
        train_many(Curve(), bad, seeds=[0, 1], steps=1)


# relative_l2_error


class Scaled(Curve):
    size = 1.0

    def exact(self, x):
        return self.size * torch.exp(-x)


def test_relative_error_in_closed_form():
    t = np.linspace(0, 2, 5, dtype=np.float32)
    expected = np.linalg.norm(t - np.exp(-t)) / np.linalg.norm(np.exp(-t))
    assert relative_l2_error(lambda x: x, Curve(), n=5) == pytest.approx(expected, rel=1e-6)
    assert relative_l2_error(Curve().exact, Curve()) == 0.0
    assert relative_l2_error(lambda x: 0 * x, Curve()) == 1.0


@given(exponent=EXPONENTS, factor=st.floats(0, 10))
def test_relative_error_over_scales(exponent, factor):
    problem = Scaled()
    problem.size = 10.0**exponent
    error = relative_l2_error(lambda x: factor * problem.exact(x), problem)
    assert error == pytest.approx(abs(factor - 1), rel=1e-4, abs=1e-6)


def test_relative_error_uses_100_points_an_input_and_no_graph():
    calls = []

    def model(x):
        calls.append((x.shape, torch.is_grad_enabled()))
        return x[:, :1]

    assert type(relative_l2_error(model, KleinGordon())) is float
    assert calls == [((10000, 2), False)]
