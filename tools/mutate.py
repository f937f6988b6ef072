"""Mutation tests: break the package, one small change at a time, and see whether a test fails.

python tools/mutate.py [MODULE …] [--number 30] [--seed 0] [--at-least 95] [--report FILE]

MODULE is a module or a folder of pinnlib, such as gradients or weighting; all by default. Each
mutant is a copy of the package with one change (tools/mutants.py), never the package itself. It is
killed if a test of its module fails: tests/test_MODULE.py (for a folder, test_FOLDER.py and
test_FOLDER_MODULE.py; where there is none, those that import it, or else those of the modules that
do), or one of its own doctests. A mutant that runs out of time is undecided, and not in the rate.
What is drawn depends on the seed and the module's name only.
"""

import argparse
import gc
import importlib
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from mutants import Mutant, draw, mutants

PRELOAD = "torch torch._dynamo torch._inductor.compile_fx numpy matplotlib.pyplot hypothesis"
PASSED = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
WRONG_COPY = 70  # an exit code that pytest does not use
MEMORY = 8 * 2**30  # bytes: a wrong shape must not bring the machine down


def tests_of(root: Path, name: str) -> list[str]:
    """The test files of a module, such as pinnlib/gradients.py."""
    if tests := concerned(root, name, "tests/test_*.py"):
        return tests
    users = concerned(root, name, "pinnlib/**/[!_]*.py")
    return sorted({test for user in users for test in concerned(root, user, "tests/test_*.py")})


def concerned(root: Path, name: str, pattern: str) -> list[str]:
    """Of some files, those that are named after a module, or else those that import it."""
    *folders, module = Path(name).relative_to("pinnlib").with_suffix("").parts
    folder = "".join(f"{part}_" for part in folders)
    own = re.compile(rf"test_({folder[:-1] or module}|({folder})?{module}(_\w+)?)\.py")
    dotted = ".".join(["pinnlib", *(folders or [module])])
    imports = re.compile(
        rf"^ *(from|import) {dotted}\b|^ *from pinnlib import .*\b{module}\b", re.M
    )
    files = sorted(root.glob(pattern), reverse=True)  # what fails is in the most special first
    found = [file for file in files if own.fullmatch(file.name)]
    found = found or [file for file in files if imports.search(file.read_text())]
    return [str(file.relative_to(root)) for file in found]


def start(root: Path, folder: Path, name: str, source: bytes) -> int:
    """Begin the tests of a module in a process of their own, with another source of the module."""
    shutil.copytree(root, folder)
    (folder / name).write_bytes(source)
    if pid := os.fork():
        return pid
    code = WRONG_COPY
    try:
        os.setsid()  # so that what the tests start can be stopped with them
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(folder)
        sys.path.insert(0, str(folder))  # before the editable install
        os.environ["PYTHONPATH"] = str(folder)
        options = ["-xq", "-pno:cacheprovider", "--assert=plain"]  # plain starts faster
        options += [f"--rootdir={folder}", f"--basetemp={folder / 'tmp'}"]
        code = int(pytest.main([*options, *tests_of(folder, name), name]))
        loaded = [m for m in sys.modules if m.split(".")[0] == "pinnlib"]
        files = [Path(file) for m in loaded if (file := getattr(sys.modules[m], "__file__", None))]
        right = all(file.is_relative_to(folder) for file in files)
        # A mutant may fail before it is loaded, but cannot pass then.
        if not right or (code in PASSED and folder / name not in files):
            code = WRONG_COPY
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def outcomes(
    root: Path, name: str, sources: Sequence[bytes], limit: float, jobs: int
) -> Iterator[tuple[int, int | None, str]]:
    """The number of each source with its tests' exit code, None if out of time, and output."""
    waiting = list(enumerate(sources))[::-1]
    running: dict[int, tuple[int, Path, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                i, source = waiting.pop()
                folder = root.parent / str(i)
                pid = start(root, folder, name, source)
                running[pid] = i, folder, time.monotonic() + limit
            time.sleep(0.02)
            for pid, (i, folder, deadline) in list(running.items()):
                done, status = os.waitpid(pid, os.WNOHANG)
                if not done and time.monotonic() < deadline:
                    continue
                del running[pid]
                stop(pid, reap=not done)
                output = (folder / "output.txt").read_text(errors="replace")
                shutil.rmtree(folder)
                code = os.waitstatus_to_exitcode(status) if done else None
                if code == WRONG_COPY:
                    sys.exit(f"{name}: the tests did not run on the copy\n{output}")
                yield i, code, output
    finally:
        for pid in running:
            stop(pid, reap=True)


def stop(pid: int, reap: bool) -> None:
    """End a process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if reap:
        os.waitpid(pid, 0)


def limit(root: Path, name: str) -> float:
    """Seconds for a mutant, several times what the tests take without a change; they must pass."""
    began = time.monotonic()
    for _, code, output in outcomes(root, name, [(root / name).read_bytes()], 600, 1):
        if code not in PASSED:
            sys.exit(f"{name}: its tests fail without a change\n{output}")
    return 10 + 5 * (time.monotonic() - began)


def examine(
    root: Path, name: str, drawn: Sequence[Mutant], limit: float, jobs: int
) -> tuple[Counter[str], list[str]]:
    """How many mutants were killed, survived, or timed out; and a line for each of the latter."""
    found = [""] * len(drawn)
    for i, code, _ in outcomes(root, name, [mutant.source for mutant in drawn], limit, jobs):
        found[i] = "timed out" if code is None else "survived" if code in PASSED else "killed"
    left = [
        f"- {result}: {name}:{mutant.line} `{mutant.before}` → `{mutant.after}`"
        for mutant, result in zip(drawn, found, strict=True)
        if result != "killed"
    ]
    return Counter(found), left


def rate(counts: Counter[str]) -> float:
    """Percentage killed of those decided."""
    return 100 * counts["killed"] / max(counts["killed"] + counts["survived"], 1)


def row(name: str, counts: Counter[str]) -> str:
    """A row of the table."""
    killed, late, survived = (counts[key] for key in ("killed", "timed out", "survived"))
    return f"| {name} | {counts.total()} | {killed} | {late} | {survived} | {rate(counts):.1f} % |"


def chosen(root: Path, modules: Sequence[str]) -> list[str]:
    """The paths of the modules that are asked for, all by default."""
    names = sorted(str(path.relative_to(root)) for path in (root / "pinnlib").rglob("*.py"))
    wanted = [f"pinnlib/{module}" for module in modules] or ["pinnlib"]
    for module in wanted:
        if not any(name == f"{module}.py" or name.startswith(f"{module}/") for name in names):
            sys.exit(f"there is no module {module}: name one such as gradients or weighting")
    return [n for n in names if any(n == f"{w}.py" or n.startswith(f"{w}/") for w in wanted)]


def examine_all(root: Path, args: argparse.Namespace) -> tuple[Counter[str], list[str]]:
    """What became of all mutants, and the report, printed as it grows."""
    drawn = {}
    for name in chosen(root, args.modules):
        if found := mutants((root / name).read_bytes()):
            drawn[name] = draw(found, args.number, f"{args.seed} {name}")
    limits = {name: limit(root, name) for name in drawn}

    report = [f"Mutants of pinnlib: {args.number} a module at most, seed {args.seed}.", ""]
    report += ["| module | mutants | killed | timed out | survived | killed of decided |"]
    report += ["|:--|--:|--:|--:|--:|--:|"]
    print(*report, sep="\n", flush=True)
    total: Counter[str] = Counter()
    left = []
    for name in drawn:
        counts, lines = examine(root, name, drawn[name], limits[name], args.jobs)
        report.append(row(name, counts))
        print(report[-1], flush=True)
        total += counts
        left += lines
    rest = [row("all", total), "", *left]
    print(*rest, sep="\n")
    return total, [*report, *rest]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE")
    parser.add_argument("--number", type=int, default=30, help="mutants a module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--at-least", type=float, default=0, help="percentage to be killed")
    parser.add_argument("--report", type=Path, help="file for the report, in Markdown")
    parser.add_argument("--root", type=Path, default=Path(__file__).parent.parent)
    parser.add_argument("--preload", default=PRELOAD, help="modules to import once")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leaves nothing running or lying about
    preload(args.preload.split())
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        root = Path(scratch).resolve() / "unchanged"  # whatever is edited meanwhile
        ignored = shutil.ignore_patterns(".*", "_build", "__pycache__", "*.egg-info")
        shutil.copytree(args.root, root, symlinks=True, ignore=ignored)
        total, report = examine_all(root, args)
    if args.report:
        args.report.parent.mkdir(parents=True, exist_ok=True)
        args.report.write_text("\n".join(report) + "\n")
    sys.exit(rate(total) < args.at_least)


def preload(modules: Sequence[str]) -> None:
    """Import once what takes long, for all mutants."""
    sys.dont_write_bytecode = True  # two mutants may be alike in size and second
    os.environ |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    for module in modules:
        importlib.import_module(module)
    for plugin in entry_points(group="pytest11"):
        plugin.load()
    gc.freeze()  # so that no mutant searches it all for garbage


if __name__ == "__main__":
    main()
