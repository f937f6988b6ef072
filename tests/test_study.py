"""The study: its runs are those of single trainings, its file is complete."""

import math

import numpy as np
import pytest
from helpers import seeded

from benchmarks import rivals, study
from benchmarks.unseen import BoundaryLayer, Convection
from pinnlib.derivatives import nested, taylor
from pinnlib.loop import default_network
from pinnlib.training import train
from pinnlib.weighting import Balancer


def double(batch):
    return {name: x.double() for name, x in batch.items()}


@pytest.mark.parametrize("problem", [BoundaryLayer, Convection])
@pytest.mark.parametrize("derivatives", [nested, taylor])
def test_unseen_problems_are_solved_by_their_references(problem, derivatives):
    problem = problem(derivatives=derivatives)
    losses = problem.losses(problem.reference, double(problem.sample(64, seeded())))
    assert losses["pde"].item() < 1e-16
    assert losses["data"].item() < 1e-10  # 2π in float32, as points are sampled
    wrong = problem.losses(
        lambda x: problem.reference(x) + x[:, :1] ** 2, problem.sample(64, seeded())
    )
    assert min(loss.item() for loss in wrong.values()) > 1e-2


@pytest.mark.parametrize("setting", ["bounded", "jaxpi", "kernel, γ = ½", "attention, 100"])
def test_a_run_of_the_study_is_a_training_alone(setting, monkeypatch):
    monkeypatch.setattr(study, "STEPS", 12)
    monkeypatch.setattr(study, "RECORD_EVERY", 6)
    monkeypatch.setattr(study, "SEEDS", range(3, 5))
    monkeypatch.setattr(study, "Recorded", study.eager)
    (group,) = (name for name, group in rivals.GROUPS.items() if setting in group)
    (history,) = study.run("Helmholtz", group)
    index = 2 * list(rivals.GROUPS[group]).index(setting) + 1  # of the second seed
    problem = rivals.PROBLEMS["Helmholtz"]()
    balancer = rivals.GROUPS[group][setting](problem)
    trained = study.Attentive(problem) if group == "attention" else problem
    generator = seeded(4)
    model = default_network(problem, generator)
    alone = train(trained, model, balancer, steps=12, generator=generator, record_every=6)
    assert history.errors[index].tolist() == pytest.approx(alone.errors.tolist(), rel=1e-3)
    ratio = history.weights["data"][index] / history.weights["pde"][index]
    expected = alone.weights["data"] / alone.weights["pde"]
    assert ratio.tolist() == pytest.approx(expected.tolist(), rel=2e-2)


def test_what_is_done_is_not_done_again(monkeypatch):
    left = list(study.work([]))
    assert not left, f"python -m benchmarks.study has not run {left}"
    monkeypatch.setattr(study, "results", lambda: {"problems": {"wave": {"1": {}}}})
    left = list(study.work([]))
    assert ("wave", "rules") in left
    assert ("wave", "torchjd") not in left
    assert left[-2:] == [("boundary layer", "rules"), ("convection", "rules")]
    assert list(study.work(["wave"])) == [("wave", g) for g in ("rules", "kernels", "attention")]


def test_every_result_is_there():
    found = study.results()
    assert found["seeds"] == [*study.SEEDS]
    assert found["steps"][-1] == study.STEPS
    assert set(found["costs"]) == set(rivals.SETTINGS)
    assert found["costs"]["1"] == [1.0, 1.0, 1.0]
    assert set(found["problems"]) == {*rivals.PROBLEMS, *rivals.UNSEEN}
    for title, settings in found["problems"].items():
        expected = {s for name, g in rivals.GROUPS.items() for s in g if name != "torchjd"}
        if title in rivals.UNSEEN:
            expected = set(rivals.SIDE_BY_SIDE)
        if title in rivals.WITH_TORCHJD:
            expected |= set(rivals.TORCHJD)
        assert set(settings) == expected, title
        for setting, result in settings.items():
            errors = np.array(result["errors"])
            assert errors.shape == (len(study.SEEDS), len(found["steps"])), (title, setting)
            assert np.isfinite(errors).all(), (title, setting)
            assert (errors > 0).all(), (title, setting)
            assert len(result["data_over_pde"]) == len(study.SEEDS)
            if setting.isdigit():
                assert result["data_over_pde"] == [float(setting)] * len(study.SEEDS)
    assert study.tables(found).count("\n## ") == len(found["problems"])
    assert math.isclose(np.median(found["costs"]["bounded"][0]), 1.0, abs_tol=0.3)


def test_balancers_are_made_anew():
    for group in rivals.GROUPS.values():
        for make in group.values():
            problem = rivals.PROBLEMS["Klein–Gordon"]()
            a, b = make(problem), make(problem)
            assert isinstance(a, Balancer)
            assert a is not b
            assert a.terms == rivals.TERMS
