"""The Jacobian of residuals: against one row at a time, whatever the network and the closure."""

import pytest
import torch
from helpers import network, points, seeded
from torch import nn

from pinnlib.derivatives import nested, taylor
from pinnlib.networks import MLP, FourierFeatures, GatedMLP, OutputTransform
from pinnlib.optimizers.jacobian import evaluate, jacobian, separable
from pinnlib.problems import Helmholtz, KleinGordon

pytestmark = pytest.mark.usefixtures("nothing_hidden")


def one_row_at_a_time(terms, params):
    """The definition: the gradient of each residual by itself."""
    return {
        term: [
            torch.stack(
                [
                    torch.cat(
                        [
                            g.reshape(-1)
                            for g in torch.autograd.grad(
                                value,
                                params,
                                retain_graph=True,
                                allow_unused=True,
                                materialize_grads=True,
                            )
                        ]
                    )
                    for value in r[:, 0]
                ]
            )
            for r in residuals
        ]
        for term, residuals in terms.items()
    }


def check(residuals_of, params, separate):
    """The Jacobian is right, and these parameters take one pass for all rows."""
    params, terms = list(params), evaluate(residuals_of)
    found = separable(residuals_of, terms, params)
    assert list(map(id, found)) == list(map(id, separate))
    expected = one_row_at_a_time(terms, params)
    blocks = jacobian(residuals_of, params, found)
    assert list(blocks) == list(expected)
    for term, group in expected.items():
        for (r, J), rows, value in zip(blocks[term], group, terms[term], strict=True):
            torch.testing.assert_close(r, value.detach()[:, 0])
            torch.testing.assert_close(J, rows)
            assert not r.requires_grad
            assert not J.requires_grad


UNIT = [(0.0, 1.0), (0.0, 1.0)]
NETWORKS = {
    "MLP": lambda g: MLP(UNIT, width=5, depth=2, generator=g),
    "GatedMLP": lambda g: GatedMLP(UNIT, width=4, depth=2, generator=g),
    "Fourier features": lambda g: nn.Sequential(
        FourierFeatures(UNIT, 3, scale=2.0, generator=g),
        MLP([(-1, 1)] * 6, width=4, depth=1, generator=g),
    ),
    "hard condition": lambda g: OutputTransform(
        MLP(UNIT, width=5, depth=1, generator=g), lambda x, u: x[..., :1] + x[..., 1:] * u
    ),
    "plain torch, no bias": lambda g: nn.Sequential(
        nn.Linear(2, 5, bias=False), nn.Tanh(), nn.Linear(5, 1)
    ),
}


@pytest.mark.parametrize("derivatives", [nested, taylor])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", [KleinGordon, Helmholtz])
def test_networks_of_linear_layers_take_one_pass_for_all_rows(kind, name, derivatives):
    with torch.random.fork_rng():
        model = NETWORKS[name](seeded()).double()
    problem = kind(derivatives=derivatives)
    sizes = {"boundary": 8, "pde": 6} | ({"initial": 1} if kind is KleinGordon else {})
    batch = {k: x.double() for k, x in problem.sample(sizes, seeded(1)).items()}
    params = list(model.parameters())
    check(lambda: problem.term_residuals(model, batch), params, params)


def by_hand(model, x):
    """u and its derivative by the first input, as most users write it."""
    x = x.clone().requires_grad_()
    u = model(x)
    (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    return u, du[:, :1]


def test_an_unknown_coefficient_takes_a_pass_for_its_column():
    model, x = network(), points(7)
    k = torch.tensor([0.3, 2.0], dtype=torch.float64, requires_grad=True)

    def residuals():
        u, u_x = by_hand(model, x)
        return {"data": [u - x[:, :1]], "pde": [u_x + k[0].exp() * u - k[1]]}

    check(residuals, [k, *model.parameters()], list(model.parameters()))


def test_a_layer_that_is_no_linear_layer():
    model, x = network(), points(7)
    W = torch.rand(1, 3, generator=seeded(), dtype=torch.float64, requires_grad=True)

    def residuals():
        u, u_x = by_hand(lambda x: (model(x) @ W).sin() @ W.T, x)
        return {"pde": [u_x + u]}

    check(residuals, [*model.parameters(), W], list(model.parameters()))


def test_a_parameter_that_stands_elsewhere_too():
    model, x = network(), points(7)
    first, *others = model.parameters()

    def residuals():
        return {"pde": [model(x) * first.mean()]}

    check(residuals, [first, *others], others)


def test_points_that_mix():
    model, x = network(), points(7)
    params = list(model.parameters())
    last = params[-1:]  # this bias adds the same to each point, in whatever order they come
    check(lambda: {"all": [model(x) - 2 * model(x).mean()]}, params, last)
    check(lambda: {"all": [model(x).flip(0)]}, params, last)
    check(lambda: {"all": [model(x).mean(0, keepdim=True)]}, params, [])
    check(lambda: {"all": [model(torch.cat([x, x + 1]))[7:]]}, params, [])
    check(lambda: {"all": [model(x), model(x).flip(0)]}, params, last)


def test_a_parameter_that_is_not_used_and_a_term_without_any():
    model, x = network(), points(4)
    unused = torch.ones(3, dtype=torch.float64, requires_grad=True)
    W = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    params = [*model.parameters(), unused]
    check(lambda: {"data": [model(x)]}, params, params)
    blocks = jacobian(lambda: {"data": [x[:, :1]]}, params, params)
    assert not blocks["data"][0][1].any()
    check(lambda: {"data": [nn.functional.linear(x, W)]}, [W], [W])


def test_a_closure_that_does_not_bear_copies_is_differentiated_without():
    model, x = network(), points(4)
    first = next(iter(model.parameters()))

    def residuals():
        u = model(x)
        torch.autograd.grad(u.sum(), first, create_graph=True)  # fails where copies stand for it
        return {"pde": [u]}

    check(residuals, list(model.parameters()), [])


def test_another_number_of_points_at_each_call():
    model, x = network(), points(4)
    sizes = iter([4, 3])

    def residuals():
        return {"pde": [model(x[: next(sizes)])]}

    assert separable(residuals, evaluate(residuals), list(model.parameters())) == []


def test_numbers_at_random_are_not_taken_for_rows():
    model, x = network(), points(4)
    generator = seeded()

    def residuals():
        return {"pde": [model(x + torch.rand(4, 2, generator=generator))]}

    *params, last = model.parameters()
    found = separable(residuals, evaluate(residuals), [*params, last])
    assert all(p is last for p in found)


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_what_is_separable_does_not_depend_on_the_size(size):
    model, x = network(), points(7)
    params = list(model.parameters())
    check(lambda: {"pde": [size * model(x)]}, params, params)
    check(lambda: {"pde": [size * (model(x) + model(x).mean())]}, params, params[-1:])


def test_what_is_no_residual_is_refused():
    model, x = network(), points(4)
    with pytest.raises(TypeError, match="returns a list: let it return the residuals"):
        evaluate(lambda: [model(x)])
    with pytest.raises(TypeError, match="'data' is a tensor: pass a list of its residuals"):
        evaluate(lambda: {"data": model(x)})
    with pytest.raises(ValueError, match=r"residual 'data\[0\]' has shape \(4,\)"):
        evaluate(lambda: {"data": [model(x)[:, 0]]})
    with torch.no_grad():
        assert evaluate(lambda: {"data": [model(x)]})["data"][0].requires_grad
