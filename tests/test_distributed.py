"""Several processes, each with its share of the points, train as one does, or say what is wrong."""

import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
import ranks
import torch
from torch import Tensor, nn

from pinnlib import GradientBalancer, Step
from pinnlib.distributed import alone, check_alike, check_processes, sum_over_processes
from pinnlib.gradients import gradient_matrix

CPU = torch.device("cpu")
EXACT = {"rtol": 1e-12, "atol": 1e-12}
Found = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """How the processes of each part ended; what they found lies beside."""
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, ranks.__file__, folder],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    codes: dict[str, list[Any]] = torch.load(folder / "codes.pt")
    codes["folder"], codes["stderr"] = [folder], [done.stderr]
    return codes


@pytest.fixture(scope="module")
def found(codes: dict[str, list[Any]]) -> Found:
    """What each process found, or one part of it."""

    def load(name: str, world: int, part: str | None = None) -> list[dict[str, Any]]:
        assert codes[f"{name}{world}"] == [0] * world, codes["stderr"][0]
        paths = [codes["folder"][0] / f"{name}{world}-{rank}.pt" for rank in range(world)]
        return [torch.load(path) if part is None else torch.load(path)[part] for path in paths]

    return load


# As one process


@pytest.mark.parametrize("world", [2, 3])
def test_processes_train_as_one_process_on_all_points(found: Found, world: int) -> None:
    shares = found("checks", world, "trainings")
    assert set(shares[0]) >= {"even", "uneven", "no points of a term", "every 5", "resumed"}
    for name in shares[0]:
        expected = ranks.run(ranks.CASES[name])
        start = nn.utils.parameters_to_vector(ranks.network(ranks.PROBLEM.domain).parameters())
        assert (expected["parameters"].flatten()[: len(start)] - start).abs().max() > 1e-4
        assert name == "constant" or (expected["weights"][-1] - 1).abs().max() > 0.1
        for share in shares:
            for key in expected:
                torch.testing.assert_close(share[name][key], expected[key], **EXACT)
            for key, value in shares[0][name].items():
                assert torch.equal(share[name][key], value), f"{key} of {name} differ"


@pytest.mark.parametrize("world", [2, 3])
def test_losses_without_residuals_count_alike(found: Found, world: int) -> None:
    models = [ranks.small(rank) for rank in range(world)]
    each = [ranks.losses_of(*pair) for pair in models]
    losses = torch.stack([torch.stack(list(x.values())) for x in each]).mean(dim=0)
    G = sum(
        gradient_matrix(x, m.parameters()) for x, (m, _) in zip(each, models, strict=True)
    ) / len(models)
    weights = GradientBalancer.simplified().update(G)
    for share in found("checks", world, "losses_alone"):
        torch.testing.assert_close(share["losses"], losses.detach(), **EXACT)
        torch.testing.assert_close(share["G"], G, **EXACT)
        torch.testing.assert_close(share["weights"], weights, **EXACT)
        torch.testing.assert_close(share["grad"], (weights @ G)[None, :3], **EXACT)


@pytest.mark.parametrize("world", [2, 3])
def test_the_order_in_memory_makes_no_difference(found: Found, world: int) -> None:
    for share in found("checks", world, "other_strides"):
        assert torch.equal(share["sum"], torch.arange(6.0).reshape(2, 3) * world)


@pytest.mark.parametrize("world", [2, 3])
def test_what_travels(found: Found, world: int) -> None:
    K, P = 2, 4
    for share in found("checks", world, "losses_alone"):
        first, between, due = share["sent"]
        # Points of each residual, losses, gradients; at first also whether the processes are alike.
        assert due == [K, K, K * P]
        assert between == [K, K, P]
        assert len(first) == 5
        assert sum(first) == sum(due) + 10


# What is not finite, or not alike


@pytest.mark.parametrize("world", [2, 3])
def test_what_is_not_finite_on_one_process_raises_on_each(found: Found, world: int) -> None:
    shares = found("checks", world, "not_finite")
    for share in shares:
        assert share["loss"].startswith("NotFiniteError: loss 'pde' is inf")
        assert share["gradient"].startswith("NotFiniteError: gradient of loss 'data' at step 1")
        assert torch.equal(share["weights"], shares[0]["weights"])
        assert share["weights"].isfinite().all()


@pytest.mark.parametrize(
    ("case", "names"),
    [
        ("parameters", "their parameters"),
        ("step", "their balancers"),
        ("every", "their balancers"),
        ("terms", "their terms"),
        ("used", "the parameters that a term uses"),
    ],
)
def test_processes_that_start_apart_are_refused_on_each(
    found: Found, case: str, names: str
) -> None:
    for share in found("checks", 2, "differing"):
        assert share[case].startswith(f"ValueError: the 2 processes differ in {names}, so they")


def together(*shares: dict[str, list[Any]]) -> list[str | None]:
    """Compare as the processes with these shares would, and give each one's error."""
    sent: list[list[Tensor]] = []

    def collect(x: Tensor) -> Tensor:
        sent[-1].append(x)
        return x

    for share in shares:
        sent.append([])
        check_alike(share, CPU, collect)
    total = torch.stack([x for (x,) in sent]).sum(dim=0)
    errors: list[str | None] = []
    for share in shares:
        try:
            check_alike(share, CPU, lambda _: total)
            errors.append(None)
        except ValueError as error:
            errors.append(str(error))
    return errors


VALUE = torch.tensor([1.0, -2.0])


@pytest.mark.parametrize(
    "other",
    [
        VALUE.nextafter(torch.tensor(2.0)),
        VALUE.double(),
        VALUE[:, None],
        VALUE.flip(0),
        VALUE.bfloat16(),
        VALUE.view(torch.int32),
        "a",
    ],
)
@pytest.mark.parametrize("n", [2, 3, 300])
def test_one_among_many_that_differs_is_noticed_by_all(other: Any, n: int) -> None:
    shares = [{"a": [VALUE], "b": [("x", 1)]}] * (n - 1) + [{"a": [other], "b": [("x", 1)]}]
    for error in together(*shares):
        assert error is not None
        assert error.startswith(f"the {n} processes differ in a, so they")
    assert together(*shares[:-1]) == [None] * (n - 1)


def test_differences_that_cancel_in_the_sum_are_noticed() -> None:
    """Half of the processes have one value, half another: no process is the odd one out."""
    a, b = {"a": [0.0], "b": [1.0]}, {"a": [1.0], "b": [0.0]}
    for error in together(a, a, b, b):
        assert error is not None
        assert "differ in a and b" in error


def test_what_is_compared_is_a_checksum_of_24_bits_sent_from_the_device() -> None:
    sent: list[Tensor] = []
    checksum = zlib.crc32(b"('a', 1)2.0") >> 8

    def reduce(x: Tensor) -> Tensor:
        sent.append(x)
        return torch.tensor([1, checksum, checksum**2])

    check_alike({"x": [("a", 1), 2.0]}, CPU, reduce)
    assert sent[0].tolist() == [1, checksum, checksum**2]
    check_alike({"x": [("a", 1), 2.0]}, torch.device("meta"), reduce)
    assert sent[1].device.type == "meta"


def test_copies_are_alike() -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x.T.contiguous().T.requires_grad_()
    assert together({"x": [x, torch.ones(())]}, {"x": [y, torch.ones(())]}) == [None, None]


# What is refused


def test_a_group_without_reduce_is_refused_at_every_entrance(found: Found) -> None:
    for share in found("checks", 2, "without_reduce"):
        assert len(share) == 10
        for entrance, error in share.items():
            assert error.startswith("ValueError: this is one of 2 processes, and grad"), entrance
            assert "reduce=pinnlib.distributed.sum_over_processes), or reduce=pinn" in error


def test_rules_of_random_signs_and_recording_are_refused_with_reduce(found: Found) -> None:
    for share in found("checks", 2, "not_with_reduce"):
        assert share["KernelTrace"].startswith("ValueError: the rule draws random signs, which")
        assert "as KernelTrace does" in share["KernelTrace"]
        assert share["Recorded"].startswith("ValueError: reduce talks to other processes, which")
        assert "Recorded" in share["Recorded"]
        assert share["Recorded, alone"] == "no error"


def test_processes_alone_train_as_if_there_were_no_other(found: Found) -> None:
    shares = found("checks", 2, "train_alone")
    for rank, share in enumerate(shares):
        expected = ranks.train_alone(rank, 1, reduce=None)
        assert torch.equal(share["weights"], expected["weights"])
        assert torch.equal(share["parameters"], expected["parameters"])
    assert not torch.equal(shares[0]["weights"], shares[1]["weights"])


@pytest.mark.parametrize("world", [1, 2])
def test_sharded_parameters_are_refused_in_every_way_of_passing_them(
    found: Found, world: int
) -> None:
    for share in found("sharded", world):
        assert len(share) == 3 * 12
        for way, error in share.items():
            words = "not those that this Step was made for" if "made before" in way else "sharded ("
            assert error.startswith("ValueError"), f"{way}: {error}"
            assert words in error, f"{way}: {error}"


def test_a_flat_parameter_is_refused() -> None:
    """FSDP's first version, which runs on accelerators only."""
    flat = nn.Parameter(torch.ones(3))
    flat._is_flat_param = True  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"parameter \(3,\) is sharded \(FSDP"):
        Step(lambda _: {}, [flat], {"a": 1.0})


def test_a_sum_without_a_group_says_what_to_do() -> None:
    w = torch.ones(2, requires_grad=True)
    step = Step(lambda _: {"a": w.sum()}, [w], {"a": 1.0}, reduce=sum_over_processes)
    with pytest.raises(RuntimeError, match=r"no process group: call torch\.distributed"):
        step({})
    assert w.grad is None


def test_threads_that_add_up_in_a_reduce_of_their_own() -> None:
    table: list[Any] = [None, None]
    barrier = threading.Barrier(2)
    model = ranks.network(ranks.PROBLEM.domain)
    batch = ranks.union(ranks.Case(), 0)

    def measure(points: dict[str, Tensor], reduce: Any = None) -> tuple[Tensor, Tensor]:
        balancer = GradientBalancer.simplified()
        step = Step(
            lambda b: ranks.PROBLEM.term_residuals(model, b), model, balancer, reduce=reduce
        )
        measured = step.measure(points)
        return measured.weights, measured.direction

    def work(rank: int) -> tuple[Tensor, Tensor]:
        def add(x: Tensor) -> Tensor:
            table[rank] = x
            barrier.wait(timeout=30)
            total = table[0] + table[1]
            barrier.wait(timeout=30)
            return total

        return measure(ranks.share(batch, "uneven", rank, 2), add)

    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(work, range(2)):
            torch.testing.assert_close(found, measure(batch), **EXACT)


def test_alone_is_the_identity() -> None:
    x = torch.randn(3)
    assert alone(x) is x


# Processes that stop


@pytest.mark.parametrize(("part", "code"), [("killed", -9), ("left", 0)])
def test_a_process_that_stops_ends_the_others(
    codes: dict[str, list[Any]], part: str, code: int
) -> None:
    world = 3 if part == "killed" else 2
    assert codes[f"{part}{world}"] == [0] * (world - 1) + [code]
    for rank in range(world - 1):
        found = torch.load(codes["folder"][0] / f"{part}{world}-{rank}.pt")
        message = f"RuntimeError: process {rank} waits in vain for another one, which has stopped"
        assert found["message"].startswith(message)
        assert found["seconds"] < 20


def test_one_process_in_a_group_is_no_danger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for size, is_refused in [(1, False), (2, True)]:
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda size=size: size)
        check_processes(alone)
        with pytest.raises(ValueError, match="one of 2") if is_refused else nullcontext():
            check_processes(None)
