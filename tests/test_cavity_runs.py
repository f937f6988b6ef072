"""The cavity's long runs: what they train, and that their results are complete."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from helpers import in_float64, network, seeded

from benchmarks import cavity, report
from benchmarks.cavity import OPTIMIZERS, SIZES, Run, Size, Training
from benchmarks.cavity_forms import ENDS, Pressure, Vorticity
from chapters import CHAPTERS, cells
from pinnlib.derivatives import taylor
from pinnlib.problems import Cavity
from pinnlib.step import eager

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def chapter() -> dict[str, Any]:
    """The chapter's own classes."""
    namespace: dict[str, Any] = {"Cavity": Cavity, "torch": torch, "taylor": taylor}
    for cell in cells(CHAPTERS["14_flow"], "code"):
        for name in ("Weighted", "Vorticity"):
            if cell.source.startswith(f"class {name}("):
                exec(cell.source.partition("\n\n\n")[0], namespace)
    return namespace


@pytest.mark.parametrize(
    ("form", "twin"), [(Pressure, "Weighted"), (Vorticity, "Vorticity")], ids=["u, v, p", "ψ, ω"]
)
def test_form_is_that_of_the_chapter(
    chapter: dict[str, Any], form: type[Pressure], twin: str
) -> None:
    ours, theirs = form(250, derivatives=taylor), chapter[twin](250, derivatives=taylor)
    model = network(ours.domain, outputs=ours.outputs)
    batch = in_float64(ours.draw(40, seeded()))
    torch.testing.assert_close(ours.residuals(model, batch), theirs.residuals(model, batch))
    assert {k: list(v) for k, v in ours.terms.items()} == {
        k: list(v) for k, v in theirs.terms.items()
    }
    assert set(ours.constants) == set(ours.terms)


def test_points_crowd_at_the_ends_of_the_lid() -> None:
    batch = Pressure(derivatives=taylor).draw(1000, seeded())
    assert {name: len(x) for name, x in batch.items()} == {
        "lid": 200,
        "walls": 200,
        "pressure": 1,
        "pde": 1000,
        "of_pde": 1000,
        "of_lid": 200,
    }
    x = batch["pde"]
    assert (x >= 0).all()
    assert (x <= 1).all()
    r = torch.cdist(x, torch.tensor(ENDS)).amin(dim=1)
    assert (r[:400] <= 0.3).all()
    assert (r < 0.15).float().mean() > 3 * torch.pi / 2 * 0.15**2  # more than even shares
    torch.testing.assert_close(batch["of_pde"][:, 0], r**2 / (r**2 + 0.01))
    on_lid = batch["lid"][:, 0]
    assert torch.equal(batch["of_lid"][:, 0] == 1, (on_lid - 0.5).abs() < 0.45)


@pytest.mark.parametrize("form", [Pressure, Vorticity], ids=["u, v, p", "ψ, ω"])
@pytest.mark.parametrize(
    ("optimizer", "weights"),
    [*((name, "balanced") for name in OPTIMIZERS if name != "Broyden"), ("Broyden", "constants")],
)
def test_run_learns(
    monkeypatch: pytest.MonkeyPatch, form: type[Pressure], optimizer: str, weights: str
) -> None:
    monkeypatch.setattr(cavity, "Recorded", eager)
    steps = {"STARTING": 5, "STRETCHES": 2, "STEPS": {"Gauss–Newton": 3, "Broyden": 9, "Adam": 9}}
    for name, value in steps.items():
        monkeypatch.setattr(cavity, name, value)
    training = Training(Run(form, 400, optimizer, weights), Size(6, 1, 30, []), 3, CPU)
    batch = training.draw()
    training.problem.reynolds = 400

    def loss() -> float:
        losses = training.problem.losses(training.model, batch)
        constants = training.problem.constants if weights == "constants" else {}
        return sum(constants.get(term, 1.0) * x.item() for term, x in losses.items())

    before = loss()
    curve = training.curve()
    assert loss() < before
    assert len(curve["off"]) == len(curve["seconds"]) == 3
    assert sorted(curve["seconds"]) == curve["seconds"]
    assert curve["off"][-1] == training.off() > 0


def test_reynolds_number_rises(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(cavity, "STARTING", 1)
    monkeypatch.setattr(cavity, "STRETCHES", 12)
    training = Training(
        Run(Vorticity, 400, "Gauss–Newton", "constants"), Size(4, 1, 20, []), 0, CPU
    )
    stretch = lambda *_: lambda: seen.append(training.problem.reynolds)  # noqa: E731
    monkeypatch.setitem(OPTIMIZERS, "Gauss–Newton", stretch)
    training.curve()
    assert seen == pytest.approx([*range(130, 401, 30), 400, 400])


def test_distance_is_that_of_the_worse_line() -> None:
    """Rest is off by what the published lines are at most."""
    training = Training(Run(Pressure, 100, "Adam", "balanced"), Size(4, 1, 20, []), 0, CPU)
    with torch.no_grad():
        for p in training.model.parameters():
            p.zero_()
    lines = [training.table[name] for name in ("u", "v")]
    assert training.off() == report.rounded(max(x.abs().max().item() for x in lines))


@pytest.mark.parametrize("name", SIZES)
def test_results_are_complete(name: str) -> None:
    text = cavity.PATH.read_text()
    found = json.loads(text)
    assert text == report.compact(found)
    part = found[name]
    assert set(part) == {"runs", "date", "machine", "torch"}
    for run in SIZES[name].runs:
        for curve in part["runs"][run.title].values():
            assert len(curve["off"]) == len(curve["seconds"]) == cavity.STRETCHES + 1
