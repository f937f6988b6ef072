"""Random points in a box and on its faces, on the device of the generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral

import torch
from torch import Tensor

Domain = Sequence[tuple[float, float]]
"""One ``(low, high)`` pair for each input."""


def uniform(domain: Domain, n: int, generator: torch.Generator) -> Tensor:
    """Draw points uniformly from the domain.

    Args:
        domain: one ``(low, high)`` pair for each input.
        n: number of points.
        generator: source of the points; they are on its device, in the default dtype.

    Returns:
        ``(n, d)``.

    Raises:
        TypeError: if there is no generator: the global random state is not touched.
        ValueError: if ``n`` is not a whole number, 1 or more.

    >>> x = uniform([(0, 1), (-2, 2)], 128, torch.Generator().manual_seed(0))
    >>> x.shape, x.amax(dim=0).round().tolist()
    (torch.Size([128, 2]), [1.0, 2.0])
    """
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator is {generator!r}: pass torch.Generator().manual_seed(0)")
    if not isinstance(n, Integral) or n < 1:
        raise ValueError(f"n is {n!r}: use a whole number of points, 1 or more")
    x = torch.rand(n, len(domain), generator=generator, device=generator.device)
    # Scaled by numbers of Python: a tensor of bounds would be copied to the device at every step.
    for (low, high), column in zip(domain, x.unbind(-1), strict=True):
        column.mul_(high - low).add_(low)
    return x


def faces(
    domain: Domain, n: int, generator: torch.Generator, faces: Sequence[tuple[int, float]]
) -> Tensor:
    """Draw points uniformly on faces of the domain, shared out evenly over them in turn.

    Args:
        domain: one ``(low, high)`` pair for each input.
        n: number of points on all faces together.
        generator: source of the points; they are on its device, in the default dtype.
        faces: each as (column, its value there).

    Returns:
        ``(n, d)``.

    Raises:
        TypeError: as :func:`uniform`.
        ValueError: as :func:`uniform`, if a face does not touch the domain, or has no point.

    >>> faces([(0, 1), (0, 1)], 4, torch.Generator().manual_seed(0), [(0, 0.0), (0, 1.0)])[:, 0]
    tensor([0., 1., 0., 1.])
    """
    if not faces:
        raise ValueError("faces is empty: pass (column, value) pairs, such as (0, 0.0)")
    for column, value in faces:
        if column not in range(len(domain)) or not domain[column][0] <= value <= domain[column][1]:
            raise ValueError(
                f"face ({column}, {value}) does not touch the domain {list(domain)}: pass a column "
                "and its value there"
            )
    x = uniform(domain, n, generator)
    if n < len(faces):
        raise ValueError(f"n is {n}: use {len(faces)} points or more, one for each face")
    for i, (column, value) in enumerate(faces):
        x[i :: len(faces), column] = value
    return x


def in_time(
    domain: Domain, n: int | Mapping[str, int], generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw points for x and t: ``boundary`` at both ends of x, ``initial`` at the first t, ``pde``.

    Args:
        domain: the intervals of x and of t.
        n: points in each set, or how many in which set, by name.
        generator: source of the points.

    Raises:
        TypeError: as :func:`uniform`.
        ValueError: as :func:`faces` and :func:`sizes`.

    >>> points = in_time([(0, 1), (0, 2)], 2, torch.Generator().manual_seed(0))
    >>> points["boundary"][:, 0].tolist(), points["initial"][:, 1].tolist()
    ([0.0, 1.0], [0.0, 0.0])
    """
    size = sizes(n, ("boundary", "initial", "pde"))
    (left, right), (start, _) = domain
    return {
        "boundary": faces(domain, size["boundary"], generator, [(0, left), (0, right)]),
        "initial": faces(domain, size["initial"], generator, [(1, start)]),
        "pde": uniform(domain, size["pde"], generator),
    }


def sizes(n: int | Mapping[str, int], sets: Sequence[str]) -> dict[str, int]:
    """How many points each set gets, by name.

    Args:
        n: for each set, or one number for all of them.
        sets: names of the sets of points.

    Raises:
        ValueError: if ``n`` does not name exactly these sets.

    >>> sizes(128, ["boundary", "pde"])
    {'boundary': 128, 'pde': 128}
    >>> sizes({"pde": 1024, "boundary": 128}, ["boundary", "pde"])
    {'boundary': 128, 'pde': 1024}
    """
    if not isinstance(n, Mapping):
        return dict.fromkeys(sets, n)
    if set(n) != set(sets):
        raise ValueError(f"n names the sets {sorted(n)}: pass exactly {sorted(sets)}, or a number")
    return {name: n[name] for name in sets}
