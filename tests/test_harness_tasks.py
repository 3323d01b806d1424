"""Tasks of lm-evaluation-harness on ensembles: by the harness's own function, and by `deepen eval --harness`."""

import json
import sys

import pytest
from cli_parts import run as deepen
from harness_parts import ITEMS, write_tasks
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from deepen_integrations.harness import DeepenHarnessLM
from deepen_integrations.harness.run import HarnessPlan, run_harness

TASKS = "tiny_choice,tiny_open,tiny_text"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    """The harness adds facts about the machine to results, which takes a second."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


def prompt(item):
    return f"Question: {item['question']}\nAnswer:"


class TestTheHarnessesFunction:
    def test_all_kinds_of_tasks(self, pair, tasks):
        """Results are what the ensemble's own scores and answers come to."""
        manager = TaskManager(include_path=str(tasks), include_defaults=False)
        found = simple_evaluate(DeepenHarnessLM(pair), tasks=TASKS.split(","), task_manager=manager)
        right, answers, nats, size = 0, 0, 0.0, 0
        for item in ITEMS:
            scores = pair.score(prompt(item), [f" {choice}" for choice in item["choices"]])
            best = max(range(len(scores)), key=lambda n: scores[n].total)
            right += best == item["answer"]
            answer = pair.generate(prompt(item), max_new_tokens=6, stop=["\n"]).text
            answers += answer == item["choices"][item["answer"]]
            text = f"{item['question']} {item['choices'][0]}"
            nats += pair.score("", text).total
            size += len(text.encode())
        results = found["results"]
        assert results["tiny_choice"]["acc,none"] == pytest.approx(right / 3)
        assert results["tiny_open"]["exact_match,none"] == pytest.approx(answers / 3)
        assert results["tiny_text"]["bits_per_byte,none"] == pytest.approx(-nats / size / 0.6931471805599453, abs=1e-4)
        assert found["config"]["members"] == {"alpha": 0.5, "beta": 0.5}

    def test_by_its_name(self, folders, tasks):
        manager = TaskManager(include_path=str(tasks), include_defaults=False)
        arguments = f"models={folders['alpha']};{folders['beta']},device=cpu"
        found = simple_evaluate("deepen", arguments, tasks=["tiny_choice"], task_manager=manager, limit=2)
        assert len(found["samples"]["tiny_choice"]) == 2

    def test_conversations(self, pair, tasks):
        manager = TaskManager(include_path=str(tasks), include_defaults=False)
        found = simple_evaluate(
            DeepenHarnessLM(pair), tasks=["tiny_open"], task_manager=manager, apply_chat_template=True
        )
        for item, sample in zip(ITEMS, found["samples"]["tiny_open"], strict=True):
            expected = pair.generate([{"role": "user", "content": prompt(item)}], max_new_tokens=6, stop=["\n"]).text
            assert sample["resps"] == [[expected]]


class TestTheCommand:
    @pytest.fixture
    def run(self, folders, tasks):
        def run_on_two(*arguments):
            members = ("-m", str(folders["alpha"]), "-m", str(folders["beta"]), "--device", "cpu")
            return deepen("eval", "--harness-tasks", str(tasks), *members, *arguments)

        return run_on_two

    def test_each_member_alone_and_the_ensemble(self, run, load, tasks, tmp_path):
        out = tmp_path / "out"
        result = run("--harness", TASKS, "--output", str(out), "--weights", "0.7,0.3", "--fusion", "product")
        assert result.exit_code == 0, result.output
        labels = ["alpha alone", "beta alone", "product 0.7 0.3, main alpha"]
        assert [line for line in result.stdout.splitlines() if "al" in line and "|" not in line] == labels
        assert result.stdout.count("|tiny_choice|") == 3
        plan = HarnessPlan.checked(TASKS.split(","), tasks)
        for names, options, file in (
            (["alpha"], {}, "alpha-alone"),
            (["beta"], {}, "beta-alone"),
            (["alpha", "beta"], {"weights": [0.7, 0.3], "fusion": "product"}, "product-0.7-0.3--main-alpha"),
        ):
            with load(*names, **options) as ensemble:
                expected = run_harness(ensemble, plan)["results"]
            found = json.loads((out / f"{file}.json").read_text(encoding="utf-8"))["results"]
            for task, values in expected.items():
                for metric, value in values.items():
                    same = pytest.approx(value, abs=1e-4) if isinstance(value, float) else value
                    assert found[task][metric] == same, (task, metric)
            samples = json.loads((out / f"{file}-samples.json").read_text(encoding="utf-8"))
            assert [len(samples[task]) for task in TASKS.split(",")] == [3, 3, 3]

    def test_goes_on_where_it_stopped(self, run, tmp_path, monkeypatch):
        out = str(tmp_path / "out")
        assert run("--harness", "tiny_choice", "--output", out, "--limit", "2").exit_code == 0
        monkeypatch.setattr(DeepenHarnessLM, "loglikelihood", lambda *_, **__: pytest.fail("asked again"))
        again = run("--harness", "tiny_choice", "--output", out, "--limit", "2", "--json")
        assert again.exit_code == 0, again.output
        found = json.loads(again.stdout)
        assert list(found) == ["alpha alone", "beta alone", "deepen context, main alpha"]
        assert all("acc,none" in results["results"]["tiny_choice"] for results in found.values())

    def test_conversations_and_examples(self, run):
        result = run("--harness", "tiny_open", "--chat", "--few-shot", "1", "--json", "--main", "beta")
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert list(found) == ["alpha alone", "beta alone", "deepen context, main beta"]
        assert {results["n-shot"]["tiny_open"] for results in found.values()} == {1}

    def test_a_file(self, run, tasks):
        result = run("--harness", str(tasks / "tiny_choice.yaml"), "--limit", "1", "--json")
        assert result.exit_code == 0, result.output

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["--harness", "tiny_choise"], 1, "has no task 'tiny_choise': is it tiny_choice"),
            (["--harness", " , "], 2, "Give at least one task"),
            (["--harness", "tiny_choice", "--fusion", "mean"], 2, "'mean' is none of"),
            (["--harness", "tiny_choice", "--gate", "0.5"], 2, "does not go with --gate"),
            (["items.jsonl", "--harness", "tiny_choice"], 2, "does not go with TASK"),
            ([], 2, "Give at least one file, or tasks of the harness"),
            (["items.jsonl"], 2, "It goes with --harness only"),
            (["--harness", "tiny_broken"], 1, "The harness cannot run tiny_broken: "),
        ],
    )
    def test_what_cannot_be_run(self, run, tasks, monkeypatch, arguments, code, message):
        (tasks / "tiny_broken.yaml").write_text(
            (tasks / "tiny_choice.yaml").read_text().replace("tiny_choice", "tiny_broken").replace("items", "none")
        )
        # The harness's own tasks take long to list.
        own = {"include_defaults": False}
        monkeypatch.setattr("deepen_integrations.harness.run.TaskManager", lambda **o: TaskManager(**{**o, **own}))
        result = run(*arguments)
        assert result.exit_code == code, result.output
        assert message in " ".join(result.output.replace("│", " ").split())

    def test_weights_without_the_harness(self, tmp_path):
        result = deepen("eval", str(tmp_path / "x.jsonl"), "--weights", "1,1")
        assert result.exit_code == 2
        assert "goes with --harness only" in " ".join(result.output.replace("│", " ").split())

    def test_a_folder_of_something_else(self, run, tmp_path):
        (tmp_path / "run.json").write_text('{"members": ["x"]}')
        result = run("--harness", "tiny_choice", "--output", str(tmp_path))
        assert result.exit_code == 1
        assert "holds another evaluation" in result.output

    def test_without_the_harness(self, run, monkeypatch):
        monkeypatch.setitem(sys.modules, "lm_eval", None)
        for name in [name for name in sys.modules if name.startswith("deepen_integrations.harness")]:
            monkeypatch.delitem(sys.modules, name)
        result = run("--harness", "tiny_choice")
        assert result.exit_code == 1
        assert 'pip install "deepen-integrations[eval]"' in result.output
