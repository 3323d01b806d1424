"""Real pairs answer: no nonsense, no crash, batches in every dtype.

Real models are not part of the repository. Put those of `benchmarks.given_text.MODELS` into a folder, then run
`DEEPEN_REAL_MODELS=FOLDER make test ARGS=tests/test_real_models.py`. `ARGS="... -k float32"` picks a part, and
`DEEPEN_REAL_DEVICE=cuda` another device.
"""

import asyncio
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from accounting import accounts
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepen_core import Ensemble, MemberConfig
from deepen_core.errors import NonFiniteLogitsError

FOLDER = os.environ.get("DEEPEN_REAL_MODELS")
DEVICE = os.environ.get("DEEPEN_REAL_DEVICE", "cpu")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FOLDER is None, reason="DEEPEN_REAL_MODELS does not name a folder with the real models"),
]

SMOL, QWEN, GEMMA = "smollm2-135m", "qwen-coder-0.5b", "gemma3-270m"
PAIRS = [(SMOL, QWEN), (QWEN, SMOL), (SMOL, GEMMA)]
DTYPES = ["float32", "bfloat16", "float16"]
PROSE = [
    "The history of the lighthouse begins in",
    "In the morning the old baker opened the door and",
    "Photosynthesis is the process by which",
    "My grandmother always told me that",
    "The most important thing about learning a language is",
    "Rivers shape the land in two ways. First,",
    "Dear Sir or Madam,\n\nI am writing to",
]
CODE = [
    "def fibonacci(n):\n    ",
    "import json\n\ndef read_config(path):\n",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
    "# Sort a list of numbers\nnumbers = [3, 1, 2]\n",
    'def is_prime(n):\n    """Return whether n is prime."""\n',
    "for i in range(10):\n    if i % 2 == 0:\n        print(",
    "SELECT name, age FROM users WHERE",
]
CHAT = [
    [{"role": "user", "content": question}]
    for question in (
        "Write a long story about a dog.",
        "Write one sentence about the sea.",
        "What is the capital of France?",
        "Explain why the sky is blue.",
        "Write a Python function that reverses a string.",
        "Give me three tips for a good night's sleep.",
    )
]


def real(name):
    return str(Path(FOLDER) / name)


def opened(names, dtype, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Ensemble.load([real(n) for n in names], dtype=dtype, device=DEVICE, progress=False, **options)


def prompts_for(names):
    return PROSE + CODE + ([] if GEMMA in names else CHAT)  # Gemma 3 270M has no chat template


def repeats(text):
    """Whether a text ends in one character, or one token of a few, over and over."""
    end = text[-60:]
    return len(end) == 60 and any(end == (end[-size:] * 60)[-60:] for size in range(1, 9))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Which prompts a member alone answers by one token for ever, by name."""
    found = {}

    def answers(name, prompts):
        with opened([name], "float32") as ensemble:
            texts = ensemble.generate(prompts, max_new_tokens=100)
        return [repeats(answer.text) for answer in texts]

    def member(name, prompts):
        key = (name, json.dumps(prompts))
        if key not in found:
            found[key] = answers(name, prompts)
        return found[key]

    return member


def overflows(name, dtype, texts):
    """Whether a model's logits after any text are not finite in this dtype under `transformers` alone."""
    model = AutoModelForCausalLM.from_pretrained(real(name), dtype=getattr(torch, dtype)).eval().to(DEVICE)
    tokenizer = AutoTokenizer.from_pretrained(real(name))
    with torch.no_grad():
        logits = (model(**tokenizer(text, return_tensors="pt").to(DEVICE)).logits for text in texts)
        return not all(bool(torch.isfinite(each).all()) for each in logits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_twenty_prompts(names, dtype, alone):
    """100 greedy tokens each, together: no error, and nothing said for ever that no member alone says for ever."""
    prompts = prompts_for(names)
    with opened(names, dtype) as ensemble:
        assert [m.batching for m in ensemble.info.members] == ["ragged", "ragged"]
        if overflowing := [
            name for name in names if overflows(name, dtype, PROSE + CODE)
        ]:  # Gemma 3 does in float16, by itself
            with pytest.raises(NonFiniteLogitsError, match=f"'{overflowing[0]}' returned.* float16 overflows"):
                ensemble.generate(prompts, max_new_tokens=100)
            return
        answers = ensemble.generate(prompts, max_new_tokens=100)
    stuck = [alone(name, prompts) for name in names]
    for place, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        print(json.dumps({"dtype": dtype, "members": names, "prompt": prompt, "answer": answer.text}))
        assert answer.text.strip(), prompt
        assert not repeats(answer.text) or any(member[place] for member in stuck), (prompt, answer.text)


@pytest.mark.parametrize("names", [(SMOL, QWEN), (QWEN, SMOL)], ids="-".join)
def test_main_alone_is_transformers(names):
    """With all weight on main, in float32: the ids of `generate`."""
    tokenizer = AutoTokenizer.from_pretrained(real(names[0]))
    model = AutoModelForCausalLM.from_pretrained(real(names[0]), dtype=torch.float32).eval().to(DEVICE)
    with opened(names, "float32", weights=[1, 0]) as ensemble:
        for prompt in (PROSE[2], CODE[1], CHAT[2]):
            if isinstance(prompt, str):
                ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
            else:
                ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt")
                ids = ids if isinstance(ids, torch.Tensor) else ids["input_ids"]
            expected = model.generate(ids.to(DEVICE), do_sample=False, max_new_tokens=40, repetition_penalty=1.0)[
                0, ids.shape[1] :
            ]
            stops = ensemble._engine.decoder._vocabulary.stop_ids
            found = ensemble.generate(prompt, max_new_tokens=40)
            assert found.token_ids == [i for i in expected.tolist() if i not in stops]


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_a_batch_of_eight_is_eight_singles(names):
    prompts = prompts_for(names)[3:11]
    with opened(names, "float32") as ensemble:
        together = ensemble.generate(prompts, max_new_tokens=40)
        singles = [ensemble.generate(prompt, max_new_tokens=40) for prompt in prompts]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in singles]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [SMOL, QWEN, GEMMA])
def test_every_model_is_batched_in_every_dtype(name, dtype):
    with Ensemble.load(
        [MemberConfig(model=real(name), dtype=dtype)], device=DEVICE, progress=False
    ) as ensemble:  # which would warn if it were not
        assert ensemble.info.members[0].batching == "ragged"


@pytest.mark.parametrize("names", [(SMOL, QWEN), (QWEN, SMOL)], ids="-".join)
def test_members_account_for_what_is_chosen(names):
    """No token is chosen that every member rejects."""
    with opened(names, "float32") as ensemble:
        for prompt in (CHAT[0], CHAT[1], CODE[4], PROSE[1]):
            for step in accounts(ensemble, prompt, max_new_tokens=24):
                assert step.fused <= step.covered + 0.1, (prompt, step.token, step.fused, step.members)


def weather(city: str) -> str:
    """Tell the current weather in a city."""
    return f"It is sunny in {city}, 21 degrees."


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


ASKED = [
    ("What is the weather in Paris?", ("weather", {"city": "Paris"}), "21 degrees"),
    ("What is 12 times 34?", ("multiply", {"a": 12, "b": 34}), "408"),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # LlamaIndex's own
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("names", [(SMOL, QWEN), (QWEN, SMOL)], ids="-".join)
async def test_agents_call_the_right_tool_and_answer(names, dtype):
    """Five times out of five, in both frameworks, where the members may choose to call or not.

    The ten agents of a framework run at the same time, so that what is decoded together differs from one to the next.
    """
    agents = pytest.importorskip("langchain.agents")
    workflow = pytest.importorskip("llama_index.core.agent.workflow")
    from deepen_integrations.langchain import ChatDeepen
    from deepen_integrations.llama_index import DeepenToolLLM

    with opened(names, dtype) as ensemble:
        chain = agents.create_agent(ChatDeepen.from_ensemble(ensemble, max_tokens=96), [weather, multiply])
        llm = DeepenToolLLM.from_ensemble(ensemble, max_new_tokens=96)
        runs = await chain.abatch([{"messages": [("human", question)]} for question, _, _ in ASKED * 5])
        for (_, call, answer), run in zip(ASKED * 5, runs, strict=True):
            _, calls, _, last = run["messages"]
            assert [(one["name"], one["args"]) for one in calls.tool_calls] == [call]
            assert answer in last.text

        async def run_of(question):
            return await workflow.FunctionAgent(tools=[weather, multiply], llm=llm).run(question, max_iterations=4)

        told = await asyncio.gather(*(run_of(question) for question, _, _ in ASKED * 5))
        for (_, call, answer), run in zip(ASKED * 5, told, strict=True):
            assert [(one.tool_name, one.tool_kwargs) for one in run.tool_calls] == [call]
            assert answer in str(run)


class Report(BaseModel):
    """The weather of a city."""

    city: str
    degrees: int


@pytest.mark.parametrize("names", [(SMOL, QWEN), (QWEN, SMOL)], ids="-".join)
def test_agents_end_with_an_object(names):
    """By their profile's own way the right one; through a tool at least one, in a few steps."""
    agents = pytest.importorskip("langchain.agents")
    structured = pytest.importorskip("langchain.agents.structured_output")
    from deepen_integrations.langchain import ChatDeepen

    with opened(names, "float32") as ensemble:
        chat = ChatDeepen.from_ensemble(ensemble, max_tokens=96)
        for strategy in (structured.ProviderStrategy, structured.ToolStrategy):
            agent = agents.create_agent(chat, [weather, multiply], response_format=strategy(Report))
            run = agent.invoke({"messages": [("human", ASKED[0][0])]}, {"recursion_limit": 12})
            assert run["messages"][1].tool_calls[0]["name"] == "weather"
            assert run["structured_response"].city == "Paris"
            assert strategy is structured.ToolStrategy or run["structured_response"].degrees == 21


_OPENED = """
import sys, warnings
warnings.simplefilter("error")
from deepen_core import Ensemble
with Ensemble.load(sys.argv[2:], dtype="float32", device=sys.argv[1], progress=False) as ensemble:
    print(ensemble.generate("The history of the lighthouse begins in", max_new_tokens=12).token_ids)
"""


def test_opened_three_times_and_by_two_processes_at_once():
    """No error, and the same answers."""
    names, said = (SMOL, QWEN), []
    for _ in range(3):
        with opened(names, "float32") as ensemble:
            said.append(ensemble.generate(PROSE[0], max_new_tokens=24).token_ids)
    assert said[0] == said[1] == said[2]
    command = [sys.executable, "-c", _OPENED, DEVICE, *map(real, names)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=900) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert printed[0][0] == printed[1][0]
