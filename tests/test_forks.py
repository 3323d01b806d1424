"""Forks after a load, and during one, with more than one thread of torch's own."""

import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.usefixtures("needs_demo"),
]
WAIT = """
import os, time
end = time.monotonic() + 120
while True:
    found, status = os.waitpid(child, os.WNOHANG)
    if found:
        print("child ended with", status, flush=True)
        break
    if time.monotonic() > end:
        os.kill(child, 9)
        print("child hangs", flush=True)
        break
    time.sleep(0.05)
"""
AFTER = """
import os, torch
torch.set_num_threads(2)
from deepen_core import Ensemble
question = "Question: Where does Felix live?\\nAnswer:"
with Ensemble.demo() as ensemble:
    print(ensemble.generate(question, max_new_tokens=3).text)
    child = os.fork()
    if child == 0:
        with Ensemble.demo() as own:
            print(own.generate(question, max_new_tokens=3).text, torch.get_num_threads(), flush=True)
        os._exit(0)
"""
BEFORE = """
import os, torch
torch.set_num_threads(2)
from deepen_core import Ensemble
child = os.fork()
if child == 0:
    with Ensemble.demo() as own:
        answer = own.generate("Question: Where does Felix live?\\nAnswer:", max_new_tokens=3).text
        print(answer, torch.get_num_threads(), flush=True)
    os._exit(0)
"""
DURING = """
import os, threading
from deepen_integrations import shared_ensembles
from deepen_integrations.load_options import LoadOptions
shared = shared_ensembles.shared_ensemble(LoadOptions(models="demo"))
held, go_on = threading.Event(), threading.Event()
def hold():
    with shared_ensembles._ensembles_lock, shared._loading:
        held.set()
        go_on.wait()
threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if child == 0:
    again = shared_ensembles.shared_ensemble(LoadOptions(models="demo"))
    with again.ensemble(progress=False) as own:
        answer = own.generate("Question: Where does Felix live?\\nAnswer:", max_new_tokens=3).text
        print(again is shared, answer, flush=True)
    os._exit(0)
go_on.set()
"""


def run(program):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", program + WAIT]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_a_fork_of_a_process_that_has_computed_loads_its_own():
    done = run(AFTER)
    assert done.stdout.split() == ["Lisbon", "Lisbon", "1", "child", "ended", "with", "0"]
    assert "is a fork of" in done.stderr
    assert "single thread" in done.stderr


def test_a_fork_during_a_load_does_not_wait_for_it():
    done = run(DURING)
    assert done.stdout.split() == ["True", "Lisbon", "child", "ended", "with", "0"]


def test_a_fork_before_anything_was_loaded_keeps_its_threads():
    done = run(BEFORE)
    assert done.stdout.split() == ["Lisbon", "2", "child", "ended", "with", "0"]
    assert "fork" not in done.stderr
