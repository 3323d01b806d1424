"""`deepen info` and `deepen demo`: tables, and the same as JSON."""

import io
import json
from dataclasses import replace

import pytest
from cli_parts import FakeEnsemble, member, run
from rich.console import Console

from deepen_core.config import PRESETS
from deepen_core.demo import MEMBERS, Question, questions
from deepen_core.results import Elsewhere, EnsembleInfo, MemberInfo
from deepen_integrations.cli.demo import Answers, Comparison
from deepen_integrations.cli.tables import print_answers
from deepen_integrations.doctor.findings import size


def test_info_shows_members_side_by_side(fake):
    result = run("info")
    for part in (
        "general (main)",
        "specialist",
        "1,234,567",
        "41.5",
        "0.900",
        "1.5 anchors",
        "12,345",
        "3.25",
        "1,500 tokens",
        "4 KiB",
    ):
        assert part in result.stdout
    assert "Compatibility: no warnings." in result.stdout
    assert "What fusion cannot do with these members:\n- It cannot fly." in result.stdout


def test_info_shows_warnings(fake):
    fake.info = FakeEnsemble(warnings=["tokens differ [much] in length"]).info
    assert "Warning: tokens differ [much] in length" in run("info").stdout


WITHOUT_SPACES = {
    "temperature": None,
    "self_mass": None,
    "effective_support": None,
    "rows_built": 0,
    "space_bytes": 0,
}
SPACE_ROWS = ("temperature", "self-mass", "effective support", "rows built", "relative space")


def of_strategy(fusion: str, anchors: int | None, *members: MemberInfo) -> EnsembleInfo:
    return EnsembleInfo(list(members), "general", fusion, anchors, 256, 0)


def test_info_leaves_out_what_a_strategy_does_not_have(fake):
    fake.info = of_strategy("union", None, member("general", **WITHOUT_SPACES), member("special", **WITHOUT_SPACES))
    result = run("info")
    assert result.exit_code == 0, result.output
    assert "union" in result.stdout
    assert not [row for row in (*SPACE_ROWS, "anchors", "None") if row in result.stdout]


def test_info_names_weights_that_change(fake):
    plain = of_strategy("product", 1500, member("general"))
    for policy, told in (("static", False), ("adaptive", True), ("context", True)):
        fake.info = replace(plain, weight_policy=policy)
        assert (f"{policy}, starting from those above" in run("info").stdout) is told


def test_info_marks_what_one_member_does_not_have(fake):
    fake.info = of_strategy("product", 1500, member("general"), member("special", **WITHOUT_SPACES))
    lines = run("info").stdout.splitlines()
    for row in SPACE_ROWS:
        (line,) = [line for line in lines if row in line]
        assert line.split("│")[3].strip() == "-"
    assert any("1,500 tokens" in line for line in lines)


@pytest.mark.parametrize(("top_k", "told"), [(512, "the top 512"), (None, "all tokens")])
def test_info_names_where_members_run_that_are_elsewhere(fake, top_k, told):
    assert "elsewhere" not in run("info").stdout
    fake.info = of_strategy("union", None, member("general"), member("far", elsewhere=Elsewhere("node-7", top_k)))
    (start,) = [n for n, line in enumerate(run("info").stdout.splitlines()) if "elsewhere" in line]
    cells = [line.split("│") for line in run("info").stdout.splitlines()[start : start + 3]]
    assert cells[0][2].strip() == "-"
    assert " ".join(line[3].strip() for line in cells if len(line) > 3).startswith(f"node-7; sends {told}")


@pytest.mark.parametrize("fusion", PRESETS)
def test_every_fusion_is_described(needs_demo, fusion):
    result = run("info", "--demo", "--fusion", fusion)
    assert result.exit_code == 0, result.output
    assert "None" not in result.output
    assert fusion in result.stdout


def test_info_as_json(fake):
    assert json.loads(run("info", "--json").stdout)["members"][1]["name"] == "specialist"


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "0.999 KiB"), (1536, "1.5 KiB"), (3 << 30, "3 GiB")])
def test_sizes_for_people(count, text):
    assert size(count) == text


# deepen demo


def test_the_table_of_answers_marks_right_and_wrong():
    asked = [Question("p", "Where [does] Ada live?", "Oslo", "both", "city")]
    answers = [Answers("atlas", ["Rome"], [False]), Answers("together", ["Oslo"], [True])]
    console = Console(file=io.StringIO(), width=100)
    print_answers(console, Comparison(asked, answers))
    text = console.file.getvalue()
    for part in ("Where [does] Ada live?", "✗ Rome", "✓ Oslo", "Right: atlas 0 of 1, together 1 of 1."):
        assert part in text


def test_the_table_of_answers_fits_eighty_columns():
    asked = questions()
    longest = max((question.answer for question in asked), key=len)
    answers = [Answers(name, [longest] * len(asked), [False] * len(asked)) for name in (*MEMBERS, "together")]
    console = Console(file=io.StringIO(), width=80)
    print_answers(console, Comparison(asked, answers))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if "…" in line]
