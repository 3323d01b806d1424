"""Runs a program that a model has written, in a process of its own with little time, memory and room on the disk.

This keeps accidents in (endless loops, full memory), not attacks: run models that you do not trust in a container.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile

TIMEOUT = 10.0
"""Seconds that a program may take."""
_LIMITS = """
import sys
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
exec(compile(sys.stdin.read(), "program", "exec"), {"__name__": "program"})
sys.stdout.write("\\n" + sys.argv[1])
"""


def passes(program: str, timeout: float = TIMEOUT) -> bool:
    """Returns whether a program reaches its end without an error.

    It runs in a new directory that is removed, isolated from this process's modules, environment and input.

    Args:
        program: The source of the program.
        timeout: Seconds that it may take.
    """
    end = secrets.token_hex(8)  # a program that exits early does not know what is written at the end
    kept = {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}  # Windows starts nothing without
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(  # noqa: S603 (running it is what this is for)
                [sys.executable, "-I", "-c", _LIMITS, end],
                input=program,
                text=True,
                encoding="utf-8",
                errors="replace",
                cwd=folder,
                env=kept,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0 and done.stdout.endswith(end)
