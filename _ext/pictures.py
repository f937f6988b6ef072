"""Pictures keep their place: sizes in the page, and none is loaded before it is near."""

import re
import struct
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

PICTURE = re.compile(r'<img (?=[^>]*src="(?P<src>[^"]*_images/[^"]*\.png)")')
SHARP = 2  # pixels of a figure for each that it takes on the page


def keep_places(app: Sphinx, _: str, __: str, context: dict[str, Any], ___: Any) -> None:
    files = {name: Path(app.srcdir, path) for path, name in app.builder.images.items()}

    def sized(found: re.Match[str]) -> str:
        head = files[Path(found["src"]).name].read_bytes()[:24]
        width, height = (side // SHARP for side in struct.unpack(">2I", head[16:]))
        return f'<img loading="lazy" width="{width}" height="{height}" '

    context["body"] = PICTURE.sub(sized, context.get("body", ""))


def setup(app: Sphinx) -> None:
    app.connect("html-page-context", keep_places)
