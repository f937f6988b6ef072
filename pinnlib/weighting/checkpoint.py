"""What a saved state must be, before anything is taken from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pinnlib.weighting.rule import Rule, State


def checked(
    saved: Mapping[str, Any], terms: Sequence[str], rule: Rule, like: Tensor
) -> tuple[Tensor, State, int]:
    """Weights, state of the rule and step of a saved state, as copies where ``like`` lives.

    Raises:
        ValueError: if a part is missing, belongs to other terms or another rule, or is no number.
    """
    parts = set(saved) if isinstance(saved, Mapping) else set()
    if missing := {"terms", "weights", "state", "step"} - parts:
        raise ValueError(f"the saved state lacks {sorted(missing)}: pass a whole state_dict()")
    if saved["terms"] != list(terms):
        raise ValueError(
            f"the saved terms are {saved['terms']}, but this balancer has {list(terms)}: "
            "load the state of the same problem"
        )
    weights, state, step = saved["weights"], saved["state"], saved["step"]
    if not (
        isinstance(weights, Tensor)
        and weights.is_floating_point()
        and weights.ndim > 0
        and weights.shape[-1] == len(terms)
        and weights.isfinite().all()
    ):
        raise ValueError(
            f"the saved weights are {weights!r}: a finite one is needed for each of {list(terms)}"
        )
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(f"the saved step is {step!r}: it must be a whole number, 0 or more")
    weights = weights.detach().to(like.device, like.dtype, copy=True)
    fresh = rule.start(terms, weights)
    if not isinstance(state, Mapping) or _kinds(state) != _kinds(fresh):
        raise ValueError(
            f"the saved state of the rule is {state}, but {rule} needs {fresh}: load the state of "
            "the same rule"
        )
    # Floats in the precision of this device, which may differ from the one that saved them.
    copies = {n: state[n].detach().to(x.device, x.dtype, copy=True) for n, x in fresh.items()}
    return weights, copies, step


def _kinds(state: Mapping[str, Any]) -> dict[str, object]:
    """By name, the shape of each tensor and whether it holds floats."""
    return {
        name: (x.shape, x.is_floating_point()) if isinstance(x, Tensor) else type(x)
        for name, x in state.items()
    }
