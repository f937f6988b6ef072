"""Kernels that start side by side and never meet: each talks through sockets of its own.

By default a kernel picks free ports, and two that start at one moment may pick the same.
"""

import uuid
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager


def apart(folder: str, kind: type[KernelManager], **options: Any) -> KernelManager:
    """A manager of a kernel that is reached through files of its own in a folder."""
    file = Path(folder) / f"{uuid.uuid4().hex[:12]}.json"
    return kind(transport="ipc", connection_file=str(file), **options)
