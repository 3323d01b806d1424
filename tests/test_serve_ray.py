"""The application behind Ray Serve, with two replicas on this machine."""

import os
from pathlib import Path

import httpx
import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[serve]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.enable_socket,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
ROOT = Path(__file__).parent.parent
PORT = 8157
URL = f"http://127.0.0.1:{PORT}"
KEY = {"authorization": "Bearer sk-ray"}


@pytest.fixture(scope="module")
def deployed(needs_demo):
    from ray import serve

    from deepen_integrations.serve.ray import app

    paths = os.pathsep.join([str(ROOT / "core"), str(ROOT)])
    before = os.environ.get("DEEPEN_API_KEY")
    os.environ["DEEPEN_API_KEY"] = "sk-ray"
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        logging_level="warning",
        runtime_env={"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}},
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        serve.run(app({"replicas": "2", "max_answers": "8", "stream_interval_s": "3600"}))
        yield
    finally:
        os.environ.pop("DEEPEN_API_KEY")
        if before is not None:
            os.environ["DEEPEN_API_KEY"] = before
        serve.shutdown()
        ray.shutdown()


def ask(question, **options):
    given = {"model": "demo", "messages": [{"role": "user", "content": question}], **options}
    return httpx.post(f"{URL}/v1/chat/completions", json=given, headers=KEY, timeout=60)


def answered():
    """Number of answers of each replica, as either tells when it is asked."""
    line = 'deepen_requests_total{method="POST",path="/v1/chat/completions",status="200"} '
    texts = [httpx.get(f"{URL}/metrics", headers=KEY).text for _ in range(40)]
    return sorted({float(text.partition(line)[2].partition("\n")[0] or 0) for text in texts})


@pytest.mark.usefixtures("deployed")
def test_all_of_it():
    assert httpx.get(f"{URL}/v1/models").status_code == 401
    assert ask("Where?", model="nobody").status_code == 404
    assert ask("x" * (5 * 2**20)).status_code == 413
    for _ in range(10):
        reply = ask("Where does Felix live?")
        assert reply.json()["choices"][0]["message"]["content"].strip() == "Lisbon"
    assert answered() == [0.0, 10.0]
    for number in range(16):
        assert ask(f"{number} Where?", max_tokens=2).status_code == 200
    counts = answered()
    assert sum(counts) == 26
    assert min(counts) > 0
    events = ask("Where does Felix live?", stream=True, trace=True)
    assert events.headers["content-type"].startswith("text/event-stream")
    assert events.text.endswith("data: [DONE]\n\n")
    assert '"decision"' in events.text
    many = ask("Where?", stream=True, max_tokens=40, ignore_eos=True)
    assert many.text.count("data: {") <= 4, "the role, the first token, all others, and the end"
    long = {"model": "demo", "prompt": "x", "stream": True, "max_tokens": 400, "ignore_eos": True}
    with httpx.stream("POST", f"{URL}/v1/completions", json=long, headers=KEY, timeout=60) as response:
        next(response.iter_lines())
    for _ in range(100):
        texts = [httpx.get(f"{URL}/metrics", headers=KEY).text for _ in range(10)]
        if any("deepen_clients_gone_total 1.0" in text for text in texts):
            break
    assert any("deepen_clients_gone_total 1.0" in text for text in texts)


def test_options_are_checked():
    from deepen_core.errors import ConfigurationError
    from deepen_integrations.serve.ray import app

    for wrong in ({"replicas": "0"}, {"gpus": "-1"}, {"stream_interval_s": "-1"}, {"replica": "2"}):
        with pytest.raises(ConfigurationError):
            app(wrong)
