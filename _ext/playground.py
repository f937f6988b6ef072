"""The directive ``{playground}``: page and modules in one piece, as ``file://`` asks for."""

import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

HTML = """<style>{}</style><template id="playground-page">{}</template>
<script id="playground-model">"use strict"; const playground = {{}};
{}</script><script type="text/plain" id="playground-worker">{}</script><script>{}</script>"""
IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./(\w+)\.mjs";', re.MULTILINE)
EXPORT = re.compile(r"^export (?=\w+ (\w+))", re.MULTILINE)


class Playground(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        folder, done = Path(self.env.srcdir, "extra", "playground"), set[str]()
        page = [(folder / name).read_text() for name in ("playground.css", "playground.html")]
        scripts = [bundle(folder / f"{name}.mjs", done) for name in ("training", "worker", "page")]
        return [nodes.raw("", HTML.format(*page, *scripts), format="html")]


def bundle(path: Path, done: set[str]) -> str:
    """A module in a scope of its own, after those that it imports and that are not yet done."""
    done.add(path.stem)
    source = path.read_text()
    names = [name for _, name in IMPORT.findall(source)]
    before = "".join(bundle(path.with_stem(name), done) for name in names if name not in done)
    text = IMPORT.sub(r"const \1 = playground.\2;", EXPORT.sub("", source))
    text += f"return {{ {', '.join(EXPORT.findall(source))} }};"
    return f"{before}playground.{path.stem} = (() => {{\n{text}\n}})();\n"


def setup(app: Sphinx) -> None:
    app.add_directive("playground", Playground)
