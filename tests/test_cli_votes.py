"""`deepen generate --votes` and `deepen eval --votes`."""

import json

import pytest
from cli_parts import OPENING
from cli_parts import run as deepen
from evaluation_parts import ITEMS, QUESTIONS, written

PROMPT = "The quick brown fox"
SAMPLED = ["--max-new-tokens", "4", "--temperature", "1.5", "--seed", "5"]


def on_one_line(output):
    """An error without its frame, and without the quotes that older versions put around options."""
    return " ".join(output.replace("│", " ").replace("'--votes'", "--votes").split())


@pytest.fixture
def opened(monkeypatch, load):
    """Every command gets an ensemble of two members."""
    for name in OPENING:
        monkeypatch.setattr(name, lambda _, chat=False: load("alpha", "beta"))


@pytest.mark.usefixtures("opened")
class TestGenerate:
    def test_the_winner_goes_to_the_output_and_the_votes_to_the_error_stream(self, pair):
        found = pair.vote(PROMPT, n=3, among="all", extract=r"(\w)", max_new_tokens=4, temperature=1.5, seed=5)
        given = ["--votes", "3", "--vote-among", "all", "--extract", r"(\w)"]
        result = deepen("generate", PROMPT, *SAMPLED, *given)
        assert result.exit_code == 0, result.output
        assert result.stdout == found.text + "\n"
        lines = result.stderr.splitlines()
        rows = [line.split() for line in lines if line.split()[:1] in (["ensemble"], ["alpha"], ["beta"])]
        expected = [[one.source, one.answer or "-", f"{one.score:g}"] for one in found.candidates]
        assert rows == expected
        assert f"{100 * found.share:.0f} % of 9 answers agree with the chosen one." in lines

    @pytest.mark.parametrize("by", ["mbr", "likelihood"])
    def test_as_json(self, pair, by):
        found = pair.vote(PROMPT, n=2, by=by, max_new_tokens=4, temperature=1.5, seed=5)
        result = deepen("generate", PROMPT, *SAMPLED, "--votes", "2", "--vote-by", by, "--json")
        told = json.loads(result.stdout)
        assert (told["by"], told["place"], told["share"]) == (by, found.place, found.share)
        assert [one["text"] for one in told["candidates"]] == [one.text for one in found.candidates]
        assert [one["score"] for one in told["candidates"]] == pytest.approx([one.score for one in found.candidates])

    def test_notes_are_shown_once(self):
        result = deepen("generate", "x " * 120, "--votes", "2", "--max-new-tokens", "250", "--stop", "a")
        assert result.stderr.count("Note: max_new_tokens was lowered from 250") == 1, result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vote-by", "mbr"], "It is for --votes N"),
        (["--extract", "number"], "It is for --votes N"),
        (["--votes", "0"], "Invalid value for --votes"),
        (["--votes", "3", "--vote-by", "luck"], "not by 'luck'"),
        (["--votes", "3", "--vote-among", "friends"], "not 'friends'"),
        (["--votes", "3", "--extract", "luck"], "which has no group"),
        (["--votes", "3", "--temperature", "0"], "all 3 answers are equal"),
        (["--votes", "3", "--logprobs", "1"], "shown by --json only"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(monkeypatch, options, message):
    monkeypatch.setattr("deepen_integrations.cli.asking.open_ensemble", lambda _: pytest.fail("it was loaded"))
    result = deepen("generate", PROMPT, *options)
    assert result.exit_code in (1, 2)
    assert message in on_one_line(result.output)


class TestEval:
    @pytest.mark.usefixtures("opened")
    def test_rows(self, tmp_path):
        files = [str(written(tmp_path / f"{n}.jsonl", items)) for n, items in enumerate((ITEMS, QUESTIONS))]
        options = ["--fusion", "product", "--policy", "static", "--gate", "0.5", "--json", "--votes", "3"]
        result = deepen("eval", *files, *options, "--vote-temperature", "1.5")
        assert result.exit_code == 0, result.output
        rows = [row["label"] for row in json.loads(result.stdout)["summary"]["rows"]]
        assert sorted(rows) == [
            "alpha alone",
            "alpha alone, 3 votes",
            "beta alone",
            "beta alone, 3 votes",
            "product",
            "product, context",
            "product, context, 3 votes",
            "product, context, gate 0.5",
            "product, static",
            "vote",
        ]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--votes", "-1"], "Invalid value for --votes"),
            (["--votes", "3"], "There is nothing for 3 votes: no task has open questions"),
            (["--votes", "3", "--vote-temperature", "0"], "3 votes at temperature 0"),
        ],
    )
    def test_mistakes(self, tmp_path, options, message):
        result = deepen("eval", str(written(tmp_path / "task.jsonl", ITEMS)), *options)
        assert result.exit_code in (1, 2)
        assert message in on_one_line(result.output)
