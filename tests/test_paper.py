"""The benchmark of the paper's table: its protocol, and its committed results."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import paper, report
from benchmarks.paper_sources import PUBLISHED
from pinnlib.problems import Helmholtz, KleinGordon

FOUND = json.loads(paper.RESULTS.read_text())
every_case = pytest.mark.parametrize("case", paper.CASES.values(), ids=paper.CASES)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# The protocol


@every_case
def test_boundary_loss_adds_up_the_means_of_its_faces(case: paper.Case) -> None:
    problem, generator = case.problem(), seeded()
    batch = problem.sample(problem.points, generator)
    model = paper.network(case, "M1", generator)
    one_mean = {4: Helmholtz, 2: KleinGordon}[len(problem.terms["boundary"])]()
    residuals = one_mean.residuals(model, batch)
    losses = problem.losses(model, batch)
    faces = len(problem.terms["boundary"])
    expected = faces * residuals["boundary"].square().mean()
    assert losses["boundary"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses["pde"].item() == pytest.approx(residuals["pde"].square().mean().item())
    split = problem.residuals(model, batch)
    for i in range(faces):
        assert split[f"face {i}"].shape == (128, 1)
        points = batch["boundary"][i::faces]
        assert any(len(column.unique()) == 1 for column in points.T), "not on one face"


@every_case
def test_inputs_are_standardised(case: paper.Case) -> None:
    generator = seeded()
    points = case.problem().sample({s: 100_000 for s in case.problem.points}, generator)["pde"]
    x = paper.network(case, "M1", generator).normalize(points)
    assert x.mean(dim=0).abs().max() < 0.01
    assert (x.std(dim=0) - 1).abs().max() < 0.01


@pytest.mark.parametrize("model", ["M2", "M4"])
def test_rule_looks_at_the_weight_matrices_of_layers_only(model: str) -> None:
    case = paper.CASES["Klein–Gordon 5×50"]
    balancer, generator = paper.weights_of(case, model, width=4), seeded()
    named = list(paper.network(case, model, generator, width=4).named_parameters())
    terms = len(balancer.terms)
    looked_at, left_out = [], []
    for name, p in named:
        columns = torch.rand(terms, p.numel(), generator=generator)
        (looked_at if name.startswith("layers") and p.ndim > 1 else left_out).append(columns)
    means = torch.stack([c.mean(dim=1) for c in looked_at]).mean(dim=0)
    largest = max(c[-1].max() for c in looked_at)
    expected = [*(largest / means[:-1]).tolist(), 1.0]
    parts = iter(looked_at), iter(left_out)
    G = [next(parts[not (n.startswith("layers") and p.ndim > 1)]) for n, p in named]
    for factor in (1.0, 100.0):  # what is left out has no say
        rows = [g if any(g is c for c in looked_at) else factor * g for g in G]
        target = balancer.target(torch.cat(rows, dim=1)).tolist()
        assert target == pytest.approx(expected, rel=1e-5)
    assert balancer.every == 10


def test_plain_models_keep_their_weights() -> None:
    for model in ("M1", "M3"):
        balancer = paper.weights_of(paper.CASES["Helmholtz 3×50"], model)
        assert balancer.update(torch.rand(2, 5, generator=seeded())).tolist() == [1, 1]


def test_gated_networks_start_with_random_biases_in_their_encoders() -> None:
    model = paper.network(paper.CASES["Helmholtz 3×50"], "M4", seeded(), width=1000)
    assert hasattr(model, "encoders")
    for encoder in model.encoders:
        assert encoder.bias.std().item() == pytest.approx(math.sqrt(2 / 1001), rel=0.1)
    assert not hasattr(paper.network(paper.CASES["Helmholtz 3×50"], "M2", seeded()), "encoders")


def test_learning_rate_falls_at_each_step() -> None:
    optimizer = paper.adam([torch.zeros(1, requires_grad=True)])
    schedule = paper.decay(optimizer)
    rates = []
    for _ in range(1000):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == 1e-3
    assert all(a > b for a, b in itertools.pairwise(rates))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.9e-3)


# The results


def test_summary() -> None:
    found = paper.summary({"0": [9.0, 1.0], "1": [9.0, 2.0], "2": [0.1, 6.0]})
    assert found == pytest.approx({"mean": 3, "sd": math.sqrt(7), "least": 1, "greatest": 6})


def test_merging_keeps_what_is_not_new() -> None:
    old = {"runs": {"a": {"0": 1, "1": 2}}, "date": "x"}
    assert paper.merged(old, {"runs": {"a": {"1": 3}, "b": {}}, "date": "y"}) == {
        "runs": {"a": {"0": 1, "1": 3}, "b": {}},
        "date": "y",
    }
    assert old["date"] == "x"


def test_files_are_as_the_benchmark_writes_them() -> None:
    assert paper.RESULTS.read_text() == report.compact(FOUND)
    words = Path(paper.__file__).with_suffix(".md")
    assert words.read_text() == paper.markdown(FOUND)
    assert FOUND["published"] == PUBLISHED


@pytest.mark.parametrize("case", FOUND["runs"])
def test_runs_are_complete(case: str) -> None:
    models = FOUND["runs"][case]
    for model, run in models.items():
        assert model in paper.MODELS
        assert len(run["errors"]) >= 3
        for path in run["errors"].values():
            assert len(path) == len(FOUND["steps"]) == paper.STEPS // paper.EVERY
            assert all(0 < error < 100 for error in path)
        assert ("weights" in run) == (model in ("M2", "M4"))
        for rows in run.get("weights", {}).values():
            assert rows.keys() == run["errors"].keys()


def test_order_is_that_of_the_paper() -> None:
    models = FOUND["runs"]["Helmholtz 3×50"]
    means = {model: paper.summary(run["errors"])["mean"] for model, run in models.items()}
    assert all(means["M1"] > 3 * mean for model, mean in means.items() if model != "M1")
    assert means["M2"] > means.get("M4", 0.0)  # which takes longest and comes last
