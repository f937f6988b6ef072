"""A diagnosis tells what a few batches show, by numbers and in words, and changes nothing."""

import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from helpers import EXPONENTS, Branched, gradients, network, points, seeded, theta, two_losses
from hypothesis import given
from torch import Tensor, nn

from pinnlib.diagnosis import Diagnosis, diagnose
from pinnlib.findings import as_text
from pinnlib.gradients import gradient_matrix
from pinnlib.problems import KleinGordon
from pinnlib.slips import CUT
from pinnlib.weighting import GradientBalancer


def cycle(*rows: Any) -> tuple[Callable[[], dict[str, Tensor]], Tensor]:
    """Batches, one after the other, whose losses have these gradients, by term."""
    parameter = theta(*[0.0] * len(next(iter(rows[0].values()))))
    batches = iter(rows)

    def losses() -> dict[str, Tensor]:
        batch = next(batches)
        return {term: torch.tensor(g, dtype=torch.float64) @ parameter for term, g in batch.items()}

    return losses, parameter


def look(*rows: dict[str, list[float]], **settings: Any) -> Diagnosis:
    losses, parameter = cycle(*rows)
    return diagnose(losses, [parameter], batches=len(rows), **settings)


# Numbers


def test_numbers_of_two_rows_by_hand() -> None:
    found = look({"a": [3.0, 4.0], "b": [0.0, -50.0]}, {"a": [3.0, 4.0], "b": [0.0, 50.0]})
    assert found.terms == ("a", "b")
    assert "(alignment +0.00)" in str(found)
    assert found.norms.tolist() == [[5, 50]] * 2
    assert found.mean_abs.tolist() == [[3.5, 25]] * 2
    assert found.losses.tolist() == [[0, 0]] * 2
    assert found.outvoted.tolist() == [0.5, 0]
    assert found.ratios.tolist() == [1, 10]
    cosine = torch.tensor([[1, 0.8], [0.8, 1]], dtype=torch.float64)
    torch.testing.assert_close(found.cosines[1], cosine)
    torch.testing.assert_close(found.alignment, torch.tensor([-0.8, 0.8]).double())
    torch.testing.assert_close(found.cosines[0], 2 * torch.eye(2).double() - cosine)


def test_two_can_outvote_a_third_and_weights_can_help_it() -> None:
    rows = {"a": [1.0, 0.2], "b": [1.0, -0.2], "c": [-1.0, 0.0]}
    assert look(rows).outvoted.tolist() == [0, 0, 1]
    weighted = look(rows, weights={"c": 3.0, "b": 1.0, "a": 1.0})
    assert weighted.outvoted.tolist() == [1, 1, 0]
    unit = torch.tensor(list(rows.values())).double()
    together = (unit / unit.norm(dim=1, keepdim=True)).mean(dim=0).square().sum()
    torch.testing.assert_close(weighted.alignment, 2 * together[None] - 1)
    assert weighted.weights.tolist() == [1, 1, 3]
    assert torch.equal(weighted.norms, look(rows).norms)
    torch.testing.assert_close(weighted.ratios[2], 3 / torch.tensor(1.04).double().sqrt())


def test_a_right_angle_and_a_gradient_of_zero_are_not_outvoted() -> None:
    found = look({"a": [1.0, 0.0], "b": [0.0, 9.0], "c": [0.0, 0.0]})
    assert found.outvoted.tolist() == [0, 0, 0]
    assert found.ratios.tolist() == [1, 9, 0]
    assert sum("the gradient of 'c' is zero" in finding for finding in found.findings) == 1


def test_measured_apart_on_a_network() -> None:
    """All numbers again, from batches that a second run draws, by NumPy."""
    model, problem = network(KleinGordon.domain), KleinGordon()

    def run() -> Callable[[], dict[str, Tensor]]:
        generator = seeded(3)

        def losses() -> dict[str, Tensor]:
            batch = problem.sample(8, generator)
            return problem.losses(model, {name: x.double() for name, x in batch.items()})

        return losses

    weights = {"data": 3.0, "pde": 0.5}
    found, again = diagnose(run(), model, weights=weights, batches=6), run()
    outvoted = np.zeros(2)
    for b in range(6):
        losses = again()
        G = gradient_matrix(losses, model.parameters()).numpy()
        np.testing.assert_allclose(found.losses[b], [x.item() for x in losses.values()])
        np.testing.assert_allclose(found.norms[b], np.sqrt((G**2).sum(axis=1)))
        np.testing.assert_allclose(found.mean_abs[b], np.abs(G).mean(axis=1))
        cosine = G[0] @ G[1] / np.sqrt((G[0] @ G[0]) * (G[1] @ G[1]))
        np.testing.assert_allclose(found.cosines[b, 0, 1], cosine)
        outvoted += G @ (np.array([3.0, 0.5]) @ G) < 0
    np.testing.assert_allclose(found.outvoted, outvoted / 6)
    assert 0 < outvoted.sum() < 12


def test_residuals_give_what_their_losses_give() -> None:
    model, problem = network(KleinGordon.domain), KleinGordon()
    batch = {name: x.double() for name, x in problem.sample(8, seeded()).items()}
    by_loss = diagnose(lambda: problem.losses(model, batch), model, batches=1)
    by_residual = diagnose(lambda: problem.term_residuals(model, batch), model, batches=1)
    for name in ("losses", "norms", "mean_abs", "cosines", "outvoted"):
        torch.testing.assert_close(getattr(by_residual, name), getattr(by_loss, name))
    assert str(by_residual) == str(by_loss)


def test_parameters_that_a_term_does_not_use_do_not_count_in_its_mean() -> None:
    first, second = theta(1.0, 2.0), theta(5.0)
    found = diagnose(lambda: {"a": (3 * first).sum(), "b": 4 * second.sum()}, [first, second])
    assert found.mean_abs[0].tolist() == [3, 4]
    assert not any("no term uses" in finding for finding in found.findings)


@given(EXPONENTS, EXPONENTS, EXPONENTS)
def test_any_scales(a: int, b: int, common: int) -> None:
    """Sizes follow the scale of a term; angles do not; a common factor changes no share."""
    rows = {"a": [3.0, 4.0, 1.0], "b": [-2.0, 1.0, 0.5]}
    scaled = {
        "a": [10.0 ** (a + common) * x for x in rows["a"]],
        "b": [10.0 ** (b + common) * x for x in rows["b"]],
    }
    plain, found = look(rows), look(scaled)
    scale = 10.0 ** torch.tensor([a + common, b + common], dtype=torch.float64)
    torch.testing.assert_close(found.norms, plain.norms * scale, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.mean_abs, plain.mean_abs * scale, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.cosines, plain.cosines)
    own, other = 26 * 100.0**a, -1.5 * 10.0 ** (a + b)
    assert found.outvoted[0] == (own + other < 0)
    assert found.outvoted[1] == (5.25 * 100.0**b + other < 0)
    assert all(math.isfinite(ratio) for ratio in found.ratios)


def test_sizes_whose_squares_leave_the_numbers() -> None:
    for scale in (1e-200, 1e200):
        found = look({"a": [3 * scale, 4 * scale], "b": [-30 * scale, 0.0]})
        torch.testing.assert_close(found.norms[0] / scale, torch.tensor([5.0, 30.0]).double())
        assert found.outvoted.tolist() == [1, 0]


def test_single_precision_is_measured_in_double_on_the_cpu() -> None:
    parameter = theta(1.0, 1.0, dtype=torch.float32)
    with torch.device("meta"):  # a default device must not split the numbers
        found = diagnose(lambda: {"a": 1e-30 * parameter.sum(), "b": parameter[0]}, [parameter])
    measured = [x for x in vars(found).values() if isinstance(x, Tensor)]
    assert {(x.dtype, x.device.type) for x in measured} == {(torch.float64, "cpu")}
    torch.testing.assert_close(found.norms[0, 0].item(), 1e-30 * math.sqrt(2), rtol=1e-6, atol=0)


def test_a_diagnosis_stays_as_it_is_and_equals_itself_only() -> None:
    found = look({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    assert found != look({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    with pytest.raises(FrozenInstanceError):
        found.terms = ()  # type: ignore[misc]


# Words


def test_says_that_a_term_has_little_say() -> None:
    (finding,) = look(
        {"data": [1.0, 0.0], "pde": [0.0, 2300.0]}, {"data": [1.0, 0.0], "pde": [1.0, 2300.0]}
    ).findings[:1]
    assert "gradient of 'pde' is 2.3e+03 times that of 'data'" in finding
    assert "bounded" in finding


@pytest.mark.parametrize(("ratio", "problem"), [(9.9, False), (10.1, True)])
def test_balance_is_the_problem_or_not(ratio: float, problem: bool) -> None:
    """Also of the weighted gradients, if weights are given."""
    rows = {"data": [1.0, 0.0], "pde": [0.0, 1.0]}
    for found in (
        look(rows | {"pde": [0.0, ratio]}),
        look(rows, weights={"data": 1.0, "pde": ratio}),
        look(rows | {"pde": [0.0, 1e6]}, weights={"data": 1.0, "pde": ratio / 1e6}),
    ):
        assert any("little say" in finding for finding in found.findings) == problem
        assert any("balance is not the problem" in f for f in found.findings) != problem
        assert any("times its weight" in f for f in found.findings) <= (found.weights != 1).any()


@pytest.mark.parametrize(("times", "said"), [(1, False), (2, True), (4, True)])
def test_says_who_is_outvoted(times: int, said: bool) -> None:
    """In more than a quarter of four batches."""
    against, along = {"a": [1.0], "b": [-2.0]}, {"a": [1.0], "b": [2.0]}
    found = look(*[against] * times, *[along] * (4 - times))
    assert found.outvoted.tolist() == [times / 4, 0]
    words = f"'a' is outvoted in {25 * times}% of the batches"
    assert any(words in finding for finding in found.findings) == said


def test_says_that_two_terms_are_opposed() -> None:
    found = look({"a": [1.0, 0.1], "b": [-1.0, 0.0], "c": [0.0, 1.0]})
    (finding,) = [finding for finding in found.findings if "opposite" in finding]
    assert finding.startswith("'a' and 'b' pull in opposite directions, with a cosine of -1.00")
    assert not any("balance is not" in finding for finding in found.findings)


def test_says_that_all_batches_are_the_same() -> None:
    parameter = theta(1.0)
    fixed = diagnose(lambda: {"a": parameter.sum(), "b": 2 * parameter.sum()}, [parameter])
    assert fixed.losses.shape == (10, 2)
    assert fixed.findings[-1].startswith("all batches gave the same losses")
    once = diagnose(lambda: {"a": parameter.sum()}, [parameter], batches=1)
    assert once.findings == ()
    assert "all batches" in look({"a": [1.0]}, {"a": [2.0]}).findings[0]  # as few as two
    values = iter([1.0, 2.0])
    found = diagnose(lambda: {"a": next(values) * parameter.sum()}, [parameter], batches=2)
    assert found.findings == ()


def test_says_which_parameters_nobody_uses() -> None:
    model = Branched()
    used = two_losses(model)
    found = diagnose(lambda: used({"x": points()}), model, batches=1)
    assert found.findings[0] == (
        "no term uses the parameters of shape (7,): nothing will train them"
    )


# What is wrong


def curve() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def grad(y: Tensor, x: Tensor, **flags: Any) -> Tensor:
    return torch.autograd.grad(y.sum(), x, **({"create_graph": True} | flags))[0]


def second_cut(u: Tensor, x: Tensor) -> Tensor:
    return grad(grad(u, x), x, create_graph=False, retain_graph=True) + u


def first_cut(u: Tensor, x: Tensor) -> Tensor:
    return grad(u, x, create_graph=False, retain_graph=True) + u


SLIPS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "second derivative": (lambda u, x: second_cut(u, x).square().mean(), f"'pde' {CUT}"),
    "first derivative": (lambda u, x: [first_cut(u, x)], f"'pde' {CUT}"),
    "on its way": (
        lambda u, x: (2 * torch.cat([first_cut(u, x), u]).T.abs()[:, 1:]).max(),
        f"'pde' {CUT}",
    ),
    "minus": (
        lambda u, x: (u - x[:, 0]).square().mean(),
        "'pde' adds or subtracts (5, 1) and (5,), which gives (5, 5), a number for each pair",
    ),
    "plus": (lambda u, x: (x.T + u).mean(), "'pde' adds or subtracts (1, 5) and (5, 1), which"),
    "residuals": (
        lambda u, x: [u - x[:, 0]],
        "'pde' adds or subtracts (5, 1) and (5,), which gives (5, 5), a number for each pair",
    ),
    "residual (N,)": (lambda u, x: [u[:, 0]], "residual 'pde[0]' has shape (5,): let it be (N, 1)"),
    "residual (N, 2)": (lambda u, x: [torch.cat([u, x], dim=1)], "residual 'pde[0]' has shape (5,"),
    "bare residual": (lambda u, x: u, "loss 'pde' has shape (5, 1): reduce it to a scalar"),
    "number": (lambda u, x: 0.5, "loss 'pde' is 0.5: pass a scalar tensor with a graph"),
    "no graph": (lambda u, x: u.detach().mean(), "loss 'pde' has no graph (requires_grad=False)"),
    "no parameter": (lambda u, x: x.square().mean(), "loss 'pde' uses none of the parameters"),
    "nan": (lambda u, x: (u * math.nan).mean(), "loss 'pde' is nan: lower the learning rate"),
    "infinite": (lambda u, x: (u.abs() / 0).mean(), "loss 'pde' is inf: lower the learning rate"),
    "nan gradient": (lambda u, x: (0 * u).sqrt().mean(), "gradient of loss 'pde' has 25 of 25"),
}


@pytest.mark.parametrize(("term", "words"), SLIPS.values(), ids=SLIPS)
def test_finds_a_slip_and_measures_the_other_term(term: Any, words: str) -> None:
    model = curve()

    def terms() -> dict[str, Any]:
        x = points(5, 1).requires_grad_()
        return {"data": (model(x) - 1).square().mean(), "pde": term(model(x), x)}

    found = diagnose(terms, model, batches=2)
    assert found.findings[0].startswith(words)
    assert sum("'pde" in finding for finding in found.findings) >= 1
    assert not any("'data'" in f or "balance is not" in f for f in found.findings[:1])
    (good,) = gradient_matrix({"data": terms()["data"]}, model)
    torch.testing.assert_close(found.norms[:, 0], good.norm().expand(2))
    if found.norms[:, 1].isnan().all():
        assert found.alignment.tolist() == [1, 1]
        assert found.outvoted[0] == 0
        assert found.outvoted[1].isnan()
        assert found.cosines.isnan().tolist() == [[[False, True], [True, True]]] * 2
    assert str(found)
    assert found._repr_html_()


GOOD: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "second order": lambda u, x: (grad(grad(u, x), x) + u).square().mean(),
    "detached": lambda u, x: (first_cut(u, x).detach() * u).mean(),
    "data": lambda u, x: (grad(u, x, create_graph=False, retain_graph=True).data * u).mean(),
    "an order": lambda u, x: u[first_cut(u, x)[:, 0].argsort()].mean(),
    "not in the loss": lambda u, x: u.mean() if second_cut(u, x).numel() else u,
    "one less many": lambda u, x: (u - u[:1]).square().mean(),
    "many less a number": lambda u, x: (u - 1 + torch.ones(1)).square().mean(),
    "products": lambda u, x: (u * x.T).mean(),
    "others of another number": lambda u, x: (u - torch.ones(3)).square().mean(),
}


@pytest.mark.parametrize("term", GOOD.values(), ids=GOOD)
def test_finds_no_slip_where_there_is_none(term: Any) -> None:
    model = curve()

    def terms() -> dict[str, Any]:
        x = points(5, 1).requires_grad_()
        return {"pde": term(model(x), x)}

    assert diagnose(terms, model, batches=1).findings == ()


def test_what_is_computed_without_a_graph_has_no_slip() -> None:
    model = curve()

    def terms() -> dict[str, Tensor]:
        x = points(5, 1).requires_grad_()
        u = model(x)
        slope = grad(u, x, create_graph=False, retain_graph=True)
        with torch.no_grad():
            weight = 1 / (1 + slope.abs())
        return {"pde": (weight * u).square().mean()}

    assert diagnose(terms, model, batches=1).findings == ()


def test_both_slips_of_a_term_are_told_once_each() -> None:
    model = curve()

    def terms() -> dict[str, Tensor]:
        x = points(5, 1).requires_grad_()
        return {"pde": (first_cut(model(x), x) - x[:, 0]).square().mean(), "data": model(x).mean()}

    first, second, *rest = diagnose(terms, model).findings
    assert CUT in first
    assert "adds or subtracts" in second
    assert not any(CUT in finding or "adds or subtracts" in finding for finding in rest)


def test_a_slip_is_told_beside_the_error_that_comes_of_it() -> None:
    model, x = curve(), points(5, 1)
    slip, error = diagnose(lambda: {"pde": [model(x) - x[:, 0]]}, model).findings
    assert slip.startswith("'pde' adds or subtracts (5, 1) and (5,)")
    assert error.startswith("residual 'pde[0]' has shape (5, 5)")


def test_says_in_how_many_batches() -> None:
    parameter, values = theta(1.0), iter([1.0, math.nan, 2.0])
    found = diagnose(lambda: {"a": next(values) * parameter.sum()}, [parameter], batches=3)
    assert found.findings[0].endswith("pass unscaled ones) (in 1 of 3 batches)")
    assert found.norms[:, 0].isnan().tolist() == [False, True, False]
    assert found.ratios.tolist() == [1]
    assert found.outvoted.tolist() == [0]
    assert "1.5" in str(found)  # the median of those that there are


# Errors


@pytest.mark.parametrize(
    ("terms", "settings", "kind", "match"),
    [
        ({"a": theta(1.0)}, {}, TypeError, "terms_of is a dict: pass a function that draws"),
        (lambda: [theta(1.0)], {}, TypeError, "terms_of returns a list: return a loss for each"),
        (lambda: {}, {}, ValueError, "terms is empty"),
        (lambda: {"a": theta(1.0)}, {"batches": 0}, ValueError, "batches is 0: draw 1 or more"),
        (
            lambda: {"a": theta(1.0)},
            {"weights": {"b": 1.0}},
            ValueError,
            r"terms \['a'\] are missing and \['b'\] are unknown",
        ),
        (
            lambda: {"a": theta(1.0)},
            {"weights": {"a": -1.0}},
            ValueError,
            "weight of 'a' is -1.0: pass a finite number that is not negative",
        ),
    ],
)
def test_errors(terms: Any, settings: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        diagnose(terms, [theta(1.0)], **settings)


def test_names_that_change_are_refused() -> None:
    names = iter("ab")
    parameter = theta(1.0)
    with pytest.raises(ValueError, match=r"terms \['a'\] are missing and \['b'\] are unknown"):
        diagnose(lambda: {next(names): parameter.sum()}, [parameter])


def test_no_trainable_parameter_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"no trainable parameter.* a generator is spent by its first"
    ):
        diagnose(lambda: {}, [theta(1.0).detach()])


def test_an_error_of_the_losses_is_passed_on_and_nothing_has_changed() -> None:
    model, before = nn.BatchNorm1d(1).double(), torch.random.get_rng_state()

    def losses() -> dict[str, Tensor]:
        model(torch.rand(9, 1).double())
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        diagnose(losses, model)
    assert model.running_mean == 0
    assert torch.equal(torch.random.get_rng_state(), before)


# Nothing changes


@pytest.mark.usefixtures("nothing_hidden")
@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_changes_nothing(around: Callable[[], Any]) -> None:
    with torch.random.fork_rng():
        model = nn.Sequential(curve(), nn.BatchNorm1d(1), nn.Dropout(0.5)).double().train()
        model(points(8, 1)).mean().backward()
    model[0][0].weight.grad = None
    state = {name: x.clone() for name, x in model.state_dict().items()}
    before = gradients(model)

    def losses() -> dict[str, Tensor]:
        return {
            "a": model(torch.rand(8, 1).double()).square().mean(),
            "b": model(points(8, 1)).mean(),
        }

    with around():
        found = diagnose(losses, model, batches=3)
    assert len(found.losses[:, 0].unique()) == 3
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
    assert all(
        a is b is None or torch.equal(a, b) for a, b in zip(before, gradients(model), strict=True)
    )
    assert model.training
    assert not any(
        x.requires_grad for x in (found.losses, found.mean_abs, found.norms, found.cosines)
    )


def test_a_second_look_sees_the_same() -> None:
    model = curve()

    def losses() -> dict[str, Tensor]:
        return {"a": model(torch.rand(8, 1).double()).square().mean()}

    assert torch.equal(diagnose(losses, model).losses, diagnose(losses, model).losses)


def test_weights_of_a_balancer_balance() -> None:
    balancer = GradientBalancer.bounded(["data", "pde"])
    rows = {"data": [1.0, 0.0], "pde": [0.0, 1e4]}
    balancer.update(torch.tensor(list(rows.values())))
    found = look(rows, weights=balancer.by_term())
    torch.testing.assert_close(found.ratios, torch.ones(2).double())
    assert "balance is not the problem" in found.findings[0]


# Two forms


def test_text_and_html_show_the_same() -> None:
    found = look(
        {"<b>": [1.0, 0.0], "pde & co": [3.0, 4.0]},
        {"<b>": [1.0, 1.0], "pde & co": [-3.0, -4.0]},
        weights={"<b>": 1.0, "pde & co": 20.0},
    )
    page = BeautifulSoup(found._repr_html_(), "html.parser")
    assert page.find("b") is None
    for table, heads in zip(
        page.select("table"),
        [
            ["term", "loss", "mean |∇L|", "‖∇L‖", "weight", "ratio", "outvoted"],
            ["term", "<b>", "pde & co"],
        ],
        strict=True,
    ):
        assert table.caption.text
        assert table.caption.text in str(found)
        assert [th.text for th in table.select("thead th[scope=col]")] == heads
        rows = table.select("tbody tr")
        assert [row.select_one("th[scope=row]").text for row in rows] == ["<b>", "pde & co"]
        for row in rows:
            cells = [td.text for td in row.select("td")]
            assert len(cells) == len(heads) - 1
            line = "  ".join([row.th.text, *cells])
            assert line.split() in [shown.split() for shown in str(found).splitlines()]
    assert [li.text for li in page.select("li")] == list(found.findings)
    told = str(found).partition("Findings\n")[2]
    assert max(map(len, told.splitlines())) <= 80
    assert " ".join(told.split()) == " ".join(f"- {finding}" for finding in found.findings)


def test_columns_stand_one_below_the_other() -> None:
    lines = str(look({"a": [1.0], "long name": [-1234.5]})).splitlines()
    assert lines[:4] == [
        "Terms, one batch",
        "  term       loss  mean |∇L|      ‖∇L‖     ratio  outvoted",
        "  a             0          1         1         1      100%",
        "  long name     0   1.23e+03  1.23e+03  1.23e+03        0%",
    ]


def test_findings_fill_eighty_columns() -> None:
    """With eleven words of six letters, but not with thirteen of five."""
    told = as_text([], ["abcdef " * 12, "abcde " * 14])
    assert [len(line) for line in told.splitlines()] == [8, 80, 10, 75, 15]


def test_a_dash_where_nothing_was_measured() -> None:
    parameter = theta(1.0)
    found = diagnose(lambda: {"a": parameter.sum(), "b": parameter.detach().sum()}, [parameter])
    assert str(found).splitlines()[3].split() == ["b", "–", "–", "–", "–", "–"]
    assert found.terms == ("a", "b")
