"""Each contestant lives in a process of its own, and does what the driver asks, in turn."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.contestants import Entry
from benchmarks.task import Task

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
    "DDE_BACKEND": "pytorch",
}


class Worker:
    """A contestant in another process, with one core; ``ask`` runs one of its methods there."""

    def __init__(self, entry: Entry, task: Task) -> None:
        os.environ.update(ENVIRONMENT)
        # A fresh interpreter, with no library loaded that the contestant does not load itself.
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, entry, task), daemon=True)
        self.process.start()
        other.close()

    def ask(self, method: str, *args: Any) -> Any:
        self.connection.send((method, args))
        result, error = self.connection.recv()
        if error:
            raise RuntimeError(error)
        return result

    def close(self) -> None:
        self.connection.close()
        self.process.join()


@contextlib.contextmanager
def workers(entries: dict[str, Entry], task: Task) -> Iterator[dict[str, Worker]]:
    """One worker for each entry, ended together."""
    started = {name: Worker(entry, task) for name, entry in entries.items()}
    try:
        yield started
    finally:
        for worker in started.values():
            worker.close()


def _serve(connection: Connection, entry: Entry, task: Task) -> None:
    if hasattr(os, "sched_setaffinity"):  # the same core for all: they run in turn
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    silent = os.open(os.devnull, os.O_WRONLY)  # libraries talk a lot, some of them in C++
    os.dup2(silent, 1), os.dup2(silent, 2)
    module, _, name = entry.path.rpartition(".")
    contestant = None
    with contextlib.suppress(EOFError):
        while True:
            method, args = connection.recv()
            try:
                if contestant is None:
                    make = getattr(importlib.import_module(module), name)
                    contestant = make(task, **entry.options)
                connection.send((getattr(contestant, method)(*args), None))
            except Exception:
                connection.send((None, traceback.format_exc()))
