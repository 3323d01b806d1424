"""How far an evaluation is: a bar in a terminal, and log lines anywhere."""

import io
import logging
import re
import sys

import pytest
from cli_parts import OPENING
from cli_parts import run as deepen
from evaluation_parts import ITEMS, written

from deepen_core.evaluation.passes import Passes
from deepen_integrations.cli.job_log import job_log

LOGGER = "deepen_core.evaluation"


def lines(caplog):
    return [re.sub(r", \d+ s$", "", record.getMessage()) for record in caplog.records if record.name == LOGGER]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("shown", [True, False])
def test_items_are_counted_when_they_are_done(caplog, shown):
    done = []
    with caplog.at_level(logging.INFO, logger=LOGGER):
        for item in Passes(shown=shown, every_s=0.0).over("ab", "reading"):
            done.append((item, len(lines(caplog))))  # noqa: PERF401 (what is logged by then)
    assert done == [("a", 1), ("b", 2)]
    assert lines(caplog) == [f"reading: {count} of 2 items" for count in range(3)]


def test_many_short_passes_do_not_flood_the_log(caplog):
    passes = Passes(shown=False)
    with caplog.at_level(logging.INFO, logger=LOGGER):
        for number in range(50):
            assert list(passes.over("ab", f"pass {number}")) == ["a", "b"]
    assert lines(caplog) == ["pass 0: 0 of 2 items"]


def test_a_pass_without_items_reports_nothing(caplog, monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    with caplog.at_level(logging.INFO, logger=LOGGER):
        assert list(Passes(shown=True).over("", "reading")) == []
    assert not lines(caplog)
    assert not screen.getvalue()


@pytest.mark.parametrize("shown", [True, False])
def test_bars_are_for_terminals(capfd, monkeypatch, shown):
    assert list(Passes(shown=True).over("ab", "reading")) == ["a", "b"]
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    assert list(Passes(shown=shown).over("ab", "reading")) == ["a", "b"]
    assert ("2/2" in screen.getvalue()) is shown


def test_lines_do_not_run_into_the_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    handler, logger = logging.StreamHandler(screen), logging.getLogger(LOGGER)
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.manager._clear_cache()
    list(Passes(shown=True, every_s=0.0).over("ab", "reading"))
    logger.manager._clear_cache()
    told = [line.rpartition("\r")[2] for line in screen.getvalue().split("\n")]
    assert [line for line in told if line.startswith("reading: ") and "items," in line] == [
        f"reading: {count} of 2 items, 0 s" for count in range(3)
    ]


class TestTheCommands:
    @pytest.fixture
    def asked(self, monkeypatch, load, tmp_path):
        for name in OPENING:
            monkeypatch.setattr(name, lambda _, chat=False: load("alpha", "beta"))
        return str(written(tmp_path / "test.jsonl", ITEMS))

    @pytest.mark.parametrize("command", [("eval", "--json"), ("fit",)])
    def test_the_log_of_a_job_has_a_line_with_its_time(self, asked, command):
        result = deepen(command[0], asked, *command[1:])
        assert result.exit_code == 0, result.output
        assert re.search(rf"^\d\d:\d\d:\d\d test, main alpha: 0 of {len(ITEMS)} items, 0 s$", result.stderr, re.M)
        assert "main alpha: 0 of" not in result.stdout

    def test_a_terminal_has_bars_instead(self, monkeypatch):
        monkeypatch.setattr(sys, "stderr", screen := Terminal())
        with job_log():
            list(Passes(shown=False, every_s=0.0).over("ab", "reading"))
        assert not screen.getvalue()

    def test_nothing_stays_changed(self, capsys, monkeypatch):
        logger = logging.getLogger(LOGGER)
        monkeypatch.setattr(logger, "level", logging.NOTSET)
        before = logging.NOTSET, list(logger.handlers)
        with pytest.raises(RuntimeError), job_log():
            raise RuntimeError
        assert (logger.level, logger.handlers) == before
        list(Passes(shown=False).over("ab", "reading"))
        assert capsys.readouterr().err == ""
