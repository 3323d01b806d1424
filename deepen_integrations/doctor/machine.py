"""What this machine has: devices, memory, and where files are kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from huggingface_hub import constants

from deepen_core.config.named_ensembles import ensemble_names, ensembles_file
from deepen_core.errors import ConfigurationError
from deepen_integrations.doctor.findings import Finding, Section, size

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def devices() -> Section:
    """Lists the devices on which members can run, with the memory that is free."""
    free = free_memory(torch.device("cpu"))
    room = "unknown memory" if free is None else f"{size(free)} of memory free"
    found = [Finding("cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}; {room}")]
    for number in range(torch.cuda.device_count()):
        name, free = torch.cuda.get_device_name(number), free_memory(torch.device("cuda", number))
        found.append(Finding(f"cuda:{number}", f"{name}; {size(free or 0)} free"))
    if not torch.cuda.device_count():
        built = "torch is built without it" if torch.version.cuda is None else "no GPU was found"
        found.append(Finding("cuda", f"none: {built}", "note"))
    if torch.backends.mps.is_available():
        found.append(Finding("mps", "there"))
    return Section("Devices", found)


def free_memory(device: torch.device) -> int | None:
    """Returns how many bytes can still be used on a device; None where that cannot be told."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    if device.type != "cpu":
        return None
    limits = [found for found in (_available(), _allowed()) if found is not None]
    return min(limits, default=None)


def _available() -> int | None:
    """Returns the memory that Linux can give to a process; None on other systems."""
    if not _MEMINFO.is_file():
        return None
    entries = dict(line.split(":", 1) for line in _MEMINFO.read_text(encoding="utf-8").splitlines())
    return int(entries["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in entries else None


def _allowed() -> int | None:
    """Returns what a container may still use; None outside of one, or without a limit."""
    most, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if not (most.is_file() and used.is_file()):
        return None
    limit = most.read_text(encoding="utf-8").strip()
    return max(0, int(limit) - int(used.read_text(encoding="utf-8"))) if limit.isdecimal() else None


def files() -> Section:
    """Says where downloaded models and named ensembles are kept, and whether they can be."""
    return Section("Files", [_hub_cache(), _ensembles()])


def _hub_cache() -> Finding:
    folder = Path(constants.HF_HUB_CACHE)
    there = next(place for place in (folder, *folder.parents) if place.exists())
    said = f"{folder}, {size(shutil.disk_usage(there).free)} of disk free"
    offline = ", offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    if not os.access(there, os.W_OK):
        return Finding("hub cache", f"{said}; it cannot be written: set HF_HUB_CACHE to another folder", "note")
    return Finding("hub cache", said + ("" if folder.exists() else ", not made yet") + offline)


def _ensembles() -> Finding:
    path = ensembles_file()
    try:
        names = ensemble_names()
    except ConfigurationError as problem:
        return Finding("named ensembles", str(problem), "wrong")
    if not path.exists():
        return Finding("named ensembles", f"none: there is no {path}", "note")
    return Finding("named ensembles", f"{', '.join(names)} in {path}")
