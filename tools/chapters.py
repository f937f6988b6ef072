"""Execute the chapters: into _build/src for the book, or in place to renew the committed outputs.

python tools/chapters.py book              execute what changed, lay out the book's sources
python tools/chapters.py refresh [NAME …]  execute chapters/NAME*.ipynb, all by default, in place
"""

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
SOURCE = BUILD / "src"


def execute(path: Path) -> NotebookNode:
    """Run a notebook top to bottom in a fresh kernel; keep nothing but cells and outputs."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=1200,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def execute_all(paths: list[Path]) -> Iterator[tuple[Path, NotebookNode]]:
    """Run notebooks side by side, one a core, and say when each is done."""

    def run(path: Path) -> NotebookNode:
        start = time.perf_counter()
        notebook = execute(path)
        print(f"  {path.name}: executed in {time.perf_counter() - start:.0f} s", flush=True)
        return notebook

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from zip(paths, pool.map(run, paths), strict=True)


def code_digest() -> str:
    """Fingerprint of what a chapter's outputs depend on, besides the chapter itself."""
    digest = hashlib.sha256(sys.version.encode())
    for path in [ROOT / "constraints.txt", *sorted((ROOT / "pinnlib").rglob("*.py"))]:
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def write_if_changed(path: Path, content: bytes) -> None:
    """Leave an unchanged file alone, so that the site's builder can skip it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_bytes() != content:
        path.write_bytes(content)


def book() -> None:
    """Lay out the book's sources in _build/src, every chapter executed."""
    cache = get_cache(BUILD / "cache" / code_digest())
    chapters = {path: nbformat.read(path, as_version=4) for path in chapter_paths()}
    changed = []
    for path, notebook in chapters.items():
        try:
            cache.match_cache_notebook(notebook)
            print(f"  {path.name}: unchanged", flush=True)
        except KeyError:
            changed.append(path)
    for path, notebook in execute_all(changed):
        bundle = CacheBundleIn(notebook, str(path))
        cache.cache_notebook_bundle(bundle, overwrite=True, check_validity=False)
    wanted = set()
    for path in book_sources():
        wanted.add(SOURCE / path.relative_to(ROOT))
        content = path.read_bytes()
        if path in chapters:
            # The text and the metadata are the chapter's own, only the outputs come from the cache.
            _, merged = cache.merge_match_into_notebook(chapters[path], cell_meta=())
            content = nbformat.writes(merged).encode()
        write_if_changed(SOURCE / path.relative_to(ROOT), content)
    for path in SOURCE.rglob("*"):
        if path.is_file() and path not in wanted:
            path.unlink()


def refresh(names: list[str]) -> None:
    """Execute chapters in place."""
    paths = [p for p in chapter_paths() if not names or p.name.startswith(tuple(names))]
    for path, notebook in execute_all(paths):
        nbformat.write(notebook, path)


def chapter_paths() -> list[Path]:
    return sorted((ROOT / "chapters").glob("*.ipynb"))


def book_sources() -> Iterator[Path]:
    """The files that the site is made of."""
    for pattern in [
        "_config.yml",
        "_toc.yml",
        "*.md",
        "chapters/**/*",
        "reference/**/*",
        "_static/**/*",
    ]:
        yield from (path for path in sorted(ROOT.glob(pattern)) if path.is_file())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("book")
    commands.add_parser("refresh").add_argument("names", nargs="*")
    arguments = parser.parse_args()
    if arguments.command == "book":
        book()
    else:
        refresh(arguments.names)
