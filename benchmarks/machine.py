"""The machine and the versions that a result was measured with, in words that name nobody."""

import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

CPU = torch.device("cpu")
LIBRARIES = [
    *("torch", "numpy", "deepxde", "pina-mathlab", "lightning", "jax", "optax"),
    "pytorch-optimizer",
]


def in_words(device: torch.device = CPU) -> str:
    """Such as ``"a virtual machine with 2 cores, AMD EPYC"``, or a GPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    kind = "virtual machine" if "hypervisor" in fields.get("flags", "") else "machine"
    cpu = fields.get("model name") or platform.processor() or platform.machine()
    return f"a {kind} with {os.cpu_count()} cores, {cpu}"


def stamp(device: torch.device = CPU) -> dict[str, str]:
    """What stands beside a result: the day, the machine, PyTorch's version."""
    today = datetime.date.today().isoformat()
    return {"date": today, "machine": in_words(device), "torch": torch.__version__}


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {
        name: version(name).partition("+")[0] for name in LIBRARIES
    }
