"""One training step on a GPU: ``python -m benchmarks.gpu``, at most eight minutes.

First the numbers: a hundred balanced steps on the device and on the CPU, from the same networks
and points, as many with every rule, and ten of each second-order optimizer. Then the times of a
plain and a balanced step in turns, run eagerly, compiled, and as a replayed CUDA graph, for M
networks with N points a set each. Results go to ``gpu.json`` and ``gpu.md`` beside this file.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks import gpu_rules, report
from pinnlib import GradientBalancer, Step
from pinnlib.distributed import Sum, sum_over_processes
from pinnlib.networks import MLP
from pinnlib.problems import Helmholtz
from pinnlib.recording import Recorded
from pinnlib.step import Weights, eager

RESULTS = Path(__file__).with_name("gpu.json")
POINTS = (1_000, 10_000, 100_000, 1_000_000)
NETWORKS = (1, 16, 256)
MOST = 1_000_000
"""Points of all networks together."""
PLAIN: dict[str, float | torch.Tensor] = {"data": 1.0, "pde": 1.0}
WAYS: dict[str, gpu_rules.Run] = {
    "eager": eager,
    "compiled": Recorded,
    "CUDA graph": partial(Recorded, mode="reduce-overhead"),
}


def training(
    m: int,
    n: int,
    balancer: Weights,
    run: gpu_rules.Run,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    reduce: Sum | None = None,
) -> tuple[Callable[[], None], Step]:
    """A training step of M networks with N points a set, on the same points at each call."""
    problem = Helmholtz()
    generators = [torch.Generator().manual_seed(seed) for seed in range(m)]
    networks = [MLP(problem.domain, 50, 3, generator=g).to(dtype) for g in generators]
    drawn = [problem.sample(n, g) for g in generators]
    batch = {
        name: torch.stack([points[name] for points in drawn]).to(device, dtype) for name in drawn[0]
    }
    return gpu_rules.training(networks, batch, balancer, run, reduce)


def parity(device: torch.device, steps: int = 100) -> dict[str, Any]:
    """Greatest relative difference of weights and parameters between the device and the CPU."""
    found = {}
    backend = "NCCL" if device.type == "cuda" else "gloo"
    for dtype in (torch.float64, torch.float32):
        if device.type == "mps" and dtype == torch.float64:
            continue
        there = after(steps, torch.device("cpu"), dtype, eager)
        for way, run, group in (
            *((way, run, None) for way, run in possible(device).items()),
            (f"one process of {backend}", eager, backend),
        ):
            here = after(steps, device, dtype, run, group)
            found[f"{way}, {str(dtype).removeprefix('torch.')}"] = gpu_rules.differences(
                here, there
            )
    return found


def after(
    steps: int,
    device: torch.device,
    dtype: torch.dtype,
    run: gpu_rules.Run,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and parameters at the end of a short training, in a process group if one is named."""
    if backend:
        dist.init_process_group(backend.lower(), store=dist.HashStore(), rank=0, world_size=1)
    reduce = sum_over_processes if backend else None
    take, step = training(4, 128, GradientBalancer.simplified(), run, device, dtype, reduce)
    for _ in range(steps):
        take()
    if backend:
        dist.destroy_process_group()
    return step.balancer.weights.cpu(), gpu_rules.flat(step.params)


def possible(device: torch.device) -> dict[str, gpu_rules.Run]:
    """The ways to run a step there."""
    return {way: run for way, run in WAYS.items() if device.type == "cuda" or way != "CUDA graph"}


def seconds(
    takes: dict[str, Callable[[], None]], device: torch.device, budget: float
) -> dict[str, list[float]]:
    """Times of a step of each kind, in turns; the device is waited for once in ten steps."""
    for take in takes.values():
        for _ in range(5):
            take()
    rounds: dict[str, list[float]] = {kind: [] for kind in takes}
    end, number = time.perf_counter() + budget, 0
    while number < 3 or (time.perf_counter() < end and number < 30):
        for kind, take in takes.items():
            wait(device)
            start = time.perf_counter()
            for _ in range(10):
                take()
            wait(device)
            rounds[kind].append((time.perf_counter() - start) / 10)
        number += 1
    return rounds


def wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def sizes(points: tuple[int, ...], networks: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Numbers of networks and points within the limit, the cheap ones first."""
    yield from sorted(
        ((m, n) for m in networks for n in points if m * n <= MOST), key=lambda p: p[0] * p[1]
    )


def times(
    device: torch.device,
    points: tuple[int, ...],
    networks: tuple[int, ...],
    until: float,
    budget: float = 2.0,
) -> list[dict[str, Any]]:
    """Milliseconds of a step, and balanced ÷ plain, for all sizes, while there is time left."""
    rows = []
    for m, n in sizes(points, networks):
        row: dict[str, Any] = {"networks": m, "points": n}
        for way, run in possible(device).items():
            if time.perf_counter() > until:
                print("out of time: the rest is left out")
                return rows
            weights: dict[str, Weights] = {
                "plain": PLAIN,
                "balanced": GradientBalancer.simplified(),
            }
            takes = {kind: training(m, n, w, run, device)[0] for kind, w in weights.items()}
            found = seconds(takes, device, budget)
            for kind, rounds in found.items():
                row[f"{kind}, {way}"] = float(f"{1e3 * statistics.median(rounds):.4g}")
            ratios = [b / p for p, b in zip(found["plain"], found["balanced"], strict=True)]
            row[f"ratio, {way}"] = float(f"{statistics.median(ratios):.3g}")
        print(row, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", help="another than the accelerator, such as cpu, for a trial")
    parser.add_argument("--points", type=int, nargs="+", default=POINTS)
    parser.add_argument("--networks", type=int, nargs="+", default=NETWORKS)
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    accelerator = torch.accelerator.current_accelerator()
    device = torch.device(arguments.device) if arguments.device else accelerator
    if device is None:
        raise SystemExit("there is no accelerator here: --device cpu makes a trial run")
    until = time.perf_counter() + 60 * arguments.minutes
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    results = {
        "date": datetime.date.today().isoformat(),
        "device": f"{device.type}: {name}",
        "torch": torch.__version__.partition("+")[0],
        "parity": parity(device),
        "rules": gpu_rules.parity(device, possible(device)),
    }
    print(results, flush=True)
    results["ms"] = times(device, tuple(arguments.points), tuple(arguments.networks), until)
    arguments.results.write_text(report.compact(results))
    arguments.results.with_suffix(".md").write_text(report.gpu(results))
    print(f"Done: {arguments.results}, and a table beside it")


if __name__ == "__main__":
    main()
