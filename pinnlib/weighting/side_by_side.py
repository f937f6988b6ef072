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
        self.balancers = dict(enumerate(balancers))
        if not self.balancers or share < 1:
            raise ValueError(
                f"{len(self.balancers)} balancers with {share} networks each: pass one or more"
            )
        self.owner = torch.arange(len(self.balancers)).repeat_interleave(share)[:, None]

    def start(self, terms: Sequence[str], weights: Tensor) -> State:
        for balancer in self.balancers.values():
            if balancer.terms != tuple(terms):
                raise ValueError(f"a balancer of {balancer.terms} beside {list(terms)}: pass alike")
        states = {i: b.rule.start(terms, weights) for i, b in self.balancers.items()}
        inner = {f"{i} {name}": x for i, state in states.items() for name, x in state.items()}
        return {"step": torch.zeros((), dtype=torch.int64, device=weights.device)} | inner

    def __call__(self, seen: Seen, state: State) -> tuple[Tensor, State]:
        if seen.weights.shape[:-1] != self.owner.shape[:1]:
            raise ValueError(
                f"the stack is {tuple(seen.weights.shape[:-1])}, and the shares add up to "
                f"{len(self.owner)}: train as many networks"
            )
        weights, after = seen.weights, state | {"step": state["step"] + 1}
        owner = self.owner.to(weights.device)
        may_skip = weights.device.type == "cpu" and not seen.is_recorded
        for i, balancer in self.balancers.items():
            due = state["step"] % balancer.every == 0
            if may_skip and not due:
                continue
            mine = f"{i} "
            own = {k.removeprefix(mine): x for k, x in state.items() if k.startswith(mine)}
            new, new_own = balancer.rule(seen, own)
            weights = torch.where(due & (owner == i), new, weights)
            after |= {mine + k: torch.where(due, x, own[k]) for k, x in new_own.items()}
        return weights, after
