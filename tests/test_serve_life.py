"""A server's life: loading, stopping, its command, its log and its counts."""

import asyncio
import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading

import httpx
import pytest
from cli_parts import run
from serve_parts import KEY, running, sequences_held, until

from deepen_core import Ensemble
from deepen_core.errors import ConfigurationError, ModelFilesError, SamplingError
from deepen_integrations.serve import ServeOptions, create_app, serve
from deepen_integrations.serve.logs import JsonFormatter, TextFormatter
from deepen_integrations.serve.served import Catalogue
from deepen_integrations.serve.server import is_local, listen, run_until_stopped

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
EVERYWHERE = "0.0.0.0"  # noqa: S104 (nothing listens there)
ENDLESS = {"model": "demo", "prompt": "Felix", "max_tokens": 900, "ignore_eos": True, "stream": True}
BRIEF = {"model": "demo", "prompt": "Where?", "max_tokens": 2}


class TestLoading:
    def test_until_it_is_loaded_requests_are_told_to_wait(self, needs_demo):
        going, engine = threading.Event(), logging.getLogger("deepen_core")

        def load():
            engine.info("alpha: loading weights")
            going.wait()
            return Ensemble.demo()

        level = engine.level
        with running({"demo": load}, ready=False) as server:
            assert until(lambda: server.get("/ready").json()["models"]["demo"].get("step") == "alpha: loading weights")
            waiting = server.get("/ready")
            assert waiting.status_code == 503
            assert waiting.json()["status"] == "loading"
            assert server.get("/health").status_code == 200
            assert server.get("/v1/models").status_code == 200
            assert server.metric('deepen_model_ready{model="demo"}') == 0
            refused = server.post("/v1/completions", json=BRIEF)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "model_loading"
            assert int(refused.headers["retry-after"]) > 0
            assert server.post("/v1/completions", json={**BRIEF, "temperature": -1}).status_code == 400
            going.set()
            assert until(lambda: server.get("/ready").status_code == 200)
            assert server.post("/v1/completions", json=BRIEF).status_code == 200
        assert engine.level == level

    def test_what_cannot_be_loaded_is_told(self):
        def fail():
            raise ModelFilesError("alpha has no config.json")

        with running({"broken": fail}) as server:
            assert server.get("/ready").json()["models"]["broken"] == {
                "status": "failed",
                "error": "alpha has no config.json",
            }
            refused = server.post("/v1/completions", json={**BRIEF, "model": "broken"})
            assert refused.status_code == 503
            assert "retry-after" not in refused.headers

    def test_serving_ends_with_the_error_of_loading(self, monkeypatch):
        monkeypatch.setattr("deepen_integrations.serve.server.log_to_stderr", lambda _form: None)

        def fail():
            raise ModelFilesError("alpha has no config.json")

        with pytest.raises(ModelFilesError, match="has no config"):
            serve({"broken": fail}, port=0)

    def test_what_the_server_loaded_it_releases(self, needs_demo):
        loaded = []

        def load():
            loaded.append(Ensemble.demo())
            return loaded[0]

        with running({"demo": load}) as server:
            assert server.post("/v1/completions", json=BRIEF).status_code == 200
        assert loaded[0]._engine is None

    def test_several_ensembles_with_options_of_their_own(self, served_demo):
        names = {"short": served_demo, "long": served_demo}
        sampling = {
            "short": {"max_new_tokens": 2, "ignore_eos": True},
            "long": {"max_new_tokens": 7, "ignore_eos": True},
        }
        with running(names, sampling=sampling) as server:
            assert [model["id"] for model in server.get("/v1/models").json()["data"]] == ["short", "long"]
            for name, tokens in (("short", 2), ("long", 7)):
                answer = server.post("/v1/completions", json={"model": name, "prompt": "Where?"})
                assert answer.json()["usage"]["completion_tokens"] == tokens
            answer = server.post("/v1/completions", json={"model": "long", "prompt": "Where?", "max_tokens": 3})
            assert answer.json()["usage"]["completion_tokens"] == 3
            assert server.metric('deepen_tokens_total{kind="completion",model="long"}') == 10


async def test_what_was_loaded_is_spared_by_the_collector_until_the_end(served_demo):
    catalogue, frozen = Catalogue({"demo": served_demo}), []

    class Server:
        should_exit = False

        async def serve(self, sockets):
            frozen.append(gc.get_freeze_count())
            catalogue.start().join()
            while not gc.get_freeze_count():
                await asyncio.sleep(0.01)

    await asyncio.wait_for(run_until_stopped(Server(), catalogue, None), 30)
    assert frozen == [0], "nothing is spared before all is loaded"
    assert gc.get_freeze_count() == 0


class TestStopping:
    def test_running_requests_end_and_no_new_ones_begin(self, served_demo):
        asked = {**ENDLESS, "max_tokens": 60}
        with (
            running({"demo": served_demo}, ServeOptions()) as server,
            httpx.stream("POST", f"{server.url}/completions", json=asked) as response,
        ):
            events = response.iter_lines()
            next(events)
            server.server.should_exit = True
            assert until(lambda: not _connects(server))
            assert [*events][-2] == "data: [DONE]"
        assert served_demo.generate("Where?", max_new_tokens=1).text  # it is not the server's to close

    def test_what_takes_longer_than_the_time_for_it_is_cut(self, served_demo):
        with (
            running({"demo": served_demo}, ServeOptions(shutdown_s=0)) as server,
            httpx.stream("POST", f"{server.url}/completions", json=ENDLESS) as response,
        ):
            events = response.iter_lines()
            next(events)
            server.server.should_exit = True
            with pytest.raises(httpx.RemoteProtocolError):
                list(events)
        assert until(lambda: sequences_held(served_demo) == 0, 5)


def _connects(server):
    try:
        httpx.get(f"{server.root}/health")
    except httpx.TransportError:
        return False
    return True


class TestFailures:
    @pytest.fixture
    def failing(self, needs_demo):
        with Ensemble.demo() as ensemble, running({"demo": ensemble}) as server:
            yield ensemble, server

    def test_an_ensemble_that_is_closed_is_no_longer_ready(self, failing):
        ensemble, server = failing
        ensemble.close()
        refused = server.post("/v1/completions", json=BRIEF)
        assert refused.status_code == 503
        assert server.get("/ready").json()["models"]["demo"]["status"] == "failed"
        assert "closed" in server.post("/v1/completions", json=BRIEF).json()["error"]["message"]

    @pytest.mark.parametrize(("stream", "status"), [(False, 500), (True, 200)])
    def test_a_member_that_fails_ends_only_its_request(self, failing, monkeypatch, stream, status):
        ensemble, server = failing
        decoder = ensemble._engine.decoder

        def fail(_sequences):
            raise RuntimeError("out of luck")

        with monkeypatch.context() as patch:
            patch.setattr(decoder, "step", fail)
            answer = server.post("/v1/completions", json={**BRIEF, "stream": stream})
        assert answer.status_code == status
        assert '"type":"server_error"' in answer.text
        assert answer.text.endswith("data: [DONE]\n\n") == stream
        assert server.post("/v1/completions", json=BRIEF).status_code == 200
        assert server.metric("deepen_answers_running") == 0


class TestMistakes:
    @pytest.mark.parametrize("models", [{}, {"": None}])
    def test_models(self, models):
        with pytest.raises(ConfigurationError, match="at least one"):
            create_app(models)

    def test_sampling(self, served_demo):
        with pytest.raises(SamplingError, match="temperature"):
            create_app({"demo": served_demo}, sampling={"demo": {"temperature": -1}})
        with pytest.raises(ConfigurationError):
            create_app({"demo": served_demo}, sampling={"other": {}})

    @pytest.mark.parametrize("options", [{"api_keys": [""]}, {"api_keys": ["a b"]}, {"max_body_bytes": 1}, {"x": 1}])
    def test_options(self, options):
        with pytest.raises(ConfigurationError):
            ServeOptions.checked(options)

    def test_a_port_that_is_taken(self):
        with listen("127.0.0.1", 0) as taken, pytest.raises(ConfigurationError, match="Choose another"):
            listen("127.0.0.1", taken.getsockname()[1])

    def test_local_addresses(self):
        assert [is_local(address) for address in ("127.0.0.1", "::1", EVERYWHERE, "10.0.0.1")] == [
            True,
            True,
            False,
            False,
        ]


class TestCommand:
    @pytest.fixture
    def served(self, monkeypatch):
        asked = {}

        def fake(models, options, **more):
            asked.update(models=models, options=options, **more)

        monkeypatch.setattr("deepen_integrations.serve.serve", fake)
        return asked

    def test_defaults(self, served, monkeypatch):
        monkeypatch.setenv("DEEPEN_API_KEY", "a,b")
        assert run("serve").exit_code == 0
        assert [*served["models"]] == ["demo"]
        assert served["options"] == ServeOptions(api_keys=("a", "b"))
        assert (served["host"], served["port"], served["log_format"]) == ("127.0.0.1", 8000, "text")
        assert served["sampling"] == {"demo": {}}

    def test_options(self, served, monkeypatch):
        opened = []
        monkeypatch.setattr("deepen_integrations.cli.serve.open_ensemble", opened.append)
        result = run(
            *["serve", "-m", "./general", "-m", "hub/special", "--port", "0", "--host", EVERYWHERE, "--api-key", "k"],
            *["--max-answers", "5", "--max-body", "2048", "--shutdown", "3", "--log-format", "json"],
            *["--stream-interval", "0.2", "--temperature", "0.5", "--max-batch-size", "7", "--weights", "0.7,0.3"],
        )
        assert result.exit_code == 0, result.output
        (name,) = served["models"]
        assert name == "general+special"
        limits = {"max_answers": 5, "max_body_bytes": 2048, "shutdown_s": 3, "stream_interval_s": 0.2}
        assert served["options"] == ServeOptions(api_keys=["k"], **limits)
        assert served["sampling"] == {name: {"temperature": 0.5}}
        served["models"][name]()
        assert (opened[0].max_batch_size, opened[0].weights) == (7, "0.7,0.3")

    def test_mistakes(self, served):
        result = run("serve", "--temperature", "-1")
        assert result.exit_code == 1
        assert "temperature" in result.stderr

    @pytest.mark.slow
    def test_a_process_ends_on_sigterm(self, needs_demo):
        with listen("127.0.0.1", 0) as free:
            port = free.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "deepen_integrations.cli",
            "serve",
            "--demo",
            "--port",
            str(port),
            "--log-format",
            "json",
        ]
        environment = {**os.environ, "DEEPEN_API_KEY": KEY}
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            try:
                root = f"http://127.0.0.1:{port}"
                assert until(lambda: _status(f"{root}/ready") == 200, 180)
                headers = {"authorization": f"Bearer {KEY}"}
                asked = {**ENDLESS, "max_tokens": 50}
                with httpx.stream("POST", f"{root}/v1/completions", json=asked, headers=headers) as response:
                    events = response.iter_lines()
                    next(events)
                    process.send_signal(signal.SIGTERM)
                    assert [*events][-2] == "data: [DONE]"
                _, said = process.communicate(timeout=60)
            finally:
                process.kill()
        assert process.returncode == -signal.SIGTERM
        lines = [json.loads(line) for line in said.splitlines()]
        answered = next(line for line in lines if line.get("path") == "/v1/completions")
        assert answered["completion_tokens"] == 50
        assert KEY not in said
        assert "Felix" not in said


def _status(url):
    try:
        return httpx.get(url).status_code
    except httpx.TransportError:
        return 0


class TestReports:
    def test_a_line_for_each_request(self, server, caplog):
        with caplog.at_level(logging.INFO, "deepen_integrations.serve"):
            answer = server.post("/v1/completions", json={**BRIEF, "model": "demo"}, headers={"x-request-id": "abc"})
            server.post("/v1/completions", json={**BRIEF, "model": "nobody"})
            server.get("/health")
            assert until(lambda: len(_facts(caplog)) == 2)
        assert answer.headers["x-request-id"] == "abc"
        good, bad = _facts(caplog)
        assert good["request_id"] == "abc"
        used = answer.json()["usage"]["completion_tokens"]
        assert 1 <= used <= 2
        assert (good["status"], good["model"], good["completion_tokens"]) == (200, "demo", used)
        assert (bad["status"], bad["request_id"] == "abc") == (404, False)
        assert "does not exist" in bad["error"]

    def test_an_id_that_would_break_the_log_is_replaced(self, server):
        answer = server.post("/v1/completions", json=BRIEF, headers={"x-request-id": "a" * 500})
        assert len(answer.headers["x-request-id"]) == 32

    def test_formats(self):
        record = logging.makeLogRecord(
            {"msg": "request", "levelname": "INFO", "facts": {"path": 'a"\n', "status": 200}}
        )
        line = JsonFormatter().format(record)
        assert "\n" not in line
        assert json.loads(line)["path"] == 'a"\n'
        assert TextFormatter().format(record).endswith('INFO request path="a\\"\\n" status=200')

    def test_an_error_that_should_not_happen(self, server, monkeypatch, caplog):
        def crash(*_):
            raise RuntimeError("secret")

        monkeypatch.setattr("deepen_integrations.serve.endpoints.sampling_of", crash)
        answer = server.post("/v1/completions", json=BRIEF)
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
        assert "secret" not in answer.text
        assert "secret" in caplog.text

    def test_counts(self, server):
        asked = 'deepen_requests_total{method="POST",path="/v1/completions",status="200"}'
        before, tokens = server.metric(asked) or 0, 'deepen_tokens_total{kind="completion",model="demo"}'
        tokens_before = server.metric(tokens) or 0
        used = server.post("/v1/completions", json=BRIEF).json()["usage"]["completion_tokens"]
        server.post("/v1/completions", json={**BRIEF, "stream": True})
        assert until(lambda: server.metric(asked) == before + 2)
        assert server.metric(tokens) == tokens_before + 2 * used
        assert server.metric('deepen_first_token_seconds_count{model="demo"}') >= 1


def _facts(caplog):
    return [record.facts for record in caplog.records if record.message == "request" and record.levelno >= logging.INFO]


def test_a_crash_that_the_ensemble_survives_does_not_end_the_server(served_demo, monkeypatch):
    def crash(*_):
        raise SystemExit("the end")

    asked = {"model": "demo", "prompt": "Where?", "max_tokens": 2}
    with running({"demo": served_demo}) as server:
        with monkeypatch.context() as crashing:
            crashing.setattr("deepen_core.engine.scheduler.Scheduler._admit", crash)
            answer = server.post("/v1/completions", json=asked)
            assert answer.status_code == 503
            assert "has crashed: SystemExit: the end" in answer.json()["error"]["message"]
        assert server.post("/v1/completions", json=asked).status_code == 200
        assert server.get("/ready").status_code == 200
