"""Whatever the public ways in are given, they raise nothing but the project's errors, and those that they document."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from panic_parts import PanicException

from benchmarks.fuzz import Found, accumulate, fuzz, merge, row
from benchmarks.fuzz_entries import CHAT, Entry, entries
from benchmarks.fuzz_inputs import Mutator
from deepen_core.config.named_ensembles import ensemble_options
from deepen_core.errors import ConfigurationError, PromptError
from deepen_integrations.langchain import ChatDeepen, DeepenLLM
from deepen_integrations.llama_index import DeepenLLM as LlamaIndexLLM

SLOW = ("model folders", "headers of weight files", "ChatDeepen.invoke", "ChatDeepen.bind_tools")


@pytest.fixture(scope="module")
def opened(needs_demo):
    with entries() as found:
        yield found


@pytest.mark.filterwarnings("ignore")
def test_every_entry_with_a_few_inputs(opened):
    seed = random.SystemRandom().randrange(2**32)
    for entry in opened:
        found = fuzz(entry, range(10 if entry.name in SLOW else 60), seed)
        assert found.others == {}, f"{entry.name}, seed {seed}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_entry_with_many_inputs(opened):
    for entry in opened:
        assert fuzz(entry, range(int(3000 * entry.share)), 7).others == {}, entry.name


def test_findings_are_counted():
    def attempt(mutator):
        if mutator.draw.random() < 0.5:
            raise PromptError("refused")
        raise KeyError("raw")

    found = fuzz(Entry("any", attempt), range(100), 1)
    assert found.inputs == 100
    assert 20 < found.refused < 80
    assert next(iter(found.others)).startswith("KeyError at test_fuzz.py:")


def test_a_panic_is_a_finding_and_ctrl_c_is_none():
    def attempt(mutator):
        raise PanicException("a bug in Rust")

    found = fuzz(Entry("any", attempt), range(3), 1)
    assert found.inputs == 3
    assert next(iter(found.others)).startswith("PanicException at test_fuzz.py:")

    def interrupted(mutator):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fuzz(Entry("any", interrupted), range(3), 1)


def test_processes_and_runs_add_up():
    half = Found(inputs=3, refused=1, seconds=2.0, slowest=0.5, others={"here": "input 1"})
    other = Found(inputs=5, refused=4, seconds=1.0, slowest=0.7, others={"here": "input 2", "there": "input 4"})
    whole = merge([half, other])
    assert (whole.inputs, whole.refused, whole.seconds, whole.slowest) == (8, 5, 2.0, 0.7)
    assert whole.others == {"here": "input 1", "there": "input 4"}
    line = accumulate(row("any", half), row("any", other))
    assert line == {**row("any", whole), "seconds": 3.0, "other errors": 3}


@given(st.integers(0, 2**32))
def test_equal_seeds_draw_equal_inputs(seed):
    first, second = (repr(Mutator(f"{seed}", json_only=True).changed(CHAT)) for _ in range(2))
    assert first == second


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_what_is_not_a_prompt_is_a_prompt_error(pair, value):
    for read in (pair.tokenize, pair.token_ends, pair.count_tokens):
        try:
            read(value)
        except PromptError:
            continue
        assert isinstance(value, (str, list))


@pytest.mark.parametrize("path", ["/a\0b", "~nobody-has-this-name/a", "/" + "a" * 5000])
def test_a_description_that_is_no_path_is_an_error_of_options(path, tmp_path):
    file = tmp_path / "one.yaml"
    file.write_text(json.dumps({"models": [path]}))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        ensemble_options(path)
    assert ensemble_options(file) == {"models": [path]}
    file.write_text("[" * 20_000)
    with pytest.raises(ConfigurationError, match="is not YAML"):
        ensemble_options(file)


@pytest.mark.parametrize("kind", [ChatDeepen, DeepenLLM, LlamaIndexLLM])
@pytest.mark.parametrize("model", ["/" + "a" * 5000, "a\0b", "~nobody-has-this-name/a"])
def test_a_name_that_is_no_path_is_an_error_of_loading(kind, model):
    kind(models=[model])
