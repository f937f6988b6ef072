"""Several balancers in one stack of networks, for comparisons that are recorded once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pinnlib.weighting.balancer import Balancer
from pinnlib.weighting.rule import Rule, Seen, State


class SideBySide(Rule):
    """Each of several balancers for its share of the networks of one stack.

    Networks 0 … share - 1 are the first balancer's, and so on. Each balancer gives its rule and its
    interval ``every``; the state is that of this rule, and theirs stays as it is. On the CPU, a
    balancer that is not due looks at nothing; elsewhere, and compiled, each looks at every step.

    Args:
        balancers: balancers of the same terms.
        share: networks of each, one or more.

    Raises:
        ValueError: if there is no balancer, or if the share is below 1; by the balancer, if terms
            are others; by a step, if the stack has another number of networks.

    >>> pair = [Balancer(["data", "pde"], {"data": w, "pde": 1.0}) for w in (1.0, 10.0)]
    >>> balancer = Balancer(["data", "pde"], SideBySide(pair, share=2))
    >>> balancer.update(torch.ones(4, 2, 3))[:, 0].tolist()
    [1.0, 1.0, 10.0, 10.0]
    """

    def __init__(self, balancers: Iterable[Balancer], share: int) -> None:
        self.balancers = tuple(balancers)
        if not self.balancers or share < 1:
            raise ValueError(
                f"{len(self.balancers)} balancers with {share} networks each: pass one or more"
            )
        self.networks = share * len(self.balancers)
        self.parts = [slice(first, first + share) for first in range(0, self.networks, share)]

    def _check(self, weights: Tensor) -> None:
        if weights.shape[:-1] != (self.networks,):
            raise ValueError(
                f"the stack is {tuple(weights.shape[:-1])}, and the shares add up to "
                f"{self.networks}: train as many networks"
            )

    def start(self, terms: Sequence[str], weights: Tensor) -> State:
        for balancer in self.balancers:
            if balancer.terms != tuple(terms):
                raise ValueError(f"a balancer of {balancer.terms} beside {list(terms)}: pass alike")
        state = {"step": torch.zeros((), dtype=torch.int64, device=weights.device)}
        if weights.ndim == 1:  # there is no stack yet
            weights = weights.expand(self.networks, -1)
        self._check(weights)
        for i, (balancer, mine) in enumerate(zip(self.balancers, self.parts, strict=True)):
            own = balancer.rule.start(terms, weights[mine])
            state |= {f"{i} {name}": x for name, x in own.items()}
        return state

    def __call__(self, seen: Seen, state: State) -> tuple[Tensor, State]:
        weights, after = [], state | {"step": state["step"] + 1}
        may_skip = seen.weights.device.type == "cpu" and not seen.is_recorded
        self._check(seen.weights)
        for i, (balancer, mine) in enumerate(zip(self.balancers, self.parts, strict=True)):
            part, prefix = seen.part(mine), f"{i} "
            due = state["step"] % balancer.every == 0
            weights.append(part.weights)
            if may_skip and not due:
                continue
            own = {k.removeprefix(prefix): x for k, x in state.items() if k.startswith(prefix)}
            new, new_own = balancer.rule(part, own)
            weights[-1] = torch.where(due, new, part.weights)
            after |= {prefix + k: torch.where(due, x, own[k]) for k, x in new_own.items()}
        return torch.cat(weights), after
