"""Real pairs answer: no nonsense, no crash, batches in every dtype.

Real models are not part of the repository. Put those of `benchmarks.given_text.MODELS` into a folder, then run
`DEEPEN_REAL_MODELS=FOLDER make test-all ARGS=tests/test_real_models.py`. `ARGS="... -k float32"` picks a part, and
`DEEPEN_REAL_DEVICE=cuda` another device.
"""

import json
import subprocess
import sys

import pytest
import torch
from accounting import accounts
from real_parts import DEVICE, GEMMA, QWEN, REAL, SMOL, opened, real
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepen_core import Ensemble, MemberConfig
from deepen_core.errors import NonFiniteLogitsError

pytestmark = REAL

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
