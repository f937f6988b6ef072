"""A build in three quarters of the time: pages are millions of small objects, none worth a search."""

import gc

from sphinx.application import Sphinx


def setup(_: Sphinx) -> dict[str, bool]:
    gc.disable()
    return {"parallel_read_safe": True, "parallel_write_safe": True}
