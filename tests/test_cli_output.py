"""What the commands do where they cannot read or write, and with control characters on a terminal."""

import errno
import io
import logging
import os
import pty
import re
import subprocess
import sys
import warnings

import pytest
from rich.table import Table
from rich.text import Text

from deepen_core.errors import PromptError
from deepen_core.visible_text import visible
from deepen_integrations.cli import program
from deepen_integrations.cli.commands import commands
from deepen_integrations.cli.console import console, notice, write
from deepen_integrations.cli.terminal_input import read_input
from deepen_integrations.serve.logs import TextFormatter

TITLE = "a\x1b]0;owned\x07b"
SHOWN = r"a\x1b]0;owned\x07b"


def test_what_is_visible():
    assert visible("Höl\n\t漢🙂") == "Höl\n\t漢🙂"
    assert visible(TITLE) == SHOWN
    assert visible("\r\x7f\x9b\u202e\u2066\ud800") == r"\r\x7f\x9b\u202e\u2066\ud800"


class Stream(io.StringIO):
    def __init__(self, *, terminal):
        super().__init__()
        self._terminal = terminal

    def isatty(self):
        return self._terminal


@pytest.fixture
def output(monkeypatch):
    """Puts a stream in the place of the standard output or the error stream."""

    def put(name, *, terminal):
        stream = Stream(terminal=terminal)
        monkeypatch.setattr(sys, name, stream)
        monkeypatch.setenv("TERM", "xterm")
        return stream

    return put


@pytest.mark.parametrize(("terminal", "shown"), [(True, SHOWN), (False, TITLE)])
def test_answers_and_tables_are_made_visible_on_a_terminal_only(output, terminal, shown):
    stream = output("stdout", terminal=terminal)
    write(TITLE)
    table = Table("name")
    table.add_row(Text(TITLE, style="bold"))
    console().print(table)
    assert stream.getvalue().count(shown.split("owned")[0]) == 2
    assert shown in stream.getvalue()
    assert ("\x1b]0;owned" in stream.getvalue()) is not terminal
    assert ("\x1b[1m" in stream.getvalue()) is terminal  # its own controls stay


@pytest.mark.parametrize("terminal", [True, False])
def test_messages_are_made_visible_everywhere(output, terminal):
    stream = output("stderr", terminal=terminal)
    notice(f"There is no folder {TITLE}")
    assert SHOWN in stream.getvalue()


def test_log_lines_and_warnings_are_made_visible():
    before = logging.getLogRecordFactory(), warnings.formatwarning
    with program._shown_controls():
        record = logging.getLogger("x").makeRecord("x", 20, "f", 1, "in %s", (TITLE,), None)
        assert record.getMessage() == f"in {SHOWN}"
        assert SHOWN in warnings.formatwarning(UserWarning(TITLE), UserWarning, "f", 1, "")
    assert (logging.getLogRecordFactory(), warnings.formatwarning) == before
    record = logging.LogRecord("x", 20, "f", 1, TITLE, (), None)
    assert SHOWN in TextFormatter().format(record)


class Failing(Stream):
    def __init__(self, code):
        super().__init__(terminal=False)
        self._code = code

    def write(self, _text):
        raise OSError(self._code, os.strerror(self._code))


@pytest.mark.parametrize(
    ("code", "exit_code", "said"),
    [
        (errno.EPIPE, program.BROKEN_PIPE, ""),
        (errno.ENOSPC, 1, "Error: No space left on device."),
        (errno.EIO, 1, "Error"),
    ],
)
@pytest.mark.parametrize("arguments", [["generate", "Hi"], ["generate", "Hi", "--json"], ["chat", "Hi"], ["info"]])
def test_output_that_cannot_be_written_ends_with_a_line(fake, monkeypatch, output, code, exit_code, said, arguments):
    errors = output("stderr", terminal=False)
    monkeypatch.setattr(sys, "stdout", Failing(code))
    monkeypatch.setattr(sys, "argv", ["deepen", *arguments, "--demo"])
    assert program.run(commands) == exit_code
    assert errors.getvalue().splitlines()[-1:] == ([errors.getvalue().rstrip("\n")] if said else [])
    assert said in errors.getvalue()


@pytest.mark.parametrize("closed", [None, "closed"])
@pytest.mark.parametrize("arguments", [["generate"], ["generate", "-"], ["chat"], ["chat", "-"]])
def test_a_closed_input_is_one_line(fake, monkeypatch, output, arguments, closed):
    stream = io.StringIO()
    stream.close()
    errors = output("stderr", terminal=False)
    monkeypatch.setattr(sys, "stdin", None if closed is None else stream)
    monkeypatch.setattr(sys, "argv", ["deepen", *arguments, "--demo"])
    assert program.run(commands) == 1
    assert errors.getvalue().startswith("Error: The standard input is closed")
    assert errors.getvalue().count("\n") == 1


def test_a_closed_output_is_one_line(fake, monkeypatch, output):
    errors = output("stderr", terminal=False)
    monkeypatch.setattr(sys, "stdout", None)
    for arguments in (["generate", "Hi"], ["info"]):
        monkeypatch.setattr(sys, "argv", ["deepen", *arguments, "--demo"])
        assert program.run(commands) == 1
    assert errors.getvalue() == "Error: The standard output is closed.\n" * 2


def test_an_error_stream_that_cannot_be_written_changes_nothing(fake, monkeypatch, output):
    answers = output("stdout", terminal=False)
    monkeypatch.setattr(sys, "stderr", Failing(errno.ENOSPC))
    monkeypatch.setattr(sys, "argv", ["deepen", "generate", "Hi"])
    assert program.run(commands) == 0
    assert answers.getvalue() == " Blue sky.\n"


def test_wrong_options_are_shown_without_controls(monkeypatch, output):
    errors = output("stderr", terminal=True)
    monkeypatch.setattr(sys, "argv", ["deepen", "generate", f"--{TITLE}"])
    assert program.run(commands) == 2
    assert SHOWN in errors.getvalue()


def test_input_that_is_no_text_is_an_error_of_the_prompt(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8"))
    with pytest.raises(PromptError, match="The standard input is not text"):
        read_input()


@pytest.mark.slow
def test_in_a_shell():
    deepen = f"{sys.executable} -m deepen_integrations.cli"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def shell(command):
        line = f"set -o pipefail; {deepen} {command}"
        return subprocess.run(["/bin/bash", "-c", line], capture_output=True, text=True, env=environment, check=False)

    for command, code, said in (
        ("generate --demo Hi --max-tokens 40 | head -c 1", 141, ""),
        ("info --demo | true", 141, ""),
        ("generate --demo Hi --max-tokens 3 > /dev/full", 1, "Error: No space left on device.\n"),
        ("doctor --demo --json > /dev/full", 1, "Error: No space left on device.\n"),
        ("chat --demo <&-", 1, "Error: The standard input is closed, so nothing can be read"),
        ("generate --demo Hi --max-tokens 3 2> /dev/full", 0, ""),
    ):
        ended = shell(command)
        assert ended.returncode == code, (command, ended.stderr)
        assert ended.stderr.startswith(said), command
        assert ended.stderr.count("\n") == bool(said), (command, ended.stderr)


@pytest.mark.slow
def test_on_a_terminal():
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "deepen_integrations.cli", "info", "-m", f"/none{TITLE}"])  # noqa: S606
    shown = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # Linux says so at the end
            break
        if not part:
            break
        shown += part
    os.waitpid(pid, 0)
    assert b"\x1b]0;owned" not in shown
    assert SHOWN in re.sub(r"\s", "", shown.decode())
