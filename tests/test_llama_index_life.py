"""How DeepenLLM of LlamaIndex is made, known, stored, shared and let go of.

That a missing LlamaIndex is told by its extra is in `test_packaging.py` and `test_adapter_options.py`.
"""

import copy
import json
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import pytest_socket
from adapter_parts import ENDINGS, check_the_last_frees
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.loading import RECOGNIZED_LLMS, load_llm
from llama_index_parts import EIGHT, QUESTION, called

from deepen_core.errors import ClosedError, ConfigurationError, SamplingError
from deepen_integrations.llama_index import DeepenLLM

pytestmark = pytest.mark.usefixtures("loop_of_llama_index")


@pytest.fixture
def options(reading_folders):
    return {
        "models": [str(folder) for folder in reading_folders["chats"]],
        "device": "cpu",
        "progress": False,
        "max_new_tokens": 4,
        "ignore_eos": True,
    }


def test_it_is_what_llama_index_looks_for():
    names = [cls.__name__ for cls in DeepenLLM.__mro__]
    assert {CustomLLM.__name__, BaseLLM.__name__} < set(names)
    assert DeepenLLM.class_name() == "DeepenLLM"
    assert RECOGNIZED_LLMS["DeepenLLM"] is DeepenLLM


@pytest.mark.parametrize("endpoint", EIGHT)
def test_a_misspelt_option_is_an_error(options, endpoint):
    with pytest.raises(ConfigurationError, match="did you mean 'temperature'"):
        DeepenLLM(**options, temprature=1)
    llm = DeepenLLM(**options)
    with pytest.raises(SamplingError, match="did you mean 'temperature'"):
        called(llm, endpoint, temprature=1)


def test_stored_in_every_form_it_answers_the_same(options):
    with DeepenLLM(**options, stop=["\0"], system_prompt="Be brief.") as llm:
        text = llm.complete(QUESTION).text
        forms = {
            "dict": DeepenLLM.from_dict(llm.to_dict()),
            "json": DeepenLLM.from_json(llm.to_json()),
            "loader": load_llm(llm.to_dict()),
            "pickle": pickle.loads(pickle.dumps(llm)),
            "copy": copy.deepcopy(llm),
            "model_copy": llm.model_copy(update={"stop": ("\1",)}),
        }
        assert len(pickle.dumps(llm)) < 10_000
        for form, other in forms.items():
            assert other.complete(QUESTION).text == text, form
            assert other.ensemble is llm.ensemble, form


@pytest.mark.slow
def test_a_pickle_loads_in_a_process_that_never_saw_the_models(options, tmp_path):
    stored = tmp_path / "llm.pickle"
    with DeepenLLM(**options) as llm:
        text = llm.complete(QUESTION).text
        stored.write_bytes(pickle.dumps(llm))
    code = f"""
import pickle, pathlib
llm = pickle.loads(pathlib.Path({str(stored)!r}).read_bytes())
print(repr(llm.complete({QUESTION!r}).text))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == repr(text), run.stderr


def test_importing_and_planning_are_light_and_open_no_socket(options):
    code = f"""
import socket, sys
import deepen_core, deepen_integrations
assert not [name for name in sys.modules if name.startswith("llama_index")]
def refuse(*arguments, **options):
    raise AssertionError("a socket was opened")
socket.socket.__init__ = refuse
from deepen_integrations.llama_index import DeepenLLM
llm = DeepenLLM(**{options!r})
assert not {{"torch", "transformers", "tokenizers", "huggingface_hub"}} & set(sys.modules)
metadata = llm.metadata
assert metadata.is_chat_model and metadata.context_window < 2200, metadata
assert llm._held()._loaded is None
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.filterwarnings("ignore:A test tried to use socket")
def test_the_tests_have_no_network():
    with pytest.raises(pytest_socket.SocketBlockedError):
        socket.socket(socket.AF_INET, socket.SOCK_STREAM)


def test_no_folder_shadows_the_framework():
    root = Path(__file__).parent
    assert not [path for path in root.rglob("*") if path.is_dir() and path.name in ("llama_index", "langchain")]


@ENDINGS
def test_the_last_one_frees_the_models(options, ending):
    check_the_last_frees(
        [DeepenLLM(**options), DeepenLLM(**options, seed=1)], lambda llm: llm.complete(QUESTION).text, ending
    )


@pytest.mark.parametrize("endpoint", EIGHT)
def test_use_after_close_is_told(options, endpoint):
    llm = DeepenLLM(**options)
    llm.close()
    with pytest.raises(ClosedError, match=r"DeepenLLM was closed\. Construct another one"):
        called(llm, endpoint)


def test_what_is_stored_of_a_closed_one_is_as_before(options):
    llm = DeepenLLM(**options)
    stored = json.loads(llm.to_json())
    llm.close()
    assert json.loads(llm.to_json()) == stored
