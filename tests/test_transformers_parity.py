"""An ensemble in which a single member counts is that member under `transformers`, token for token."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepen_core import Ensemble
from deepen_core.demo import member_paths

PROMPTS = [
    f"{start} {rest}"
    for start in (
        "Once upon a time",
        "Lily saw a big",
        "One day, Tom",
        "The little dog",
        "Mom said:",
        "It was",
        "A",
        "No!",
    )
    for rest in ("there was", "ball in the park", "and the cat went", "very happy.", 'asked, "Why?"', "she", "\n")
][:50]
NEW_TOKENS = 24


def greedy(folder, prompts, window):
    """`transformers` greedy `generate`, one prompt at a time; ids without the end token."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    stops = model.generation_config.eos_token_id
    found = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        assert ids.shape[1] + NEW_TOKENS < window
        with torch.no_grad():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0
            )
        new = out[0, ids.shape[1] :].tolist()
        stop = next((i for i, t in enumerate(new) if t in ([stops] if isinstance(stops, int) else stops)), None)
        found.append(new[:stop])
    return found


def compare(folder, other, prompts):
    expected = greedy(folder, prompts, 256)
    for models, options in (
        ([folder], {}),
        ([folder, other], {"weights": [1, 0]}),
        ([other, folder], {"weights": [0, 1], "main": 1, "fusion": "deepen-paper"}),
    ):
        with Ensemble.load(models, progress=False, device="cpu", **options) as ensemble:
            answers = ensemble.generate(prompts, max_new_tokens=NEW_TOKENS)
        assert [a.token_ids for a in answers] == expected
    return expected


def test_tiny_members(folders):
    compare(folders["alpha"], folders["beta"], PROMPTS[:6])
    compare(folders["beta"], folders["gamma"], PROMPTS[:6])


@pytest.mark.slow
@pytest.mark.parametrize("names", [("stories260K", "babyllama105"), ("babyllama105", "stories260K")])
def test_real_story_models_on_fifty_prompts(shared, names):
    folder, other = (shared / "models" / n for n in names)
    expected = compare(folder, other, PROMPTS)
    assert len(expected) == 50
    assert len({tuple(e) for e in expected}) > 25


@pytest.mark.slow
@pytest.mark.usefixtures("needs_demo")
@pytest.mark.parametrize("main", [0, 1])
def test_demo_members_on_fifty_prompts(main):
    from deepen_core.demo.world import questions

    paths = member_paths()
    prompts = [q.prompt for q in questions()[:200:4]]
    assert len(prompts) == 50
    expected = compare(paths[main], paths[1 - main], prompts)
    assert len({tuple(e) for e in expected}) > 10


@pytest.mark.slow
def test_float64_agrees(folders):
    """The incremental key/value cache gives the logits of one forward over the whole text."""
    with Ensemble.load([folders["alpha"]], dtype="float64", device="cpu", progress=False) as ensemble:
        answer = ensemble.generate("The quick brown", max_new_tokens=30)
        tokenizer = AutoTokenizer.from_pretrained(folders["alpha"])
        ids = tokenizer("The quick brown")["input_ids"]
        model = AutoModelForCausalLM.from_pretrained(folders["alpha"], dtype=torch.float64)
        for token in answer.token_ids:
            with torch.no_grad():
                assert int(model(torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)
