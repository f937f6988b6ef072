"""The committed benchmark results: complete, and told alike by the file and the tables."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import (
    accuracy,
    accuracy_ours,
    accuracy_problems,
    accuracy_report,
    gpu,
    gpu_rules,
    report,
    second_order,
    second_order_more,
)
from benchmarks.contestants import ENTRIES
from benchmarks.rivals import PROBLEMS
from pinnlib.coefficients import WithCoefficients
from pinnlib.derivatives import taylor
from pinnlib.optimizers import SSBroyden
from pinnlib.problems import KleinGordon
from pinnlib.step import eager

FOLDER = Path(report.__file__).parent
PEERS = report.SHIPPED / "peers.json"
RESULTS = json.loads(PEERS.read_text())
PARTS = RESULTS["parts"]
GPU = json.loads((FOLDER / "gpu.json").read_text())


def test_parts_are_known_and_dated() -> None:
    assert set(PARTS) == set(report.SECTIONS)
    assert all(part["date"].startswith("20") for part in PARTS.values())


def test_tables_say_what_the_results_say() -> None:
    assert (FOLDER / "results.md").read_text() == report.markdown(RESULTS)


def test_results_are_stored_as_the_benchmarks_write_them() -> None:
    assert PEERS.read_text() == report.compact(RESULTS)


@pytest.mark.parametrize("size", ["small", "large"])
def test_step_tables_are_complete_and_checked(size: str) -> None:
    contestants = PARTS[size]["contestants"]
    assert list(contestants) == list(ENTRIES)
    for row in contestants.values():
        assert max(row["errors"].values()) < 1e-3
        for key in ("ms", "of_plain", "of_ours"):
            median, low, high = row[key]
            assert 0 < low <= median <= high < math.inf
    for name, key in {"plain, nested": "of_plain", "balanced, compiled": "of_ours"}.items():
        assert contestants[name][key] == [1, 1, 1]


def test_reaching_the_lower_error_takes_longer() -> None:
    part = PARTS["fixed_error"]
    for run in part["runs"]:
        assert len(run["seconds"]) == len(part["seeds"])
        for first, second in run["seconds"]:
            assert second is None or first <= second


def test_limit_is_what_the_readme_says() -> None:
    """Half of the compiled step is matrix products, and no library gets ten times their time."""
    profile = PARTS["profile"]["contestants"]
    compiled, eager = profile["balanced, compiled"], profile["balanced, nested"]
    assert compiled["operations"] < eager["operations"] / 4
    assert compiled["products_ms"] > compiled["ms"] / 2
    for name in ("DeepXDE", "PINA"):
        assert profile[name]["ms"] < 10 * compiled["products_ms"]


def test_gpu_gives_the_numbers_of_the_cpu() -> None:
    for kind, found in GPU["parity"].items():
        assert max(found.values()) < (1e-12 if "float64" in kind else 1e-3)
    assert set(GPU["rules"]) > set(gpu_rules.RULES)
    for kind, found in GPU["rules"].items():
        assert max(found.values()) < (1e-9 if kind in gpu_rules.RULES else 1e-7)


def test_gpu_table_says_what_the_results_say() -> None:
    assert (FOLDER / "gpu.json").read_text() == report.compact(GPU)
    assert (FOLDER / "gpu.md").read_text() == report.gpu(GPU)


def test_figures_are_there() -> None:
    assert {path.name for path in (FOLDER / "figures").iterdir()} == {
        "steps.png",
        "scaling.png",
        "accuracy.png",
    }


def test_compact_keeps_the_numbers() -> None:
    results = {"a": [1.5, None, 2], "b": {"c": [[1, 2], [3, 4]], "d": "ä [x]"}}
    assert json.loads(report.compact(results)) == results


def test_benchmark_of_a_gpu_runs_on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device against itself: equal to rounding, and a time for each size within the limit."""
    monkeypatch.setattr(gpu, "WAYS", dict.fromkeys(gpu.WAYS, eager))
    monkeypatch.setattr(gpu, "MOST", 32)
    cpu = torch.device("cpu")
    for found in gpu.parity(cpu, steps=2).values():
        assert max(found.values()) < 1e-6
    rules = gpu_rules.parity(cpu, {"eager": eager}, steps=10)
    assert list(rules)[:-2] == list(gpu_rules.RULES)
    assert all(max(found.values()) < 1e-6 for found in rules.values())
    rows = gpu.times(cpu, (8, 16), (1, 4), until=time.perf_counter() + 60, budget=0.01)
    assert [(row["networks"], row["points"]) for row in rows] == [(1, 8), (1, 16), (4, 8)]
    assert all(row[f"{kind}, eager"] > 0 for row in rows for kind in ("plain", "balanced", "ratio"))
    assert gpu.times(cpu, (8,), (1,), until=0.0) == []


@pytest.mark.parametrize("name", second_order.STRETCHES)
def test_study_of_second_order_optimizers_is_complete(name: str) -> None:
    text = (report.SHIPPED / f"{name}.json").read_text()
    found = json.loads(text)
    assert text == report.compact(found)
    assert set(found["seconds"]) == set(second_order.CASES)
    for title, case in second_order.CASES.items():
        for setting in second_order.SETTINGS:
            runs = found["errors"][title][setting]
            assert list(map(int, runs)) == list(second_order.SEEDS)
            assert {len(errors) for errors in runs.values()} == {case.stretches[name] + 1}
            weights = found["weights"][title][setting].values()
            assert setting in second_order.RULES or set(weights) == {float(setting)}


@pytest.mark.parametrize("name", second_order.STRETCHES)
def test_study_of_second_order_optimizers_goes_on(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(second_order, "Recorded", eager)
    for number, value in {"POINTS": 40, "ON_EACH_SET": 10, "ADAM_STEPS": 12}.items():
        monkeypatch.setattr(second_order, number, value)
    cases = {"small": second_order.Case(KleinGordon(derivatives=taylor), 4, 1, 1.0, {name: 1})}
    monkeypatch.setattr(second_order, "CASES", cases)
    monkeypatch.setattr(second_order, "SEEDS", [3])
    settings = ["10", "held", "renewed"]
    found: dict[str, Any] = {"errors": {}, "weights": {}, "seconds": {}}
    saved: list[str] = []

    def save() -> None:
        saved.append(report.compact(found))

    for _ in range(2):  # the second time, nothing is left to do
        second_order.study(name, found, save, cases, [3], settings)
        assert len(saved) == 3
    runs = found["errors"]["small"]
    assert all(len(set(run["3"])) == 2 for run in runs.values())
    weights = {setting: found["weights"]["small"][setting]["3"] for setting in runs}
    assert weights["10"] == 10
    assert weights["held"] != weights["renewed"]
    second_order.timing(name, found, lambda: None)
    assert min(found["seconds"]["small"].values()) > 0


def test_study_of_more_problems_is_complete() -> None:
    """With the three that stand elsewhere, these are the nine of the study."""
    text = second_order_more.PATH.read_text()
    found = json.loads(text)
    assert text == report.compact(found)
    assert set(found["errors"]) == set(second_order_more.CASES)
    elsewhere = {"Poisson 2D" if title == "Poisson" else title for title in second_order.CASES}
    assert elsewhere | set(found["errors"]) == set(PROBLEMS)
    for title, case in second_order_more.CASES.items():
        assert list(found["errors"][title]) == second_order_more.TRIED
        for setting, runs in found["errors"][title].items():
            assert list(map(int, runs)) == list(second_order_more.SEEDS)
            assert {len(errors) for errors in runs.values()} == {case.stretches["broyden"] + 1}
            weights = found["weights"][title][setting].values()
            assert setting == "held" or set(weights) == {float(setting)}


@pytest.mark.parametrize("title", second_order_more.CASES)
def test_each_of_more_problems_is_trained(monkeypatch: pytest.MonkeyPatch, title: str) -> None:
    """Its coefficient, too, which stays out of the balancer's rows."""
    monkeypatch.setattr(second_order, "Recorded", eager)
    for number, value in {"POINTS": 40, "ON_EACH_SET": 10, "ADAM_STEPS": 3}.items():
        monkeypatch.setattr(second_order, number, value)
    monkeypatch.setattr(second_order, "SSBroyden", lambda p, max_iter: SSBroyden(p, max_iter // 50))
    case = second_order_more.CASES[title]
    monkeypatch.setattr(case, "stretches", {"broyden": 1})
    runner = second_order.Runner(case)
    errors, weight, _ = runner.run("broyden", "held", 0)
    assert len(errors) == 2
    assert all(0 < error < math.inf for error in (*errors, weight))
    size = sum(p.numel() for p in runner.model.parameters())
    known = not case.problem.unknown
    rows = runner.rows(case.draw(torch.Generator().manual_seed(0)))
    assert rows.shape == (2, size if known else size - 1)
    if not known:
        assert isinstance(runner.model, WithCoefficients)
        assert runner.model.log_shares.item() != 0


def test_accuracy_tables_say_what_the_results_say() -> None:
    text = accuracy.RESULTS.read_text()
    found = json.loads(text)
    assert text == report.compact(found)
    assert (FOLDER / "accuracy.md").read_text() == accuracy_report.markdown(found)
    for title, methods in found["runs"].items():
        assert set(methods) <= set(accuracy.METHODS)
        for run in (run for runs in methods.values() for run in runs.values()):
            assert 0 < len(run["history"]) <= accuracy_report.MOST
            assert len(run["reached"]) == len(accuracy_problems.TARGETS[title])
            times = [math.inf if t is None else t for t in run["reached"]]
            assert times == sorted(times)


def test_first_times_are_those_of_the_first_row_below_each_target() -> None:
    history = [(1.0, 0.5), (2.0, 1e-4), (3.0, 2e-3), (4.0, 1e-6)]
    assert accuracy_report.first_times(history, (1e-3, 1e-5, 1e-7)) == [2.0, 4.0, None]


def test_thinned_history_keeps_both_ends() -> None:
    history = [[float(i), 1 / (i + 1)] for i in range(1000)]
    thinned = accuracy_report.thinned(history)
    assert len(thinned) == accuracy_report.MOST
    assert (thinned[0], thinned[-1]) == ([0.0, 1.0], [999.0, 0.001])
    assert accuracy_report.thinned(history[:3]) == [[0.0, 1.0], [1.0, 0.5], [2.0, 0.333]]


def test_an_error_is_not_timed_and_the_last_target_ends_a_run() -> None:
    watch = accuracy_problems.Watch("Helmholtz", 60.0)
    exact = watch.problem.reference
    assert exact is not None

    def slow(x: torch.Tensor) -> torch.Tensor:
        until = time.process_time() + 0.01
        while time.process_time() < until:
            pass
        return 0 * exact(x)

    watch.look(slow)
    assert watch.seconds < 0.3
    with pytest.raises(accuracy_problems.FinishedError):
        watch.look(exact, last=True)
    assert [error for _, error in watch.history] == [1.0, 0.0]


def test_a_stiffness_counts_once_u_is_within_the_noise() -> None:
    watch = accuracy_problems.Watch("oscillator", 60.0)
    assert watch.goal([1.0, 0.5, 1e-4]) == math.inf
    assert watch.goal([1.0, 0.01, 1e-4]) == 1e-4


@pytest.mark.parametrize("method", accuracy_report.OURS)
def test_our_methods_are_raced(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr(accuracy_ours, "Recorded", eager)
    monkeypatch.setattr(accuracy_ours, "ADAM_STEPS", 5)
    monkeypatch.setattr(accuracy_ours, "NETWORKS", {"oscillator": (4, 1, 1.0)})
    race = accuracy_problems.Race("oscillator", method, 0, 1.0, limit=0.5)
    found = accuracy.Racer(race).run()
    assert found["reached"] == [None]
    times, errors, off = zip(*found["history"], strict=True)
    assert list(times) == sorted(times)
    assert times[-1] >= 0.5
    assert all(0 < error < math.inf for error in errors + off)
    assert len(set(errors)) > 1


def test_accuracy_benchmark_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    raced: list[accuracy_problems.Race] = []

    def run(race: accuracy_problems.Race) -> dict[str, Any]:
        raced.append(race)
        return {"reached": [None], "history": [[1.0, 1 / race.weight]]}

    monkeypatch.setattr(accuracy, "run", run)
    found: dict[str, Any] = {"tuning": {}, "runs": {}}
    saved: list[str] = []
    for names in (["Helmholtz", "SOAP", "SSBroyden"], ["Helmholtz", "SOAP"]):
        accuracy.compete(found, lambda: saved.append(""), names)
    assert len(raced) == len(saved) == 2 * len(accuracy.SEEDS) + 3
    assert [race.limit for race in raced[:5]] == [180.0, 60.0, 60.0, 60.0, 300.0]
    assert [race.weight for race in raced[:5]] == [1.0, 1.0, 10.0, 100.0, 100.0]
    accuracy.compete(found, lambda: None, [], hours=0.0)
    assert len(raced) == len(saved)
