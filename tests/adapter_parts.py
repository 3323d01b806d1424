"""What is looked at in the models of both frameworks."""

import gc
import subprocess
import sys
import weakref

import pytest
from scheduler_parts import eventually, running_workers

ENDINGS = pytest.mark.parametrize("ending", ["close", "with", "garbage"])


def check_constructing(framework, kind, **options):
    """A thousand models that are constructed load nothing, start nothing and read nothing, with few calls each."""
    core = {"langchain": "langchain_core.language_models.base", "llama_index": "llama_index.core.llms"}[framework]
    code = f"""
import sys, threading
import {core}
brought = set(sys.modules)  # LangChain before 1.6 imports transformers itself
from deepen_integrations.{framework} import {kind} as kind
kept = [kind(models=["no/such", "folder"], **{options!r})]  # the first one imports what is left to import
threads, counting, calls, told = threading.active_count(), False, 0, set()

def count(frame, event, argument):
    global calls
    calls += event == "call"

sys.addaudithook(lambda event, arguments: told.add(event) if counting else None)
sys.setprofile(count)
counting = True
kept += [kind(models=["no/such", "folder"], **{options!r}) for _ in range(999)]
counting = False
sys.setprofile(None)
assert calls < 1_000_000, calls
assert not told, told  # of no file, no folder, no socket, no process
assert threading.active_count() == threads
heavy = {{"torch", "transformers", "tokenizers"}} & set(sys.modules) - brought
assert not heavy, heavy
asked = "huggingface_hub" in set(sys.modules) - brought
assert {kind == "ChatDeepen"} or not asked  # a chat model asks where hub ids are kept
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def check_the_last_frees(models, ask, ending):
    """Two models share an ensemble, which is loaded once and released with the second of them.

    Args:
        models: The two, with nothing else that refers to them; the list is emptied.
        ask: Has a model answer, the same whenever it is asked.
        ending: How the second one lets go. Closed models are still there when that is looked at.
    """
    before = running_workers()
    first, second = models
    models.clear()
    answer = ask(first)
    assert answer
    assert ask(second) == answer
    assert first.ensemble is second.ensemble
    ensemble = weakref.ref(first.ensemble)
    weights = weakref.ref(next(first.ensemble._engine.members[0].model.parameters()))
    first.close()
    assert ask(second) == answer
    if ending == "close":
        second.close()
    elif ending == "with":
        with second:
            pass
    else:
        del second
    gc.collect()
    assert ensemble() is None
    eventually(lambda: gc.collect() >= 0 and weights() is None)  # the worker's thread may be in its last frames
    assert running_workers() <= before  # of other tests' workers some may have ended meanwhile
