"""The demo world is the same everywhere, fair to both members, and its models ship in good order."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from deepen_core import Ensemble
from deepen_core.demo import MEMBERS, TRANSLATOR, documents, member_paths, questions
from deepen_core.demo.phrases import GREETINGS, RELATIONS
from deepen_core.demo.world import Fact, facts, training_texts

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = all((path / "model.safetensors").is_file() for path in member_paths())
needs_models = pytest.mark.skipif(not SHIPPED, reason="no demo models; run training/train_demo.py")

FINGERPRINT = """
import hashlib
from deepen_core.demo.world import documents, facts, questions, training_texts
parts = [facts(), questions(), questions("training"), documents()]
parts += [list(training_texts(member, seed=3, rounds=2)) for member in (0, 1)]
print(hashlib.sha256(repr(parts).encode()).hexdigest())
"""


def output_of(code: str, hash_seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT / "core")}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def test_world_does_not_depend_on_the_hash_seed() -> None:
    assert output_of(FINGERPRINT, "0") == output_of(FINGERPRINT, "12345")


def test_importing_the_demo_imports_no_torch() -> None:
    code = "import sys, deepen_core.demo; print('torch' in sys.modules)"
    assert output_of(code, "0").strip() == "False"


def test_there_are_enough_questions_of_every_kind() -> None:
    held_out = questions("held-out")
    assert len(held_out) >= 400
    assert min(Counter(question.known_to for question in held_out).values()) >= 100
    assert {question.relation for question in held_out} == {relation.key for relation in RELATIONS}
    assert all(question.prompt == f"Question: {question.text}\nAnswer:" for question in held_out)


def test_no_held_out_wording_is_ever_trained() -> None:
    held_out = {question.text for question in questions("held-out")}
    assert held_out.isdisjoint(question.text for question in questions("training"))
    for member in (0, 1):
        assert held_out.isdisjoint(text.question for text in training_texts(member, rounds=40))


def heard(member: int) -> dict[Fact, Counter[str]]:
    claims: dict[Fact, Counter[str]] = defaultdict(Counter)
    for text in training_texts(member, seed=7, rounds=60):
        claims[text.fact][text.answer] += 1
        assert text.answer in text.statement
    return claims


@pytest.mark.parametrize("member", [0, 1])
def test_training_texts_teach_what_questions_say_is_known(member: int) -> None:
    for fact, claims in heard(member).items():
        share = claims[fact.value] / claims.total()
        if fact.known_to in ("both", MEMBERS[member]):
            assert share == 1
        elif fact.known_to == "half":
            assert set(claims) == {fact.value, fact.rivals[member]}
            assert 0.25 < share < 0.75
        else:
            assert share < 0.35
            assert len(claims) > len(fact.relation.values) / 2


def test_false_stories_differ_between_the_members() -> None:
    for fact in facts():
        if fact.known_to == "half":
            assert len({fact.value, *fact.rivals}) == 3


def test_documents_state_every_fact() -> None:
    portraits = {document.title: document.text for document in documents()}
    assert len(portraits) == 60
    for fact in facts():
        assert fact.value in portraits[fact.person.name]


@needs_models
def test_model_folders_are_small_and_complete() -> None:
    paths = member_paths((*MEMBERS, TRANSLATOR))
    files = [file for path in paths for file in path.iterdir()]
    assert sum(file.stat().st_size for file in files) < 20_000_000
    assert max(file.stat().st_size for file in files) < 7_500_000
    for path in paths:
        names = {file.name for file in path.iterdir()}
        assert names == {
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        }


@needs_models
@pytest.mark.parametrize("member", [0, 1])
def test_tokenizers_round_trip_and_put_one_bos_in_front(member: int) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(member_paths()[member])
    texts = [question.prompt for question in questions()]
    texts += [document.text for document in documents()] + [line for _, line in GREETINGS]
    texts += ["", " ", "\n\n", "a  b\t", "\x00\x7f", "x " * 500, "e\u0301 \ufffd \u200b"]
    for text in texts:
        ids = tokenizer(text).input_ids
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids[1:]) == text


@needs_models
@pytest.mark.parametrize("member", [0, 1])
def test_chat_templates_end_where_the_answer_begins(member: int) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(member_paths()[member])
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where does Mira live?"},
        {"role": "assistant", "content": "Oslo"},
        {"role": "user", "content": "What is Mira's job?"},
    ]
    rendered = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert rendered.startswith(f"{tokenizer.bos_token}Be brief.\n")
    assert "Question: Where does Mira live?\nAnswer: Oslo\n" in rendered
    assert rendered.endswith("Question: What is Mira's job?\nAnswer:")
    assert rendered.count(tokenizer.bos_token) == 1


@pytest.mark.slow
def test_training_writes_folders_that_load(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    script = ROOT / "training" / "train_demo.py"
    command = [sys.executable, str(script), "--out", str(tmp_path), "--steps", "2"]
    subprocess.run(command, check=True, capture_output=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(MEMBERS)
    for name in MEMBERS:
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        assert model.config.vocab_size == len(tokenizer)
        assert tokenizer.eos_token_id == model.generation_config.eos_token_id


@pytest.mark.slow
def test_training_writes_a_translator_that_loads(tmp_path: Path) -> None:
    script = ROOT / "training" / "train_ferry.py"
    command = [sys.executable, str(script), "--out", str(tmp_path), "--steps", "2"]
    subprocess.run(command, check=True, capture_output=True)
    names = {file.name for file in (tmp_path / TRANSLATOR).iterdir()}
    assert names == {file.name for [path] in [member_paths([TRANSLATOR])] for file in path.iterdir()}
    with Ensemble.load([tmp_path / TRANSLATOR], progress=False, device="cpu") as translator:
        assert translator.info.members[0].architecture.startswith("T5ForConditionalGeneration")
