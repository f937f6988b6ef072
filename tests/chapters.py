"""The chapters as data, for the tests of the book."""

import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = {
    path.stem: nbformat.read(path, as_version=4)
    for path in sorted((ROOT / "chapters").glob("*.ipynb"))
}


def cells(notebook: NotebookNode, cell_type: str) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == cell_type]


def text_outputs(cell: NotebookNode) -> str:
    """Everything that a code cell printed or displayed as text, without embedded pictures."""
    texts = []
    for output in cell.outputs:
        texts.append(output.get("text", ""))
        texts.append(output.get("data", {}).get("text/plain", ""))
        texts.append(output.get("data", {}).get("text/html", ""))
    return re.sub(r"data:image/[^\"]*", "", "\n".join(texts))


def solutions(notebook: NotebookNode) -> list[str]:
    """The Python blocks of the folded solutions."""
    folds = re.findall(
        r"<details>(.*?)</details>",
        "\n".join(cell.source for cell in cells(notebook, "markdown")),
        flags=re.DOTALL,
    )
    return [
        block
        for fold in folds
        for block in re.findall(r"```python\n(.*?)```", fold, flags=re.DOTALL)
    ]


def blocks(page: str) -> list[tuple[str, str, str]]:
    """The Python blocks of a page of reference/: the heading above, the code, the output below."""
    text = (ROOT / "reference" / page).read_text()
    pattern = r"^(#+) ([^\n]*)$|^```python\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?"
    found, heading = [], ""
    for match in re.finditer(pattern, text, flags=re.DOTALL | re.MULTILINE):
        if match[1]:
            heading = match[2]
        else:
            found.append((heading, match[3], match[4] or ""))
    return found
