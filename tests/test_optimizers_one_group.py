"""What both optimizers share: which parameters they take."""

import pytest
import torch
from helpers import EXPONENTS
from hypothesis import given

from pinnlib.optimizers import GaussNewton, SSBroyden
from pinnlib.optimizers.one_group import DRAW, check_repeats

pytestmark = pytest.mark.usefixtures("nothing_hidden")


def gauss_newton(params, **settings):
    return GaussNewton(params, {"all": 1.0}, **settings)


def parameter(n=2, **kind):
    return torch.zeros(n, **{"dtype": torch.float64, "requires_grad": True} | kind)


@pytest.mark.parametrize(
    ("name", "make"), {"SSBroyden": SSBroyden, "GaussNewton": gauss_newton}.items()
)
def test_what_cannot_be_right_is_refused(name, make):
    x, z = parameter(), parameter()
    with pytest.raises(ValueError, match=f"{name} takes one group"):
        make([{"params": [x]}, {"params": [z]}])
    optimizer = make([{"params": x}])
    with pytest.raises(ValueError, match=f"{name} takes one group"):
        optimizer.add_param_group({"params": [z]})
    with pytest.raises(ValueError, match=r"torch.float32', 'torch.float64'.*one precision"):
        make([x, parameter(dtype=torch.float32)])
    with pytest.raises(ValueError, match=r"lie on \['cpu', 'meta'\]"):
        make([x, parameter(device="meta")])
    with pytest.raises(ValueError, match="complex"):
        make([parameter(dtype=torch.complex128)])
    with pytest.raises(ValueError, match="no trainable parameter"):
        make([x.detach()])
    for wrong in (0, -3, 2.0, True):
        with pytest.raises(ValueError, match=f"max_iter is {wrong}"):
            make([x], max_iter=wrong)
    with pytest.warns(
        UserWarning, match=rf"float32.*model.double\(\).*that {name} is for"
    ) as caught:
        make([parameter(dtype=torch.float32)])
    assert caught[0].filename == __file__
    assert make([x], max_iter=1).stalled is False


@pytest.mark.parametrize("make", [SSBroyden, gauss_newton])
def test_frozen_parameters_are_left_out(make):
    x, z = parameter(), parameter(3).detach()
    optimizer = make([x, z, x])
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(x)]


def test_a_matrix_of_at_most_3_gigabytes():
    SSBroyden([parameter(20_000)])
    with pytest.raises(ValueError, match="20001 parameters"):
        SSBroyden([parameter(15_000), parameter(5_001)])


def test_parameters_are_one_vector():
    parts = [torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in ((2, 3), (), (2,))]
    optimizer = SSBroyden(parts)
    x = torch.arange(9.0, dtype=torch.float64)
    optimizer._place(x)
    optimizer._memory["kept"] = 1
    assert optimizer.state == {parts[0]: {"kept": 1}}
    assert [p.tolist() for p in parts] == [[[0, 1, 2], [3, 4, 5]], 6, [7, 8]]
    assert torch.equal(found := optimizer._gather(parts), x)
    assert not found.requires_grad
    assert optimizer._gather([-parts[0].detach(), None, parts[2].detach()]).tolist() == [
        *(-x[:6]).tolist(), 0, 7, 8,
    ]  # fmt: skip


def squares(optimizer, x, draw):
    """The closure of either optimizer, for sums of squares with factors that are drawn."""

    def residuals():
        return draw()[:, None] * (x - 0.5)

    def total():
        optimizer.zero_grad()
        loss = residuals().square().mean()
        loss.backward()
        return loss

    if isinstance(optimizer, SSBroyden):
        return total
    return lambda: {"all": [r[:, None] for r in residuals().T]}


@pytest.mark.parametrize("make", [SSBroyden, gauss_newton])
@given(size=EXPONENTS.map(lambda k: 10.0**k))
def test_a_closure_that_draws_points_is_refused(make, size):
    x = parameter(3)
    optimizer = make([x])
    x.data.fill_(size)
    generator = torch.Generator().manual_seed(0)
    factors = torch.rand(40, generator=generator).double()
    fresh = squares(optimizer, x, lambda: torch.rand(40, generator=generator).double())
    with pytest.raises(ValueError, match=r"at the same parameters.*draw points before the call"):
        optimizer.step(fresh)
    assert (x == size).all()
    assert not optimizer.stalled
    optimizer.step(squares(optimizer, x, lambda: factors))
    assert (x < 10).all()


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e5])
def test_rounding_is_no_difference(size):
    once = size * torch.tensor([1.0, 1e-12], dtype=torch.float64)
    check_repeats("losses", once, once * (1 + 1e-9), DRAW)
    check_repeats("losses", 0 * once, 0 * once, DRAW)
    for again in (once * (1 + 1e-7), -once, once[:1]):
        with pytest.raises(ValueError, match=f"different losses .* norms {size:g} and {size:g}"):
            check_repeats("losses", once, again, DRAW)


@pytest.mark.parametrize("make", [SSBroyden, gauss_newton])
def test_a_solution_found_before_is_no_reason_to_refuse(make):
    x = parameter(3)
    factors = torch.linspace(0.1, 1.0, 40).double()
    for _ in range(3):
        optimizer = make([x])
        optimizer.step(squares(optimizer, x, lambda: factors))
        optimizer.step(squares(optimizer, x, lambda: factors))
        assert (x - 0.5).abs().max() < 1e-6
