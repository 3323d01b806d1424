"""What the server costs beside the engine: throughput of a batch and time to the first token, as ratios.

Run with `python -m benchmarks.server`; `--help` lists the options. The server runs in a thread of this process, on the
ensemble that also answers in this process; its clients are a process of their own. The two ways take turns, and what
counts is the median of the ratios of turns that follow each other, since other work on the machine slows down both.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import publish
from benchmarks.report import read as published
from deepen_core import Ensemble
from deepen_core.demo.world import questions
from deepen_integrations.serve import ServeOptions
from deepen_integrations.serve.served import Catalogue
from deepen_integrations.serve.server import listen, run_until_stopped, server_of

NAME = "ensemble"
OPTIONS = {"ignore_eos": True}


@contextmanager
def served(ensemble: Ensemble) -> Iterator[int]:
    """Serves an ensemble while the block runs; gives the port."""
    catalogue = Catalogue({NAME: ensemble})
    server, listening = server_of(catalogue, ServeOptions()), listen("127.0.0.1", 0)
    thread = threading.Thread(target=asyncio.run, args=[run_until_stopped(server, catalogue, listening)])
    thread.start()
    while not (server.started and catalogue.ready and gc.get_freeze_count()):
        time.sleep(0.01)
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


class Clients:
    """A process that asks a server."""

    def __init__(self, port: int) -> None:
        command = [sys.executable, "-m", "benchmarks.server", "--clients", str(port)]
        root = Path(__file__).parent.parent
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._asked, self._answered = self._process.stdin, self._process.stdout

    def ask(self, bodies: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Sends all bodies at once; returns the seconds to the last answer and to the first piece of each."""
        print(json.dumps(bodies), file=self._asked, flush=True)
        found: dict[str, Any] = json.loads(self._answered.readline())
        return found

    def close(self) -> None:
        """Ends it."""
        self._asked.close()
        self._answered.close()
        self._process.wait()


async def ask(port: int, body: dict[str, Any]) -> tuple[float, str]:
    """Sends one request; returns the seconds to the first piece of the answer, and all of the response."""
    raw = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nconnection: close\r\n"
    started = time.perf_counter()
    writer.write(f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw)
    await reader.readuntil(b"\r\n\r\n")
    first = await reader.readline()
    seconds = time.perf_counter() - started
    rest = await reader.read()
    writer.close()
    return seconds, (first + rest).decode()


async def ask_all(port: int, bodies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sends all requests at once."""
    started = time.perf_counter()
    answers = await asyncio.gather(*(ask(port, body) for body in bodies))
    seconds = time.perf_counter() - started
    wrong = [text[:200] for _, text in answers if '"finish_reason"' not in text]
    assert not wrong, wrong[0]
    return {"seconds": seconds, "first": [first for first, _ in answers]}


def run_clients(port: int) -> None:
    """Sends the bodies of each line of the standard input."""
    for line in sys.stdin:
        print(json.dumps(asyncio.run(ask_all(port, json.loads(line)))), flush=True)


def first_token(ensemble: Ensemble, prompt: str, tokens: int) -> float:
    """Seconds to the first piece of a stream in this process."""
    ensemble.forget()
    started = time.perf_counter()
    pieces = ensemble.stream(prompt, max_new_tokens=tokens, **OPTIONS)
    next(pieces)
    seconds = time.perf_counter() - started
    for _ in pieces:  # so that the next request has the engine to itself
        pass
    return seconds


def measure(ensemble: Ensemble, clients: int, tokens: int, repeats: int) -> list[dict[str, Any]]:
    """Measures whole answers, streams, and the first token of a request alone."""
    prompts = [question.prompt for question in questions()[:clients]]
    bodies = [{"model": NAME, "prompt": prompt, "max_tokens": tokens, **OPTIONS} for prompt in prompts]
    here: list[float] = []
    whole: list[float] = []
    streamed: list[float] = []
    firsts_here: list[float] = []
    firsts_there: list[float] = []
    with served(ensemble) as port:
        asking = Clients(port)
        try:
            for _ in range(repeats):
                ensemble.forget()
                started = time.perf_counter()
                ensemble.generate(prompts, max_new_tokens=tokens, **OPTIONS)
                here.append(time.perf_counter() - started)
                ensemble.forget()
                whole.append(asking.ask(bodies)["seconds"])
                ensemble.forget()
                streamed.append(asking.ask([{**body, "stream": True} for body in bodies])["seconds"])
                for body in bodies[:8]:
                    firsts_here.append(first_token(ensemble, str(body["prompt"]), tokens))
                    ensemble.forget()
                    firsts_there += asking.ask([{**body, "stream": True}])["first"]
        finally:
            asking.close()
    made = clients * tokens
    speeds = [
        _row(f"{name}, tokens/s", [made / each for each in here], [made / each for each in seconds])
        for name, seconds in (("whole", whole), ("streamed", streamed))
    ]
    return [*speeds, _row("first token, ms", [1000 * s for s in firsts_here], [1000 * s for s in firsts_there])]


def _row(what: str, here: Sequence[float], there: Sequence[float]) -> dict[str, Any]:
    """Medians, and the median of the ratios of turns that follow each other."""
    ratios = [second / first for first, second in zip(here, there, strict=True)]
    return {
        "answers": what,
        "generate": round(statistics.median(here), 1),
        "server": round(statistics.median(there), 1),
        "ratio": round(statistics.median(ratios), 2),
        "ratios, lowest to highest": f"{min(ratios):.2f} to {max(ratios):.2f}",
    }


def main() -> None:
    """Measures and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", type=Path, help="model folders; the demo by default")
    parser.add_argument("--requests", type=int, default=64, help="how many at once")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--clients", type=int, metavar="PORT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.clients is not None:
        run_clients(arguments.clients)
        return
    torch.set_num_threads(1)
    models = arguments.models
    ensemble = Ensemble.load(models, dtype=arguments.dtype) if models else Ensemble.demo()
    with ensemble:
        rows = measure(ensemble, arguments.requests, arguments.tokens, arguments.repeats)
    members = " and ".join(path.name for path in models) if models else "the demo"
    about = {"members": members, "requests": arguments.requests, "tokens": arguments.tokens}
    others = [row for row in published("server")["rows"] if row["members"] != members]
    publish("server", "Requests at once: Ensemble.generate and the server", [*others, *(about | row for row in rows)])


if __name__ == "__main__":
    main()
