"""Empty environments for the tests: made in seconds, without a download."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement


def empty_environment(path: Path, *packages: str) -> Path:
    """A new environment with pip, some packages and what they need; the path of its Python.

    Their files are links to those of the environment that runs the tests, and what is compiled
    when one of both first imports a module serves the other.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
    python = path / "bin" / "python"
    (site_packages,) = path.glob("lib/python*/site-packages")
    wanted, done = [(package, "") for package in ("pip", *packages)], set()
    while wanted:
        name, extra = wanted.pop()
        installed = distribution(name)
        if (installed.name, extra) in done:
            continue
        done.add((installed.name, extra))
        for requirement in map(Requirement, installed.requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                wanted += [(requirement.name, option) for option in ("", *requirement.extras)]
        for file in installed.files or []:
            source, target = Path(installed.locate_file(file)), site_packages / file
            if {"..", "__pycache__"} & set(file.parts) or not source.exists() or target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            link(source, target)
            compiled = target.parent / "__pycache__"
            if file.suffix == ".py" and not compiled.exists():
                (source.parent / "__pycache__").mkdir(exist_ok=True)
                compiled.symlink_to(source.parent / "__pycache__")
    return python


def link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def freeze(python: Path) -> list[str]:
    """What is installed in an environment, with versions."""
    command = [python, "-m", "pip", "--disable-pip-version-check", "freeze", "--all"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
