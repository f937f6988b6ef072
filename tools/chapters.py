"""Execute the chapters, two or more side by side, and lay out the sources of the site.

python tools/chapters.py site [--committed]   lay out _build/src, executing what changed; or
                                              _build/committed/src, from the committed outputs
python tools/chapters.py refresh [NAME …]     renew the committed outputs of chapters/NAME*.ipynb
python tools/chapters.py check [NAME …] --seeds S … --threads T   execute with other seeds, keep
                                              nothing: three at a time, as many as are given
"""

import argparse
import base64
import hashlib
import os
import re
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import nbformat
from jupyter_client.manager import AsyncKernelManager
from kernels import apart
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
CACHE = ROOT / "_build" / "cache"
SITE_SOURCES = [
    "_config.yml",
    "_toc.yml",
    "index.md",
    "reference",
    "_ext",
    "_static",
    "_templates",
    "extra",
    "pinnlib",  # the API page shows it
]
COVER_FIGURE = "fig:before-after"
COVER_FILE = Path("_static") / "before-after.png"
SEEDS_LINE = re.compile(r"^SEEDS = \[.*\]$", flags=re.MULTILINE)
THREADS_LINE = re.compile(r"^torch\.set_num_threads\(1\)  # .*$", flags=re.MULTILINE)


class Job(NamedTuple):
    """A chapter to be executed, and what is special about it."""

    path: Path
    note: str = ""


def execute(notebook: NotebookNode, tries: int = 2) -> tuple[NotebookNode, float]:
    """Run a notebook top to bottom in a fresh kernel: cells and outputs, and the CPU's seconds.

    A kernel that dies, which is no fault of the notebook's, is reported and replaced once.
    """
    start = seconds_of_kernels()
    try:
        with tempfile.TemporaryDirectory(prefix="kernel-") as folder:
            NotebookClient(
                notebook,
                km=apart(folder, AsyncKernelManager, kernel_name="python3"),
                timeout=1200,
                record_timing=False,
                coalesce_streams=True,
                extra_arguments=["--log-level=ERROR"],  # a local kernel need not warn
                resources={"metadata": {"path": str(ROOT / "chapters")}},
            ).execute(cleanup_kc=True)
    except DeadKernelError:
        if tries == 1:
            raise
        print("  a kernel died: once more", file=sys.stderr, flush=True)
        return execute(notebook, tries - 1)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook, seconds_of_kernels() - start


def seconds_of_kernels() -> float:
    """What the kernels that have ended, and the compilers they called, took of the CPU."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def execute_all(
    notebooks: Mapping[Job, NotebookNode], threads: int = 1
) -> Iterator[tuple[Job, NotebookNode]]:
    """Run notebooks side by side, a core for each thread; one line for each when it is done.

    Yields those that succeeded, as they finish, and exits after the last if one has failed.
    """
    failed = []
    # Processes and not threads: an interrupt then reaches each client, which stops its kernel.
    # Threads that share a core wait for one another: a chapter takes eight times as long.
    with ProcessPoolExecutor(max(1, (os.cpu_count() or 1) // threads)) as pool:
        try:
            # The later chapters take longer: they go first, so that no core idles at the end.
            waiting = sorted(notebooks.items(), reverse=True)
            running = {pool.submit(execute, notebook): job for job, notebook in waiting}
            for done in as_completed(running):
                name = " ".join(
                    part for part in (running[done].path.name, running[done].note) if part
                )
                try:
                    notebook, seconds = done.result()
                except (CellExecutionError, DeadKernelError) as error:
                    failed.append(name)
                    print(f"  {name}: failed\n{error}", file=sys.stderr, flush=True)
                else:
                    print(f"  {name}: {seconds:.0f} s of the CPU", flush=True)
                    yield running[done], notebook
        finally:
            pool.shutdown(cancel_futures=True)
    if failed:
        sys.exit("Failed: " + "; ".join(sorted(failed)))


def cache_path(path: Path, notebook: NotebookNode) -> Path:
    """Where the outputs of a chapter lie, named by all that they depend on."""
    digest = hashlib.sha256(sys.version.encode())
    package = [p for p in sorted((ROOT / "pinnlib").rglob("*")) if "__pycache__" not in p.parts]
    for source in [ROOT / "constraints.txt", *(p for p in package if p.is_file())]:
        digest.update(str(source.relative_to(ROOT)).encode() + source.read_bytes())
    for cell in notebook.cells:
        if cell.cell_type == "code":
            digest.update(cell.source.encode() + b"\0")
    return CACHE / path.stem / f"{digest.hexdigest()[:20]}.ipynb"


def executed_chapters() -> dict[Path, NotebookNode]:
    """All chapters with fresh outputs; what did not change since the last time is not executed."""
    chapters = read(CHAPTERS)
    cached = {path: cache_path(path, notebook) for path, notebook in chapters.items()}
    for path in chapters:
        if cached[path].exists():
            print(f"  {path.name}: unchanged", flush=True)
    changed = read([path for path in chapters if not cached[path].exists()])
    for (path, _), notebook in execute_all(jobs(changed)):
        shutil.rmtree(cached[path].parent, ignore_errors=True)
        cached[path].parent.mkdir(parents=True)
        nbformat.write(notebook, cached[path])
    for path, notebook in chapters.items():
        # The text and the metadata are the chapter's own, only the outputs come from the cache.
        done = nbformat.read(cached[path], as_version=4)
        for cell, executed in zip(notebook.cells, done.cells, strict=True):
            if cell.cell_type == "code":
                cell.outputs = executed.outputs
                cell.execution_count = executed.execution_count
    return chapters


def named(names: Sequence[str]) -> list[Path]:
    """The chapters whose names begin so; all, if none is given."""
    return [path for path in CHAPTERS if path.name.startswith(tuple(names) or "")]


def jobs(notebooks: Mapping[Path, NotebookNode]) -> dict[Job, NotebookNode]:
    return {Job(path): notebook for path, notebook in notebooks.items()}


def read(paths: Sequence[Path]) -> dict[Path, NotebookNode]:
    return {path: nbformat.read(path, as_version=4) for path in paths}


def cover_figure(chapters: dict[Path, NotebookNode]) -> bytes | None:
    """The picture for README and front page: the output of the cell that carries its name."""
    for notebook in chapters.values():
        for cell in notebook.cells:
            if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") == COVER_FIGURE:
                for output in cell.outputs:
                    if "image/png" in output.get("data", {}):
                        return base64.b64decode(output.data["image/png"])
    return None


def lay_out(chapters: dict[Path, NotebookNode], target: Path, built: Path) -> None:
    """Write the sources of the site; where one has changed, remove what was built from them.

    The links in a page's code are lost when Sphinx renews the page beside others it does not read.
    """
    files = {path.relative_to(ROOT): path.read_bytes() for path in site_files()}
    for path, notebook in chapters.items():
        files[path.relative_to(ROOT)] = nbformat.writes(notebook).encode()
    if (png := cover_figure(chapters)) is not None:
        files[COVER_FILE] = png
    present = {p.relative_to(target): p.read_bytes() for p in target.rglob("*") if p.is_file()}
    if files != present:
        for folder in (target, built / ".doctrees", built / "html"):
            shutil.rmtree(folder, ignore_errors=True)
        for name, content in files.items():
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def site_files() -> Iterator[Path]:
    for source in SITE_SOURCES:
        path = ROOT / source
        files = (p for p in sorted([path, *path.rglob("*")]) if p.is_file())
        yield from (p for p in files if "__pycache__" not in p.parts)


def refresh(names: Sequence[str]) -> None:
    """Execute chapters in place, and take the cover figure from them."""
    chapters = read(named(names))
    for (path, _), notebook in execute_all(jobs(chapters)):
        nbformat.write(notebook, path)
        if (png := cover_figure({path: notebook})) is not None:
            (ROOT / COVER_FILE).write_bytes(png)


def check(names: Sequence[str], seeds: Sequence[int], threads: int) -> None:
    """Execute chapters with other seeds: an assert that fails is a claim that was luck."""
    if len(seeds) % 3:
        sys.exit(f"{len(seeds)} seeds: pass three, or six, or nine …, as a chapter takes three")

    def with_threads(found: re.Match[str]) -> str:
        times_one_thread = "side by side" not in found[0]
        return found[0] if times_one_thread else found[0].replace("(1)", f"({threads})")

    waiting = {}
    for start in range(0, len(seeds), 3):
        triple = list(seeds[start : start + 3])
        for path, notebook in read(named(names)).items():
            if not any("SEEDS" in cell.source for cell in notebook.cells):
                continue  # it trains nothing
            put(notebook, SEEDS_LINE, f"SEEDS = {triple}", path.name)
            put(notebook, THREADS_LINE, with_threads, path.name)
            waiting[Job(path, f"with seeds {triple}")] = notebook
    for _ in execute_all(waiting, threads):
        pass


def put(
    notebook: NotebookNode,
    line: re.Pattern[str],
    other: str | Callable[[re.Match[str]], str],
    name: str,
) -> None:
    """Replace the one line of a notebook that matches."""
    found = 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source, count = line.subn(other, cell.source)
            found += count
    if found != 1:
        sys.exit(f"{name} has {found} lines {line.pattern}: it needs exactly one")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("site").add_argument("--committed", action="store_true")
    commands.add_parser("refresh").add_argument("names", nargs="*")
    checking = commands.add_parser("check")
    checking.add_argument("names", nargs="*")
    checking.add_argument("--seeds", type=int, nargs="+", required=True)
    checking.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    if arguments.command == "refresh":
        refresh(arguments.names)
    elif arguments.command == "check":
        check(arguments.names, arguments.seeds, arguments.threads)
    elif arguments.committed:
        build = ROOT / "_build" / "committed"
        lay_out(read(CHAPTERS), build / "src", build / "_build")
    else:
        lay_out(executed_chapters(), ROOT / "_build" / "src", ROOT / "_build")


if __name__ == "__main__":
    main()
