"""A build in three quarters of the time: a page is many small objects, none worth a search."""

import gc

from sphinx.application import Sphinx


def setup(_: Sphinx) -> dict[str, bool]:
    gc.disable()
    return {"parallel_read_safe": True, "parallel_write_safe": True}
