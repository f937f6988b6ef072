"""What a chapter builds by hand does what its twin of the same name in pinnlib does."""

import ast
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import pytest
import torch
from test_book import MODULES, public_names
from torch import Tensor

from chapters import CHAPTERS, cells
from pinnlib import AdaptivePINN, gradients
from pinnlib.derivatives import Derivatives, nested, taylor
from pinnlib.evaluation import relative_l2_error
from pinnlib.networks import MLP
from pinnlib.problems import KleinGordon

PROBLEM = KleinGordon()


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(123)


def model_and_losses() -> tuple[MLP, dict[str, Tensor]]:
    generator = seeded()
    model = MLP(PROBLEM.domain, width=10, generator=generator).double()
    batch = {name: x.double() for name, x in PROBLEM.sample(16, generator).items()}
    return model, PROBLEM.losses(model, batch)


def compare_mlp(own: Any) -> None:
    model = own(PROBLEM.domain, width=7, depth=2, generator=seeded())
    twin = MLP(PROBLEM.domain, width=7, depth=2, generator=seeded())
    torch.testing.assert_close(model(PROBLEM.grid(5)), twin(PROBLEM.grid(5)))


def compare_derivatives(twin: Derivatives) -> Callable[[Any], None]:
    def compare(own: Any) -> None:
        model, _ = model_and_losses()
        x = PROBLEM.grid(5).double()
        torch.testing.assert_close(own(model, x), twin(model, x))

    return compare


def compare_points(name: str) -> Callable[[Any], None]:
    def compare(own: Any) -> None:
        x = PROBLEM.grid(7)
        torch.testing.assert_close(own(x), getattr(PROBLEM, name)(x))

    return compare


def compare_sample(own: Any) -> None:
    torch.testing.assert_close(own(16, seeded()), PROBLEM.sample(16, seeded()))


def compare_losses(own: Any) -> None:
    model, _ = model_and_losses()
    batch = {name: x.double() for name, x in PROBLEM.sample(16, seeded()).items()}
    torch.testing.assert_close(own(model, batch), PROBLEM.losses(model, batch))


def compare_relative_l2_error(own: Any) -> None:
    model = MLP(PROBLEM.domain, generator=seeded())
    assert own(model, PROBLEM) == pytest.approx(relative_l2_error(model, PROBLEM))


def compare_gradient_matrix(own: Any) -> None:
    model, losses = model_and_losses()
    params = list(model.parameters())
    torch.testing.assert_close(own(losses, params), gradients.gradient_matrix(losses, params))


def compare_on_matrix(name: str) -> Callable[[Any], None]:
    def compare(own: Any) -> None:
        G = torch.randn(3, 40, generator=seeded())
        torch.testing.assert_close(own(G), getattr(gradients, name)(G))

    return compare


def compare_get_grad_norm(own: Any) -> None:
    model, losses = model_and_losses()
    unused = torch.nn.Parameter(torch.ones(3))
    for loss in losses.values():
        for params in ([*model.parameters()], [*model.parameters(), unused], [unused]):
            norm = AdaptivePINN(model).get_grad_norm(loss, params)
            assert own(loss, params) == pytest.approx(norm)


def compare_adaptive_pinn(own: Any) -> None:
    results = []
    for trainer in (own, AdaptivePINN):
        generator = seeded()
        model = MLP(PROBLEM.domain, width=10, generator=generator).double()
        pinn = trainer(model, alpha=0.3)
        assert pinn.lambda_pde == 1.0
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        steps = []
        for _ in range(200):
            batch = {name: x.double() for name, x in PROBLEM.sample(16, generator).items()}
            losses = PROBLEM.losses(model, batch)
            steps.append(pinn.train_step_with_balance(optimizer, losses["data"], losses["pde"]))
        results.append((torch.tensor(steps), [p.detach() for p in model.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


COMPARISONS: dict[str, Callable[[Any], None]] = {
    "MLP": compare_mlp,
    "nested": compare_derivatives(nested),
    "taylor": compare_derivatives(taylor),
    "exact": compare_points("exact"),
    "source": compare_points("source"),
    "sample": compare_sample,
    "losses": compare_losses,
    "relative_l2_error": compare_relative_l2_error,
    "gradient_matrix": compare_gradient_matrix,
    "mean_abs": compare_on_matrix("mean_abs"),
    "max_abs": compare_on_matrix("max_abs"),
    "l2_norm": compare_on_matrix("l2_norm"),
    "cosine": compare_on_matrix("cosine"),
    "get_grad_norm": compare_get_grad_norm,
    "AdaptivePINN": compare_adaptive_pinn,
}


@cache
def twin_names() -> set[str]:
    """Public functions and classes of the package, and methods of the two taught first."""
    methods = [*vars(KleinGordon), "losses", *vars(AdaptivePINN)]
    return {name for name in [*public_names(), *methods] if not name.startswith("_")}


@cache
def definitions() -> list[tuple[str, str]]:
    """Chapter and name of each function or class, defined by hand, that has a twin."""
    return [
        (chapter, node.name)
        for chapter, notebook in CHAPTERS.items()
        for cell in cells(notebook, "code")[1:]
        for node in ast.parse(cell.source).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in twin_names()
    ]


def namespace(chapter: str) -> dict[str, Any]:
    """Everything that a chapter imports or defines by hand, without running the rest.

    Names that it imports from the package after building them are left by hand.
    """
    names: dict[str, Any] = {}
    by_hand = {name for own, name in definitions() if own == chapter}
    for cell in cells(CHAPTERS[chapter], "code")[1:]:
        for node in ast.parse(cell.source).body:
            if isinstance(node, ast.ImportFrom) and {a.name for a in node.names} & by_hand:
                continue
            is_constant = isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            definition = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef
            if is_constant or isinstance(node, definition):
                # A default argument may be a result of the rest; no twin has such a one.
                with suppress(NameError):
                    exec(compile(ast.unparse(node), chapter, "exec"), names)
    return names


@pytest.mark.parametrize(("chapter", "name"), definitions())
def test_twin(chapter: str, name: str) -> None:
    assert name in COMPARISONS, f"{name} has a twin in pinnlib and no comparison: add one"
    COMPARISONS[name](namespace(chapter)[name])


def test_every_comparison_is_used() -> None:
    assert {name for _, name in definitions()} == set(COMPARISONS)


def test_by_hand_is_not_the_twin_itself() -> None:
    for chapter, name in definitions():
        own = namespace(chapter)[name]
        assert own.__module__ not in MODULES
