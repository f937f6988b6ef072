"""What a step of each rule of the study costs: ``python -m benchmarks.costs``.

One network on Klein–Gordon, eager, all rules in turns; ratios to a step with constant weights go
into ``pinnlib/results/study.json``.
"""

from __future__ import annotations

import torch

from benchmarks import report, rivals, study
from benchmarks.timing import Run, interleave, spread, stepper
from pinnlib.loop import adam
from pinnlib.step import Step

ROUNDS, SECONDS = 15, 0.6
PLAIN = "1"


def trainer(setting: str, make: rivals.Make) -> Run:
    problem = rivals.PROBLEMS["Klein–Gordon"]()
    if setting in rivals.ATTENTION:
        problem = study.Attentive(problem)
    generator = torch.Generator().manual_seed(0)
    model = rivals.network(problem, generator)
    optimizer = adam(model.parameters())
    step = Step(lambda batch: problem.term_residuals(model, batch), model, make(problem))

    def take() -> None:
        optimizer.zero_grad()
        step(problem.sample(study.POINTS, generator))
        optimizer.step()

    return stepper(take)


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
