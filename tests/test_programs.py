"""What runs the programs of pages and examples keeps them apart and tells how each ended."""

import pytest


def test_a_program_begins_afresh(programs, tmp_path_factory):
    left = (
        "import builtins, os\nseen = builtins.seen = os.environ['SEEN'] = 'here'\nopen('file', 'w').close()\nprint(1)"
    )
    asked = (
        "import builtins, os, sys\n"
        "print(hasattr(builtins, 'seen'), 'SEEN' in os.environ, 'seen' in globals(), os.listdir(), __name__)\n"
        "print([name for name in sys.modules if name.startswith('deepen')])"
    )
    assert programs.run(tmp_path_factory.mktemp("left"), code=left).output == "1\n"
    found = programs.run(tmp_path_factory.mktemp("asked"), code=asked)
    assert (found.code, found.errors) == (0, "")
    assert found.output == "False False False [] __main__\n[]\n"


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [
        ("print('before')\nraise KeyError('lost')", 1, "KeyError: 'lost'"),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('no')", 1, "no\n"),
        ("import atexit\natexit.register(print, 'at the end')", 0, ""),
        ("import os\nos.kill(os.getpid(), 9)", -9, ""),
        ("import time\ntime.sleep(60)", -14, ""),
        ("import warnings\nwarnings.warn('old', DeprecationWarning)", 1, "DeprecationWarning: old"),
        ("import socket\nsocket.create_connection(('localhost', 80))", 1, "a program asked for the network"),
        ("import os\nos.write(2, b'by the system')", 0, "by the system"),
    ],
    ids=["exception", "status", "message", "atexit", "killed", "hangs", "warns", "network", "stderr"],
)
def test_how_a_program_ends_is_told(programs, tmp_path, code, status, told):
    ended = programs.run(tmp_path, code=code, seconds=2 if "sleep" in code else 60)
    assert ended.code == status
    assert told in ended.errors
    assert bool(ended.errors) == bool(told)
    assert ended.output == ("before\n" if "before" in code else "at the end\n" if "atexit" in code else "")


def test_warnings_can_be_what_they_are_by_default(programs, tmp_path):
    ended = programs.run(tmp_path, code="import warnings\nwarnings.warn('new')\nprint('on')", warnings={})
    assert (ended.code, ended.output) == (0, "on\n")
    assert "UserWarning: new" in ended.errors
