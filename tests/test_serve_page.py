"""The clients that docs/serve.md shows work as it shows them."""

import re
from pathlib import Path

import pytest
from serve_parts import running

from deepen_integrations.cli.serve import ServedEnsembleOptions, ServerOptions
from deepen_integrations.serve import ServeOptions

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
PAGE = (Path(__file__).parent.parent / "docs" / "serve.md").read_text(encoding="utf-8")
CLIENTS = re.findall(r"^```py\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", CLIENTS, ids=lambda code: code.split()[1])
@pytest.mark.usefixtures("loop_of_llama_index")
def test_clients(code, served_demo, capsys):
    with running({"demo": served_demo}, ServeOptions()) as server:
        exec(code.replace("http://127.0.0.1:8000/v1", server.url), {})  # noqa: S102 (the page of this repository)
    assert "Lisbon" in capsys.readouterr().out


def test_the_limits_are_the_defaults():
    limits, options, command = ServeOptions(), ServedEnsembleOptions(), ServerOptions()
    assert f"| `--max-batch-size` | {options.max_batch_size} answers" in PAGE
    assert f"| `--max-answers` | {limits.max_answers} answers" in PAGE
    assert f"| `--max-body` | {limits.max_body_bytes // 2**20} MiB" in PAGE
    assert f"| `--stream-interval` | {limits.stream_interval_s} s" in PAGE
    assert f"| `--shutdown` | {limits.shutdown_s} s" in PAGE
    assert (command.max_answers, command.max_body) == (limits.max_answers, limits.max_body_bytes)
    assert command.stream_interval == limits.stream_interval_s
    assert (command.shutdown, command.host) == (limits.shutdown_s, "127.0.0.1")
