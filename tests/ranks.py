"""What test_distributed.py runs on several processes: python tests/ranks.py FOLDER.

One process imports everything and forks the others, which is much quicker than starting each. They
meet in a file, so that no port is taken. Each writes what it found to FOLDER.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from helpers import network, seeded
from torch import Tensor, nn

from pinnlib import AdaptivePINN, GradientBalancer, Step, balanced_backward
from pinnlib.distributed import alone, sum_over_processes
from pinnlib.networks import Stacked
from pinnlib.problems import KleinGordon
from pinnlib.recording import Recorded
from pinnlib.training import train
from pinnlib.weighting import Follow, KernelTrace, logarithmic_average

STEPS, N = 8, 12
PROBLEM = KleinGordon()  # its data term has three residuals, at two sets of points

# Trainings, each on several processes as on one


@dataclass(frozen=True)
class Case:
    """A training that several processes share."""

    balancer: Callable[[], Any] = GradientBalancer.simplified
    split: str = "uneven"
    stack: tuple[int, ...] = ()
    scale: float = 1.0
    resumes: bool = False
    wraps: bool = False


CASES = {
    "even": Case(split="even"),
    "uneven": Case(),
    "no points of a term": Case(split="no data on the first"),
    "every 5": Case(lambda: GradientBalancer.simplified(every=5)),
    "constant": Case(lambda: {"data": 1.0, "pde": 1e-3}),
    "jaxpi": Case(lambda: GradientBalancer.jaxpi(every=3)),
    "bounded": Case(
        lambda: GradientBalancer.simplified(
            alpha=0.1, average=logarithmic_average, warm_start=True, bounds=(0.1, 10)
        )
    ),
    "stack": Case(stack=(2,)),
    "tiny": Case(lambda: GradientBalancer.simplified(alpha=1.0), scale=1e-12),
    "huge": Case(lambda: GradientBalancer.simplified(alpha=1.0), scale=1e12),
    "resumed": Case(lambda: GradientBalancer.simplified(every=3, warm_start=True), resumes=True),
    "wrapped": Case(wraps=True),
}


def union(case: Case, step: int) -> dict[str, Tensor]:
    """The points of one step, of all processes together."""
    batches = [
        PROBLEM.sample(N, seeded(100 * step + i)) for i in range(torch.Size(case.stack).numel())
    ]
    batch = {name: torch.stack([b[name] for b in batches]).double() for name in batches[0]}
    return batch if case.stack else {name: x[0] for name, x in batch.items()}


def share(batch: Mapping[str, Tensor], split: str, rank: int, world: int) -> dict[str, Tensor]:
    sizes = {
        "even": [N // world] * world,
        "uneven": [1, 2, N - 3][:world] if world == 3 else [1, N - 1],
    }
    data = [0] * (world - 1) + [N] if split == "no data on the first" else sizes[split]
    points = sizes["uneven"] if split == "no data on the first" else sizes[split]
    return {
        name: x.split(points if name == "pde" else data, dim=-2)[rank] for name, x in batch.items()
    }


def run(case: Case, rank: int = 0, world: int = 1, steps: int = STEPS) -> dict[str, Any]:
    """Train, and tell losses and weights of each step, and the parameters at the end."""
    reduce = None if world == 1 else sum_over_processes

    def start() -> tuple[nn.Module, torch.optim.Optimizer, Step]:
        models = [network(PROBLEM.domain, seed=i) for i in range(torch.Size(case.stack).numel())]
        model = Stacked(models) if case.stack else models[0]
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9)
        if case.wraps and world > 1:
            model = nn.parallel.DistributedDataParallel(model)

        def terms_of(batch: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
            terms = PROBLEM.term_residuals(model, batch)
            return {"data": terms["data"], "pde": [case.scale * r for r in terms["pde"]]}

        step = Step(terms_of, model, case.balancer(), stack=case.stack, reduce=reduce)
        return model, optimizer, step

    model, optimizer, step = start()
    found = []
    for s in range(steps):
        if case.resumes and world > 1 and s == steps // 2:
            saved = [x.state_dict() for x in (model, optimizer, step.balancer)]
            model, optimizer, step = start()
            for x, state in zip((model, optimizer, step.balancer), saved, strict=True):
                x.load_state_dict(state)
        batch = union(case, s)
        optimizer.zero_grad()
        found.append(step(batch if world == 1 else share(batch, case.split, rank, world)))
        optimizer.step()
    losses, weights = map(torch.stack, zip(*found, strict=True))
    parameters = nn.utils.parameters_to_vector(model.parameters()).detach()
    return {"losses": losses, "weights": weights, "parameters": parameters}


def trainings(rank: int, world: int) -> dict[str, Any]:
    names = CASES if world == 2 else ("even", "uneven", "no points of a term", "every 5", "resumed")
    return {name: run(CASES[name], rank, world) for name in names}


# What is refused, and what is not


def small(seed: int = 0) -> tuple[nn.Linear, Tensor]:
    """A model with four parameters, and points that differ from seed to seed."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    return model, torch.rand(5, 3, generator=seeded(seed), dtype=torch.float64)


def losses_of(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    u = model(x)
    return {"data": (u - 1).square().mean(), "pde": (u - 10 * x[:, :1]).square().mean()}


def residuals_of(model: nn.Module, x: Tensor) -> dict[str, list[Tensor]]:
    u = model(x)
    return {"data": [u - 1], "pde": [u - 10 * x[:, :1]]}


def message(attempt: Callable[[], Any], model: nn.Module) -> str:
    """The error that an attempt ends with; it must have changed nothing."""
    before = [p.detach().clone() for p in model.parameters()]
    try:
        attempt()
    except Exception as error:
        assert all(map(torch.equal, before, model.parameters()))
        assert all(p.grad is None for p in model.parameters())
        return f"{type(error).__name__}: {error}"
    return "no error"


def without_reduce(rank: int, world: int) -> dict[str, str]:
    model, x = small(rank)
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    net = network(PROBLEM.domain)

    def adaptive(m: nn.Module) -> None:
        losses = losses_of(m, x)
        AdaptivePINN(m).train_step_with_balance(optimizer, losses["data"], losses["pde"])

    def stepping(m: nn.Module) -> None:
        Step(lambda _: residuals_of(m, x), m, GradientBalancer.simplified())({})

    def rows() -> None:
        Step(lambda _: residuals_of(model, x), model, GradientBalancer.simplified()).rows({})

    found = {"rows": message(rows, model)}
    for name, m in {"bare": model, "wrapped": wrapped}.items():
        attempts = {
            "balanced_backward": lambda m=m: balanced_backward(
                losses_of(m, x), m.parameters(), GradientBalancer.simplified()
            ),
            "constant": lambda m=m: balanced_backward(losses_of(m, x), m, {"data": 1, "pde": 1}),
            "AdaptivePINN": lambda m=m: adaptive(m),
            "Step": lambda m=m: stepping(m),
        }
        found |= {f"{name} {key}": message(a, model) for key, a in attempts.items()}
    found["train"] = message(
        lambda: train(PROBLEM, net, {"data": 1.0, "pde": 1.0}, steps=1, generator=seeded()), net
    )
    return found


def not_with_reduce(rank: int, world: int) -> dict[str, str]:
    model, x = small(rank)

    def step(**options: Any) -> Step:
        rule = Follow(KernelTrace())
        return Step(
            lambda _: residuals_of(model, x),
            model,
            GradientBalancer(["data", "pde"], rule),
            **options,
        )

    return {
        "KernelTrace": message(lambda: step(reduce=sum_over_processes)({}), model),
        "Recorded": message(lambda: step(reduce=sum_over_processes, run=Recorded), model),
        "Recorded, alone": message(lambda: step(reduce=alone, run=Recorded), model),
    }


def differing(rank: int, world: int) -> dict[str, str]:
    """Processes that are not alike at the start, where the last one is another than the rest."""
    is_last = rank == world - 1
    found = {}

    def attempt(
        model: nn.Module, balancer: Any, terms: Callable[[], Any], params: Any = None
    ) -> str:
        step = Step(lambda _: terms(), params or model, balancer, reduce=sum_over_processes)
        return message(lambda: step({}), model)

    model, x = small(rank)
    with torch.no_grad():
        model.bias += 1e-15 * is_last
    found["parameters"] = attempt(
        model, GradientBalancer.simplified(), lambda: residuals_of(model, x)
    )

    other, x = small(rank)
    used = GradientBalancer.simplified(alpha=0.5)
    if is_last:
        used.update(torch.tensor([[1.0], [2.0]], dtype=torch.float64))
    found["step"] = attempt(other, used, lambda: residuals_of(other, x))

    found["every"] = attempt(
        other, GradientBalancer.simplified(every=1 + is_last), lambda: residuals_of(other, x)
    )

    def more_residuals() -> dict[str, list[Tensor]]:
        terms = residuals_of(other, x)
        return terms | {"pde": terms["pde"] * (1 + is_last)}

    found["terms"] = attempt(other, GradientBalancer.simplified(), more_residuals)

    pair = nn.ModuleList([small()[0], small()[0]])

    def branched() -> dict[str, list[Tensor]]:
        a, b = (residuals_of(m, x) for m in pair)
        return {"data": b["data"], "pde": [a["pde"][0] + (0 if is_last else b["pde"][0])]}

    found["used"] = attempt(pair, GradientBalancer.simplified(), branched)
    return found


def not_finite(rank: int, world: int) -> dict[str, Any]:
    """One process has an infinite residual, or an undefined gradient; afterwards all go on."""
    found: dict[str, Any] = {}
    model, x = small(rank)
    balancer = GradientBalancer.simplified()
    factor = {"loss": 1.0, "root": 1.0}

    def terms(_: Any) -> dict[str, list[Tensor]]:
        terms = residuals_of(model, x)
        root = (terms["data"][0] * (1 - factor["root"])).abs().sqrt()  # at 0 without a derivative
        return {"data": [terms["data"][0] + root], "pde": [terms["pde"][0] * factor["loss"]]}

    step = Step(terms, model, balancer, reduce=sum_over_processes)
    factor["root"] = 0.5
    step({})
    model.zero_grad()
    weights = balancer.weights.clone()
    if rank == 0:
        factor["loss"] = torch.inf
    found["loss"] = message(lambda: step({}), model)
    factor |= {"loss": 1.0, "root": 1.0 if rank == 0 else 0.5}
    found["gradient"] = message(lambda: step({}), model)
    assert balancer.step == 1
    assert torch.equal(balancer.weights, weights)
    factor["root"] = 0.5
    step({})
    found["weights"] = balancer.weights
    return found


def losses_alone(rank: int, world: int) -> dict[str, Any]:
    """Losses without residuals; the gradient matrix by itself; what travels."""
    model, x = small(rank)
    balancer = GradientBalancer.simplified(every=2)
    step = Step(lambda _: losses_of(model, x), model, balancer, reduce=sum_over_processes)
    losses, weights = step({})
    found = {
        "losses": losses,
        "weights": weights,
        "G": step.rows({}),
        "grad": model.weight.grad.clone(),
    }

    sent: list[int] = []

    def counted(x: Tensor) -> Tensor:
        sent.append(x.numel())
        return sum_over_processes(x)

    step = Step(
        lambda _: residuals_of(model, x),
        model,
        GradientBalancer.simplified(every=2),
        reduce=counted,
    )
    found["sent"] = []
    for _ in range(3):
        step({})
        found["sent"].append(list(sent))
        sent.clear()
    return found


def other_strides(rank: int, world: int) -> dict[str, Any]:
    """The same matrix, by columns on one process and by rows on the others."""
    x = torch.arange(6.0).reshape(2, 3)
    return {"sum": sum_over_processes(x if rank else x.T.contiguous().T)}


def train_alone(rank: int, world: int, reduce: Any = alone) -> dict[str, Any]:
    """Each process its own network, points, and rule, one of which draws random signs."""
    model, x = small(rank)
    nn.init.constant_(model.bias, rank)
    rule = Follow(KernelTrace(seed=rank))
    balancers = [GradientBalancer.simplified(), GradientBalancer(["data", "pde"], rule)]
    steps = [Step(lambda _: residuals_of(model, x), model, b, reduce=reduce) for b in balancers]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in [*steps, *steps]:
        optimizer.zero_grad()
        step({})
        optimizer.step()
    weights = torch.stack([b.weights for b in balancers])
    return {"weights": weights, "parameters": nn.utils.parameters_to_vector(model.parameters())}


# Processes that stop


def die(rank: int, world: int, how: Callable[[], Any]) -> dict[str, Any]:
    model, x = small(rank)
    step = Step(
        lambda _: residuals_of(model, x),
        model,
        GradientBalancer.simplified(),
        reduce=sum_over_processes,
    )
    for _ in range(3):
        step({})
    if rank == world - 1:
        time.sleep(0.5)
        how()
    model.zero_grad()
    start = time.perf_counter()
    return {"message": message(lambda: step({}), model), "seconds": time.perf_counter() - start}


def killed(rank: int, world: int) -> dict[str, Any]:
    return die(rank, world, lambda: os.kill(os.getpid(), signal.SIGKILL))


def left(rank: int, world: int) -> dict[str, Any]:
    return die(rank, world, lambda: sys.exit(0))


# FSDP


def sharded(rank: int, world: int) -> dict[str, str]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (world,))
    found = {}

    def attempts(name: str, shards: Callable[[nn.Module], Any]) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        early = Step(
            lambda _: residuals_of(model, x), model, GradientBalancer.simplified(), reduce=alone
        )
        shards(model)
        x = torch.rand(5, 3, generator=seeded(rank))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def backward(params: Any) -> Callable[[], Any]:
            return lambda: balanced_backward(
                losses_of(model, x), params, GradientBalancer.simplified()
            )

        def stepping(params: Any, reduce: Any) -> Callable[[], Any]:
            return lambda: Step(
                lambda _: residuals_of(model, x), params, {"data": 1, "pde": 1}, reduce=reduce
            )({})

        tries: dict[str, Callable[[], Any]] = {
            "module": backward(model),
            "list": backward(model.parameters()),
            "optimizer's": backward(optimizer.param_groups[0]["params"]),
            "Step": stepping(model, sum_over_processes),
            "Step, alone": stepping(model, alone),
            "AdaptivePINN": lambda: AdaptivePINN(model),
            "beside": lambda: Step(
                lambda _: {},
                [torch.ones(1, requires_grad=True)],
                {"a": 1.0},
                beside=model.parameters(),
            ),
            "made before": lambda: early({}),
        }
        found.update({f"{name}, {key}": _error(attempt) for key, attempt in tries.items()})
        model(x)
        gathered = {
            "module, gathered": backward(model),
            "list, gathered": backward(list(model.parameters())),
            "Step, gathered": stepping(list(model.parameters()), sum_over_processes),
            "AdaptivePINN, gathered": lambda: AdaptivePINN(model),
        }
        found.update({f"{name}, {key}": _error(attempt) for key, attempt in gathered.items()})

    attempts("whole", lambda model: fully_shard(model, mesh=mesh))
    attempts("kept", lambda model: fully_shard(model, mesh=mesh, reshard_after_forward=False))
    attempts("a layer", lambda model: fully_shard(model[0], mesh=mesh))
    return found


def _error(attempt: Callable[[], Any]) -> str:
    try:
        attempt()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


# The processes


def checks(rank: int, world: int) -> dict[str, Any]:
    parts = [trainings, not_finite, losses_alone, other_strides]
    if world == 2:
        parts += [without_reduce, not_with_reduce, differing, train_alone]
    return {part.__name__: part(rank, world) for part in parts}


def work(part: Callable[[int, int], Any], rank: int, world: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/{part.__name__}{world}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=30),
    )
    torch.save(part(rank, world), folder / f"{part.__name__}{world}-{rank}.pt")
    if part not in (killed, left):
        dist.destroy_process_group()


def launch(part: Callable[[int, int], Any], world: int, folder: Path) -> Iterator[Any]:
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=work, args=(part, rank, world, folder)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        if process.is_alive():
            process.kill()
            yield "it hangs"
        else:
            yield process.exitcode


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    run(Case(), steps=1)  # what PyTorch imports at the first step is there before the fork
    parts = [(checks, 2), (checks, 3), (killed, 3), (left, 2), (sharded, 1), (sharded, 2)]
    codes = {f"{part.__name__}{n}": list(launch(part, n, folder)) for part, n in parts}
    torch.save(codes, folder / "codes.pt")


if __name__ == "__main__":
    main()
