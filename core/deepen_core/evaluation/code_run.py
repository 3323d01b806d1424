"""Runs a program that a model has written, in a process of its own with little time, memory and room on the disk.

This keeps accidents in (endless loops, full memory), not attacks: run models that you do not trust in a container.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

TIMEOUT = 10.0
"""Seconds that a program may take."""
_LIMITS = """
import sys, types
try:
    import resource
except ImportError:
    pass
else:
    for name, most in (("RLIMIT_CPU", 10), ("RLIMIT_AS", 2**30), ("RLIMIT_FSIZE", 2**20), ("RLIMIT_NPROC", 64)):
        try:
            resource.setrlimit(getattr(resource, name), (most, most))
        except (AttributeError, OSError, ValueError):
            pass
end, source = sys.argv[1], sys.stdin.read()
module = sys.modules["program"] = types.ModuleType("program")
exec(compile(source, "program", "exec"), module.__dict__)
with open(end, "w") as file:
    file.write("reached")
"""


def passes(program: str, timeout: float = TIMEOUT) -> bool:
    """Returns whether a program reaches its end without an error.

    It runs in a new directory that is removed, isolated from this process's modules, environment and input. What it
    prints is dropped, and processes that it starts end with it.

    Args:
        program: The source of the program.
        timeout: Seconds that it may take.
    """
    kept = {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}  # Windows starts nothing without
    with tempfile.TemporaryDirectory() as place:
        folder, end = Path(place, "program"), Path(place, "end")
        folder.mkdir()
        process = subprocess.Popen(  # noqa: S603 (running it is what this is for)
            [sys.executable, "-I", "-X", "utf8", "-c", _LIMITS, str(end)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=kept,
            start_new_session=True,
        )
        try:
            process.communicate(program.encode("utf-8", "replace"), timeout)
        except subprocess.TimeoutExpired:
            return False
        finally:
            _stop(process)
        return process.returncode == 0 and end.is_file()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a process with those that it has started, where the system has groups of processes."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
