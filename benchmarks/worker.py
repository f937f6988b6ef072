"""Each contestant lives in a process of its own; the driver tells them in turn to take some steps."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.task import Task

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
    "DDE_BACKEND": "pytorch",
    "DDE_DISABLE_TELEMETRY": "1",
    "KMP_WARNINGS": "0",
}


class Worker:
    """A contestant in another process. ``ask("method", …)`` runs a method there."""

    def __init__(self, path: str, task: Task | None, **options: Any) -> None:
        os.environ.update(ENVIRONMENT)
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(other, path, task, options), daemon=True
        )
        self.process.start()
        other.close()

    def ask(self, method: str, *args: Any) -> Any:
        self.tell(method, *args)
        return self.answer()

    def tell(self, method: str, *args: Any) -> None:
        self.connection.send((method, args))

    def answer(self) -> Any:
        result, error = self.connection.recv()
        if error:
            raise RuntimeError(error)
        return result

    def close(self) -> None:
        self.connection.close()
        self.process.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(connection: Connection, path: str, task: Task | None, options: dict[str, Any]) -> None:
    if hasattr(os, "sched_setaffinity"):  # one core, the same for all: they run in turn
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (libraries talk a lot)
    module, _, name = path.rpartition(".")
    contestant = None
    with contextlib.suppress(EOFError):
        while True:
            method, args = connection.recv()
            try:
                if contestant is None:
                    contestant = getattr(importlib.import_module(module), name)(task, **options)
                connection.send((getattr(contestant, method)(*args), None))
            except Exception:
                connection.send((None, traceback.format_exc()))
