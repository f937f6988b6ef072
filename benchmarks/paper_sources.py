"""What others have measured on the problems of the paper, for :mod:`benchmarks.paper` to hand on.

Relative errors at the end of training, by source, problem with layers × units, and model: the mean
and, where it was given, the standard deviation over ten runs. M1 is the plain PINN, M2 has annealed
weights, M3 gates, M4 both.
"""

Table = dict[str, dict[str, list[float]]]

JOURNAL: Table = {  # Wang, Teng, Perdikaris 2021, tables 3 and 5; a single run of Klein–Gordon
    "Helmholtz 3×30": {
        "M1": [4.36e-1, 1.57e-1],
        "M2": [4.31e-2, 1.68e-2],
        "M3": [4.03e-2, 1.06e-2],
        "M4": [5.85e-3, 1.10e-3],
    },
    "Helmholtz 3×50": {
        "M1": [1.94e-1, 3.91e-2],
        "M2": [1.44e-2, 6.37e-3],
        "M3": [2.12e-2, 4.32e-3],
        "M4": [3.30e-3, 4.29e-4],
    },
    "Helmholtz 3×100": {
        "M1": [8.51e-2, 2.55e-2],
        "M2": [4.41e-3, 1.54e-3],
        "M3": [1.34e-2, 1.13e-3],
        "M4": [1.67e-3, 3.50e-4],
    },
    "Helmholtz 5×30": {
        "M1": [4.19e-1, 2.82e-1],
        "M2": [1.47e-2, 3.31e-3],
        "M3": [3.22e-2, 9.74e-3],
        "M4": [4.05e-3, 1.11e-3],
    },
    "Helmholtz 5×50": {
        "M1": [2.02e-1, 5.69e-2],
        "M2": [6.33e-3, 1.03e-3],
        "M3": [1.70e-2, 4.20e-3],
        "M4": [1.95e-3, 3.00e-4],
    },
    "Helmholtz 5×100": {
        "M1": [1.31e-1, 6.17e-2],
        "M2": [4.00e-3, 1.22e-3],
        "M3": [1.01e-2, 1.31e-3],
        "M4": [1.29e-3, 1.79e-4],
    },
    "Helmholtz 7×30": {
        "M1": [3.41e-1, 1.17e-1],
        "M2": [1.59e-2, 3.54e-3],
        "M3": [2.57e-2, 3.73e-3],
        "M4": [3.62e-3, 4.31e-4],
    },
    "Helmholtz 7×50": {
        "M1": [1.97e-1, 4.81e-2],
        "M2": [6.44e-3, 1.12e-3],
        "M3": [1.69e-2, 3.37e-3],
        "M4": [2.03e-3, 3.14e-4],
    },
    "Helmholtz 7×100": {
        "M1": [6.98e-2, 3.55e-2],
        "M2": [4.40e-3, 9.39e-4],
        "M3": [1.12e-2, 1.25e-3],
        "M4": [2.10e-3, 3.23e-4],
    },
    "Klein–Gordon 5×50": {"M1": [1.79e-1], "M2": [1.06e-2], "M3": [1.97e-2], "M4": [2.81e-3]},
}

PREPRINT: Table = {  # the same authors, 2020, table 2: the same runs would give the same numbers
    "Helmholtz 3×50": {"M1": [1.06e-1], "M2": [1.12e-2], "M3": [2.46e-2], "M4": [3.87e-3]},
    "Helmholtz 5×50": {"M1": [1.40e-1], "M2": [7.43e-3], "M3": [1.97e-2], "M4": [2.54e-3]},
    "Helmholtz 5×100": {"M1": [1.15e-1], "M2": [5.37e-3], "M3": [1.08e-2], "M4": [1.63e-3]},
    "Helmholtz 7×100": {"M1": [8.14e-2], "M2": [4.52e-3], "M3": [9.36e-3], "M4": [1.49e-3]},
}

DCGD: Table = {  # Hwang, Lim 2024, table 1: ten runs, the best error on the way, rates searched
    "Helmholtz 3×50": {"M1": [6.09e-2, 2.31e-2], "M2": [6.6e-3, 2.5e-3]},
    "Klein–Gordon 3×50": {"M1": [7.92e-2], "M2": [6.9e-3, 3.7e-3]},
}

IPINN: Table = {  # result files of improved PINNs (I-PINN): a single run, 40 000 steps
    "Helmholtz 5×50": {"M1": [1.01e-1], "M3": [1.15e-2]},
    "Klein–Gordon 5×50": {"M1": [1.42e-1], "M3": [3.95e-2]},
}

RBA: Table = {  # notebook of residual-based attention, 2024: one run, at the end L-BFGS
    "Helmholtz 6×128": {"M1": [2.6e-2]},
}

PUBLISHED = {"journal": JOURNAL, "preprint": PREPRINT, "DCGD": DCGD, "I-PINN": IPINN, "RBA": RBA}
