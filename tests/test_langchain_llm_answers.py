"""What DeepenLLM tells beside a text, and whose text it is."""

import pytest
import torch
from langchain_core.outputs import Generation
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepen_core.demo import member_paths, questions
from deepen_integrations.langchain import DeepenLLM

PROMPT = "The quick brown fox"


@pytest.fixture(scope="module")
def demo(needs_demo):
    with DeepenLLM.demo(max_new_tokens=16) as llm:
        yield llm


def info(result, place=0) -> dict:
    (candidate,) = result.generations[place]
    assert isinstance(candidate, Generation)
    return candidate.generation_info


def test_usage_is_what_the_tokenizer_counts(demo):
    tokenizer = AutoTokenizer.from_pretrained(member_paths()[0])
    asked = [question.prompt for question in questions()[:5]]
    result = demo.generate(asked)
    usages = [info(result, place)["usage"] for place in range(5)]
    for prompt, (candidate,), usage in zip(asked, result.generations, usages, strict=True):
        assert usage["prompt_tokens"] == len(tokenizer(prompt)["input_ids"])
        assert usage["completion_tokens"] == len(tokenizer(candidate.text, add_special_tokens=False)["input_ids"])
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    totals = {key: sum(usage[key] for usage in usages) for key in usages[0]}
    assert result.llm_output == {"token_usage": totals, "model_name": "atlas-gpt2+almanac-llama"}


def test_one_prompt_alone_has_the_same_usage(demo):
    asked = [question.prompt for question in questions()[:3]]
    together = demo.generate(asked)
    for place, prompt in enumerate(asked):
        alone = demo.generate([prompt])
        assert alone.llm_output["token_usage"] == info(alone)["usage"] == info(together, place)["usage"]


@pytest.mark.parametrize("way", ["generate", "stream"])
def test_logprobs_are_those_of_the_fused_distribution(demo, way):
    prompt = questions()[0].prompt
    if way == "generate":
        told = info(demo.generate([prompt], logprobs=3))
        text = demo.invoke(prompt)
    else:
        chunks = list(demo._stream(prompt, logprobs=3))
        whole = sum(chunks[1:], chunks[0])
        told, text = whole.generation_info, whole.text
    content = told["logprobs"]["content"]
    assert len(content) == told["usage"]["completion_tokens"] > 0
    score = demo.ensemble.score(prompt, text)
    assert score.token_ids == demo.get_token_ids(text)
    assert [entry["logprob"] for entry in content] == pytest.approx(score.logprobs, abs=1e-4)
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == text
    assert all(len(entry["top_logprobs"]) == 3 for entry in content)


@torch.inference_mode()
def test_logprobs_of_one_member_are_its_log_softmax(load, folders):
    model = AutoModelForCausalLM.from_pretrained(folders["alpha"])
    tokenizer = AutoTokenizer.from_pretrained(folders["alpha"])
    with load("alpha") as ensemble:
        llm = DeepenLLM.from_ensemble(ensemble, max_new_tokens=10, ignore_eos=True, logprobs=2)
        content = info(llm.generate([PROMPT]))["logprobs"]["content"]
        chosen = ensemble.generate(PROMPT, llm.sampling({})).token_ids
    prompt = tokenizer(PROMPT)["input_ids"]
    logits = model(torch.tensor([prompt + chosen])).logits[0, len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits.float(), -1)
    assert [entry["logprob"] for entry in content] == pytest.approx(
        [float(row[token]) for row, token in zip(expected, chosen, strict=True)], abs=1e-4
    )


@torch.inference_mode()
@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_one_member_says_what_transformers_says(load, folders, name):
    model = AutoModelForCausalLM.from_pretrained(folders[name])
    tokenizer = AutoTokenizer.from_pretrained(folders[name])
    inputs = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    model.generation_config.eos_token_id = None
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=12, pad_token_id=0)[
        0, inputs["input_ids"].shape[1] :
    ]
    with load(name) as ensemble:
        llm = DeepenLLM.from_ensemble(ensemble, max_new_tokens=12, ignore_eos=True)
        assert ensemble.generate(PROMPT, llm.sampling({})).token_ids == ids.tolist()
        assert llm.invoke(PROMPT) == ensemble.generate(PROMPT, llm.sampling({})).text


def test_a_weight_of_zero_is_the_first_member(load):
    with load("alpha") as alone, load("alpha", "beta", weights=[1, 0]) as weighed:
        options = {"max_new_tokens": 12, "ignore_eos": True}
        assert DeepenLLM.from_ensemble(weighed, **options).invoke(PROMPT) == (
            DeepenLLM.from_ensemble(alone, **options).invoke(PROMPT)
        )
