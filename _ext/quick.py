"""A build in three quarters of the time: Python does not search its many objects for cycles."""

import gc

from sphinx.application import Sphinx


def setup(_: Sphinx) -> dict[str, bool]:
    gc.disable()
    return {"parallel_read_safe": True, "parallel_write_safe": True}
