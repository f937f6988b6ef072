"""The lid-driven cavity by finite differences: ``python -m benchmarks.cavity_reference``.

The stream function ψ, with u = ψ_y and v = -ψ_x, obeys one equation, free of the pressure,

    Δ²ψ = Re (ψ_y Δψ_x - ψ_x Δψ_y),

with ψ = 0 on the boundary, ψ_y = 1 on the lid, and no slope across the other walls. Differences
of second order and Newton's method solve it; Richardson's extrapolation over several grids adds
digits. The command writes ``pinnlib/results/cavity.npy``, u and v at Re = 100 at 100 × 100 points,
and says how far its centre lines are from published ones, which stand in ``cavity.json`` beside it.
It takes a minute of one core.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.sparse import csr_array, diags_array, eye_array, kron
from scipy.sparse.linalg import spsolve

from benchmarks import report

PUBLISHED = report.SHIPPED / "cavity.json"
TABLE = report.SHIPPED / "cavity.npy"
CELLS = (99, 198, 297)
"""Grids of the table, which all have its 100 × 100 points."""

Values = NDArray[np.float64]


def differences(n: int) -> Iterator[csr_array]:
    """First to fourth derivative of n - 1 values between two walls, where value and slope vanish.

    Beyond a wall stands the mirror image of what is before it.
    """
    h, m = 1 / n, n - 1
    mirrored = np.zeros(m)
    mirrored[[0, -1]] = -1.0, 1.0

    def band(*coefficients: float) -> csr_array:
        reach = len(coefficients) // 2
        return diags_array(coefficients, offsets=range(-reach, reach + 1), shape=(m, m)).tocsr()

    yield band(-0.5, 0.0, 0.5) / h
    yield band(1.0, -2.0, 1.0) / h**2
    yield (band(-0.5, 1.0, 0.0, -1.0, 0.5) + diags_array(mirrored / 2)) / h**3
    yield (band(1.0, -4.0, 6.0, -4.0, 1.0) + diags_array(abs(mirrored))) / h**4


def solve(n: int, reynolds: float, tolerance: float = 1e-6) -> Values:
    """Stream function at the (n - 1)² inner points of n × n cells, the first index that of x.

    Newton's method from rest. It ends when ψ moves by less than ``tolerance``; the error is then
    about its square.

    Raises:
        RuntimeError: if it does not end within 20 steps.
    """
    d1, d2, d3, d4 = differences(n)
    unit = eye_array(n - 1)
    dx, dy = kron(d1, unit), kron(unit, d1)
    laplacian_x = kron(d3, unit) + kron(d1, d2)
    laplacian_y = kron(unit, d3) + kron(d2, d1)
    bilaplacian = kron(d4, unit) + 2 * kron(d2, d2) + kron(unit, d4)
    lid = np.zeros((n - 1, n - 1))
    lid[:, -1] = 2 / n  # above the lid ψ is larger by 2h than its mirror image
    lid = lid.ravel()
    psi = np.zeros(lid.shape)
    for _ in range(20):
        u, minus_v = dy @ psi, dx @ psi
        a, b = laplacian_x @ psi, laplacian_y @ psi + lid * n**3 / 2
        residual = bilaplacian @ psi + lid * n**4 - reynolds * (u * a - minus_v * b)
        moved = [(a, dy), (u, laplacian_x), (-b, dx), (-minus_v, laplacian_y)]
        jacobian = bilaplacian - reynolds * sum(diags_array(c) @ d for c, d in moved)
        step = spsolve(jacobian.tocsc(), -residual, permc_spec="MMD_AT_PLUS_A")
        psi = psi + step
        if abs(step).max() < tolerance:
            return psi.reshape(n - 1, n - 1)
    raise RuntimeError(f"no flow found at Re = {reynolds} on {n} cells: start from a smaller Re")


def velocity(psi: Values) -> Values:
    """u and v at all (n + 1)² points, the walls included, ``(n + 1, n + 1, 2)``.

    At the two ends of the lid u is 1/2, the mean of its two limits.
    """
    n = len(psi) + 1
    padded, velocities = np.pad(psi, 1), np.zeros((n + 1, n + 1, 2))
    velocities[:, 1:-1, 0] = (padded[:, 2:] - padded[:, :-2]) * n / 2
    velocities[1:-1, :, 1] = -(padded[2:] - padded[:-2]) * n / 2
    velocities[:, -1, 0] = 1
    velocities[[0, -1], -1, 0] = 0.5
    return velocities


def extrapolate(cells: Sequence[int], values: Sequence[Values]) -> Values:
    """Richardson's extrapolation of values that err by c₁h² + c₂h⁴ + … on grids with h = 1/n."""
    powers = [[float(n) ** (-2 * k) for k in range(len(cells))] for n in cells]
    weights = np.linalg.inv(powers)[0]
    return np.tensordot(weights, np.stack(values), axes=1)


def centre_lines(velocities: Values) -> tuple[CubicSpline, CubicSpline]:
    """u(½, y) and v(x, ½), as functions."""
    places = np.linspace(0, 1, len(velocities))
    across = CubicSpline(places, velocities, axis=0)(0.5)[:, 0]
    along = CubicSpline(places, velocities, axis=1)(0.5)[:, 1]
    return CubicSpline(places, across), CubicSpline(places, along)


def distances(reynolds: int, velocities: Values) -> dict[str, list[float]]:
    """Largest differences of the centre lines, u's and v's, to each published table, by its key.

    Tables give places to few digits, but mean points of a grid of 128 cells.
    """
    u, v = centre_lines(velocities)
    found = {}
    for key, tables in json.loads(PUBLISHED.read_text()).items():
        if table := tables.get(str(reynolds)):
            y, x = (np.round(128 * np.array(table[axis])) / 128 for axis in "yx")
            far = (abs(u(y) - table["u"]).max(), abs(v(x) - table["v"]).max())
            found[key] = [float(f"{distance:.2e}") for distance in far]
    return found


def main() -> None:
    for reynolds in (100, 400):
        found = []
        for n in CELLS:
            start = time.process_time()
            velocities = velocity(solve(n, reynolds))
            found.append(velocities[:: n // CELLS[0], :: n // CELLS[0]])
            seconds = time.process_time() - start
            print(f"Re {reynolds}, {n} cells: {distances(reynolds, velocities)}, {seconds:.1f} s")
        table = extrapolate(CELLS, found)
        print(f"Re {reynolds}, extrapolated: {distances(reynolds, table)}", flush=True)
        if reynolds == 100:
            np.save(TABLE, table.astype(np.float32))


if __name__ == "__main__":
    main()
