"""`deepen eval` and `deepen fit`."""

import json
import shlex

import pytest
from cli_parts import OPENING
from cli_parts import run as deepen
from evaluation_parts import ITEMS, written

from deepen_core.evaluation.fitted_weights import FittedWeights
from deepen_core.evaluation.items import ChoiceItem


class TestTheCommands:
    @pytest.fixture
    def opened(self, monkeypatch, load):
        for name in OPENING:
            monkeypatch.setattr(name, lambda _, chat=False: load("alpha", "beta"))

    @pytest.fixture
    def files(self, tmp_path):
        others = [ChoiceItem(item.question + "!", item.choices, item.answer) for item in ITEMS]
        return written(tmp_path / "test.jsonl", ITEMS), written(tmp_path / "dev.jsonl", others)

    @pytest.mark.usefixtures("opened")
    def test_eval(self, files, tmp_path):
        tasks, dev = files
        out = tmp_path / "out"
        result = deepen("eval", str(tasks), "--fit", str(dev), "--each-main", "--output", str(out))
        assert result.exit_code == 0, result.output
        assert "alpha alone" in result.output
        assert "Run " in result.output
        found = json.loads((out / "summary.json").read_text())
        assert found["advice"] in result.output
        assert [fit["policy"] for fit in found["weights"][:3]] == ["static"] * 3
        assert len(found["weights"]) == 2 * 2 * 3
        told = [line for line in result.output.splitlines() if line.startswith("Fitted on dev")]
        assert len(set(told)) == len(told) == 12
        for line, fit in zip(told, found["weights"], strict=True):
            by = "perplexity:" if fit["policy"] == "perplexity" else ""
            weights = by + ",".join(f"{weight:.4g}" for weight in fit["weights"])
            assert line.endswith(f"--fusion {fit['fusion']} --main {fit['main']} --weights {weights}")
        assert {path.name for path in out.iterdir()} >= {
            "run.json",
            "scores.jsonl",
            "summary.svg",
            "weights-deepen-beta.json",
            "weights-deepen-perplexity-beta.json",
        }
        result = deepen(
            "eval",
            str(tasks),
            "--fusion",
            "product",
            "--policy",
            "adaptive",
            "--gate",
            "0.5",
            "--json",
            "--main",
            "beta",
        )
        rows = json.loads(result.stdout)["summary"]["rows"]
        assert {row["label"] for row in rows} == {
            "alpha alone",
            "beta alone",
            "vote",
            "product",
            "product, adaptive",
            "product, context",
            "product, context, gate 0.5",
        }
        assert {row["main"] for row in rows} == {"", "beta"}
        options = {row["label"]: row["options"] for row in rows}
        assert options["vote"] == options["beta alone"] == ""
        assert options["product"] == "--fusion product --weights 0.5,0.5 --main beta"
        asked = deepen("generate", "Hello", "--max-tokens", "3", *shlex.split(options["product, context, gate 0.5"]))
        assert asked.exit_code == 0, asked.output

    @pytest.mark.usefixtures("needs_demo")
    def test_eval_of_the_demo(self, tmp_path):
        pytest.importorskip("sacrebleu")
        fewest = ["--fusion", "product", "--policy", "static", "--gate", "0.5", "--limit", "2"]
        result = deepen("eval", "--demo", *fewest, "--output", str(tmp_path))
        assert result.exit_code == 0, result.output
        tasks = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("questions", "translation")]
        assert [one["summary"]["items"] for one in tasks] == [
            {"facts": 2, "passages": 2, "sums": 2},
            {"translation": 2},
        ]

    @pytest.mark.usefixtures("opened")
    def test_fit(self, files, tmp_path):
        result = deepen("fit", str(files[1]), "--by", "likelihood", "--output", str(tmp_path / "w.json"))
        assert result.exit_code == 0, result.output
        fit = FittedWeights.load(tmp_path / "w.json")
        assert result.stdout.split("\n")[0] == ",".join(f"{w:g}" for w in fit.weights)
        assert "bits a byte of right answers" in result.stderr

    @pytest.mark.usefixtures("opened")
    def test_fit_of_the_policy_that_follows_the_prompt(self, files, tmp_path):
        """What is printed can be given to `--weights`."""
        result = deepen("fit", str(files[1]), "--policy", "perplexity", "--output", str(tmp_path / "w.json"))
        assert result.exit_code == 0, result.output
        printed = result.stdout.split("\n")[0]
        assert printed == FittedWeights.load(tmp_path / "w.json").option
        assert "policy perplexity: " in result.stderr
        assert "at equal shares, " in " ".join(result.stderr.split())
        asked = deepen("generate", "Hello", "--max-tokens", "3", "--weights", printed)
        assert asked.exit_code == 0, asked.output
        unknown = deepen("fit", str(files[1]), "--policy", "adaptive")
        assert unknown.exit_code == 2
        assert "'adaptive' is neither static nor perplexity" in " ".join(unknown.stderr.split())

    @pytest.mark.usefixtures("opened")
    @pytest.mark.parametrize(("policy", "weights"), [("static", "1,0"), ("perplexity", "perplexity:0.5,0.5")])
    def test_a_fit_on_nothing_that_is_right_says_so(self, tmp_path, policy, weights):
        task = {"prompt": "def f():\n", "test": "def check(f):\n    assert f() == 3141", "entry_point": "f"}
        file = tmp_path / "exercises.jsonl"
        file.write_text(json.dumps(task))
        result = deepen("fit", str(file), "--policy", policy)
        assert result.exit_code == 0, result.output
        assert result.stdout.split("\n")[0] == weights
        assert "no member answers any example right" in " ".join(result.stderr.split())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["nowhere.jsonl"], "There is no file nowhere.jsonl"),
            (["{task}", "--by", "luck"], "'luck' is neither score nor likelihood"),
            (["{task}", "--fusion", "x"], "'x' is none of deepen"),
            (["{task}", "--policy", "x"], "'x' is none of static"),
            (["{task}", "--fit", "{task}"], "3 of the items are fitted on or shown too"),
            (["{task}", "--shots", "nowhere.jsonl"], "There is no file nowhere.jsonl"),
        ],
    )
    def test_mistakes_are_told_before_anything_is_loaded(self, files, options, message):
        result = deepen("eval", *(option.format(task=files[0]) for option in options))
        assert result.exit_code in (1, 2)
        assert message in " ".join(result.output.replace("│", " ").split())
