"""Runs programs each in a process of its own, at the cost of one: forks of a process that has imported what is large.

A fork begins in an empty folder, with a fresh `__main__`, without a network, and nothing that an earlier program did.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

# What programs import, and what takes nearly all their time; nothing of this project, which each imports for itself.
LARGE = (
    "torch",
    "transformers",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "langchain.agents",
    "langchain_core.vectorstores",
    "llama_index.core",
    "llama_index.core.agent.workflow",
)
WARNINGS = MappingProxyType({"Warning": "error", "ResourceWarning": "ignore"})  # LlamaIndex leaves an event loop open
SECONDS = 300  # a program that takes longer hangs

PARENT = """
import builtins, importlib, json, os, runpy, signal, socket, sys, types, warnings

with warnings.catch_warnings():
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", ResourceWarning)
    for name in json.loads(sys.argv.pop()):
        importlib.import_module(name)

def refuse(*arguments, **options):
    raise AssertionError(f"a program asked for the network: {arguments}")

for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        break
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
else:
    sys.exit()

signal.alarm(asked["seconds"])
for number, (path, flags) in enumerate([(os.devnull, os.O_RDONLY), *((path, os.O_WRONLY) for path in asked["told"])]):
    os.dup2(os.open(path, flags | os.O_CREAT), number)
os.chdir(asked["folder"])
for name, action in asked["warnings"].items():
    warnings.simplefilter(action, getattr(builtins, name))
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
if asked["path"]:
    runpy.run_path(asked["path"], run_name="__main__")
else:
    sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(asked["code"], "<program>", "exec"), vars(sys.modules["__main__"]))
"""


@dataclass(frozen=True)
class Ended:
    """How a program ended, and what it wrote.

    Attributes:
        code: Its exit status; negative for the signal that ended it.
        output: What it said.
        errors: What it wrote to stderr, the traceback of an exception among it.
    """

    code: int
    output: str
    errors: str


class Programs:
    """The process whose forks run programs.

    Args:
        folder: For its own messages.
    """

    def __init__(self, folder: Path):
        self._said = folder / "said"
        with self._said.open("w") as said:
            self._parent = subprocess.Popen(
                [sys.executable, "-c", PARENT, json.dumps(LARGE)],
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1"},  # a fork has no other threads than its own
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )

    def run(self, folder, *, code=None, path=None, warnings=WARNINGS, seconds=SECONDS):
        """Runs a text or a file, in an empty folder within a folder for what it tells."""
        told = [str(folder / "output"), str(folder / "errors")]
        (folder / "here").mkdir()
        asked = {"code": code, "path": path and str(path), "warnings": dict(warnings), "seconds": seconds}
        self._parent.stdin.write(json.dumps({**asked, "folder": str(folder / "here"), "told": told}) + "\n")
        self._parent.stdin.flush()
        status = self._parent.stdout.readline()
        assert status, f"the process that forks has ended: {self._said.read_text()}"
        return Ended(int(status), *(Path(one).read_text(encoding="utf-8") for one in told))

    def close(self):
        """Ends the process."""
        self._parent.communicate()
        assert self._parent.returncode == 0, self._said.read_text()
