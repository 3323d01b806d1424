"""Requests of lm-evaluation-harness, and small tasks of it in a folder."""

import json

import pytest

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (extra eval)")

from lm_eval.api.instance import Instance

ITEMS = [
    {"question": "What jumps?", "choices": ["the fox", "the lazy dog", "a girl"], "answer": 0},
    {"question": "Who sleeps?", "choices": ["the quick brown fox", "the dog"], "answer": 1},
    {"question": "你好?", "choices": ["世界", "hello there", "x"], "answer": 2},
]


def requests(*arguments):
    """Requests with these arguments, each a tuple."""
    return [Instance("loglikelihood", {}, one, number) for number, one in enumerate(arguments)]


def write_tasks(folder):
    """Writes `tiny_choice`, `tiny_open` and `tiny_text`, whose data is beside them, and returns the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, ITEMS)) + "\n", encoding="utf-8")
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / "items.jsonl")},
            "cache_dir": str(folder / "cache"),
        },
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
    }
    tasks = {
        "tiny_choice": {
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "metric_list": [_metric("acc"), _metric("acc_norm")],
        },
        "tiny_open": {
            "output_type": "generate_until",
            "doc_to_target": "{{choices[answer]}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
            "metric_list": [_metric("exact_match")],
        },
        "tiny_text": {
            "output_type": "loglikelihood_rolling",
            "doc_to_target": "{{question}} {{choices[0]}}",
            "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
        },
    }
    for name, task in tasks.items():
        # JSON is YAML.
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **common, **task}), encoding="utf-8")
    return folder


def _metric(name):
    return {"metric": name, "aggregation": "mean", "higher_is_better": True}


FOX = "The quick brown fox"
PAIRS = [
    (FOX, " jumps over"),
    ("", "Numbers: 1, 22"),
    ("Once upon a time ", " there was"),
    ("Once upon a time \n", "was"),
    ("你好，世", " 界。今天"),
    (FOX, " sleeps."),
    ("The dog sleeps;", " the fox doesn't."),
]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is the dog?"}]
