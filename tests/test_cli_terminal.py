"""The commands in a real terminal: what is written where, and the line that says what takes so long."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from contextlib import redirect_stderr

import pytest

from deepen_integrations.cli import status
from deepen_integrations.cli.status import Status

# Ctrl-C is a signal only in the terminal that controls a process.
DEEPEN = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from deepen_integrations.cli import app
app()
"""
SECONDS = 120


class Terminal:
    """A pseudo-terminal that is the input and the error stream of a command, and by choice its output.

    Args:
        arguments: Of `deepen`.
        output: A file for the standard output; the terminal itself if None.
    """

    def __init__(self, *arguments, output=None):
        self._main, other = pty.openpty()
        env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "TERM": "xterm"}
        place = other if output is None else output
        self.process = subprocess.Popen(
            [sys.executable, "-c", DEEPEN, *arguments],
            stdin=other,
            stderr=other,
            stdout=place,
            env=env,
            start_new_session=True,
        )
        os.close(other)
        self.shown = ""

    def type(self, text):
        os.write(self._main, text.encode())

    def wait_for(self, pattern, again=""):
        """Reads until a pattern is shown after this was called; types `again` after each second without output."""
        start, end = len(self.shown), time.monotonic() + SECONDS
        while not re.search(pattern, self.shown[start:]):
            assert time.monotonic() < end, f"{pattern} is not in {self.shown!r}"
            if select.select([self._main], [], [], 1)[0]:
                self._read()
            elif again:
                self.type(again)
        return self.shown[start:]

    def end(self):
        """Reads to the end and returns the exit code."""
        end = time.monotonic() + SECONDS
        while self.process.poll() is None or select.select([self._main], [], [], 0)[0]:
            assert time.monotonic() < end, self.shown
            if select.select([self._main], [], [], 0.2)[0] and not self._read():
                break
        return self.process.wait(SECONDS)

    def _read(self):
        try:
            text = os.read(self._main, 65536).decode(errors="replace")
        except OSError:  # Linux says so at the end
            return False
        self.shown += text
        return bool(text)

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self._main)


@pytest.fixture
def terminal():
    opened = []

    def open_(*arguments, **options):
        opened.append(Terminal(*arguments, **options))
        return opened[-1]

    yield open_
    for one in opened:
        one.close()


@pytest.mark.slow
def test_a_conversation_with_answers_in_a_file(terminal, tmp_path):
    with (tmp_path / "answers").open("wb") as output:
        chat = terminal("chat", "--demo", "--max-tokens", "6", output=output)
        chat.wait_for("You are talking to atlas-gpt2 and almanac-llama[^>]*> ")
        # A signal between its last look and its waiting for a key is noticed with the next key.
        chat.wait_for("Ctrl-D ends the conversation", again="\x03")  # Ctrl-C
        chat.type('"""Where does\n')
        chat.wait_for(r"\.\.\. ")
        chat.type('Felix live?"""\n/stats\nAnd Esther?\n')
        chat.wait_for(r"tokens in [\d.]+ s")
        chat.type("\x04")  # Ctrl-D
        assert chat.end() == 0
    answers = (tmp_path / "answers").read_text()
    assert len(answers.splitlines()) == 2
    assert ">" not in answers
    assert "Traceback" not in chat.shown


@pytest.mark.slow
def test_the_prompt_is_in_the_terminal_where_the_answers_are(terminal):
    chat = terminal("chat", "--demo", "--max-tokens", "4")
    chat.wait_for("> ")
    chat.type("/quit\n")
    assert chat.end() == 0


@pytest.fixture
def error_stream(monkeypatch):
    """A terminal: a stream, and a function that returns what was written to it."""
    reading, writing = pty.openpty()
    stream = os.fdopen(writing, "w", buffering=1)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(status, "_PATIENCE_S", 0.2)

    def written():
        stream.flush()
        text = b""
        while select.select([reading], [], [], 0.2)[0]:
            text += os.read(reading, 65536)
        return text.decode()

    yield stream, written
    stream.close()
    os.close(reading)


def test_what_takes_long_is_said_and_removed(error_stream):
    stream, written = error_stream
    with redirect_stderr(stream), Status("counting [sheep]"):
        time.sleep(1.2)
    text = written()
    assert "counting [sheep]" in text
    assert text.rstrip("\r\n").endswith("\x1b[2K")  # the line is cleared
    with redirect_stderr(stream), Status("counting [sheep]") as line:
        time.sleep(0.5)
        line.stop()
        written()
        time.sleep(0.5)
        assert written() == ""


def test_what_is_quick_is_not(error_stream):
    stream, written = error_stream
    with redirect_stderr(stream):
        with Status("blinking"):
            pass
        time.sleep(0.4)
    assert written() == ""


def test_no_line_outside_of_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(status, "_PATIENCE_S", 0.0)
    with Status("waiting"):
        time.sleep(0.2)
    assert capsys.readouterr().err == ""
