"""What a step of each rule of the study costs: ``python -m benchmarks.costs``.

One network on Klein–Gordon, eager, all rules in turns, in seconds of this process, so that others
do not disturb; ratios to a step with constant weights go into ``pinnlib/results/study.json``.
"""

from __future__ import annotations

import time

import torch

from benchmarks import report, rivals, study
from benchmarks.timing import Run, interleave, spread
from pinnlib.loop import adam, default_network
from pinnlib.step import Step

ROUNDS, SECONDS = 11, 0.5
PLAIN = "1"


def trainer(setting: str, make: rivals.Make) -> Run:
    problem = rivals.PROBLEMS["Klein–Gordon"]()
    if setting in rivals.ATTENTION:
        problem = study.Attentive(problem)
    generator = torch.Generator().manual_seed(0)
    model = default_network(problem, generator)
    optimizer = adam(model.parameters())
    step = Step(lambda batch: problem.term_residuals(model, batch), model, make(problem))

    def run(steps: int) -> float:
        start = time.process_time()
        for _ in range(steps):
            optimizer.zero_grad()
            step(problem.sample(study.POINTS, generator))
            optimizer.step()
        return time.process_time() - start

    return run


def main() -> None:
    makers = {name: make for group in rivals.GROUPS.values() for name, make in group.items()}
    times = interleave({s: trainer(s, make) for s, make in makers.items()}, ROUNDS, SECONDS)
    found = study.results()
    found["costs"] = {name: spread(t / times[PLAIN]) for name, t in times.items()}
    study.RESULTS.write_text(report.compact(found))
    print(found["costs"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
