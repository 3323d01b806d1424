"""Members in actors of a real Ray cluster on this machine."""

import contextlib
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest
import yaml

from deepen_core import Ensemble, MemberConfig
from deepen_core.errors import ConfigurationError, MemberTimeoutError, ModelFilesError

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[serve]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.enable_socket,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
ROOT = Path(__file__).parent.parent
PROMPTS = [f"{number} Once upon a time" for number in range(16)]
OPTIONS = {"max_new_tokens": 40, "ignore_eos": True}


@pytest.fixture(autouse=True)
def paths(monkeypatch):
    """Actors find the packages; nothing of Ray runs before and after a test."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "core"), str(ROOT)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert not ray.is_initialized()
    yield
    started_here = ray.is_initialized()
    ray.shutdown()
    assert not started_here, "a member has left the cluster that was started for it"


def far(folder, **options):
    return MemberConfig(model=str(folder), ray={"top_k": None, "num_cpus": 0.5, **options})


def pid_of(ensemble, number=1):
    return int(ensemble.info.members[number].elsewhere.place.split("process ")[1].split(",")[0])


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]


def gone(pid):
    """Whether a process ends within 10 seconds."""
    until = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return not is_running(pid)


def tokens(answers):
    return [answer.token_ids for answer in answers]


def test_all_of_it(folders, monkeypatch):
    """Answers, an actor that is killed and one that is stopped for a while, each while 16 requests decode; the end."""
    with Ensemble.load([folders["alpha"], folders["beta"]], device="cpu", progress=False) as ensemble:
        expected = tokens(ensemble.generate(PROMPTS, **OPTIONS))
        alone = tokens(ensemble.alone(0).generate(PROMPTS, **OPTIONS))
    monkeypatch.chdir(folders["beta"].parent)  # a path that is relative to this process
    models = [folders["alpha"], far("beta", step_timeout=2.0)]
    with Ensemble.load(models, device="cpu", progress=False) as ensemble:
        first = pid_of(ensemble)
        assert is_running(first)
        assert tokens(ensemble.generate(PROMPTS, **OPTIONS)) == expected
        threading.Timer(0.05, os.kill, [first, signal.SIGKILL]).start()
        assert tokens(ensemble.generate(PROMPTS, **OPTIONS)) == expected
        assert tokens(ensemble.generate(PROMPTS, **OPTIONS)) == expected  # the kill may have come late
        second = pid_of(ensemble)
        assert second != first
        assert ensemble.info.members[1].elsewhere.restarts == 1
        os.kill(second, signal.SIGSTOP)
        started = time.monotonic()
        found = ensemble.generate(PROMPTS, return_exceptions=True, on_member_error="raise", **OPTIONS)
        assert time.monotonic() - started < 10
        assert all(isinstance(one, MemberTimeoutError) for one in found)
        assert tokens(ensemble.generate(PROMPTS, on_member_error="drop", **OPTIONS)) == alone
        os.kill(second, signal.SIGCONT)
        time.sleep(1.0)
        assert tokens(ensemble.generate(PROMPTS, **OPTIONS)) == expected
        assert pid_of(ensemble) == second
    assert gone(second)
    assert not ray.is_initialized()


def test_resources_that_are_not_there(folders):
    started = time.monotonic()
    with pytest.raises(ConfigurationError, match=r"asks for 0.5 CPU, 3 GPU, 1 tape, and the machines .* have \d+ CPU"):
        Ensemble.load([far(folders["beta"], num_gpus=3, resources={"tape": 1})], progress=False)
    assert time.monotonic() - started < 60
    assert not ray.is_initialized()


def test_resources_that_others_have(folders):
    """In a cluster of the caller's, which stays open."""
    ray.init(num_cpus=1, include_dashboard=False, logging_level="warning")
    try:
        with Ensemble.load([far(folders["alpha"], num_cpus=1)], progress=False) as ensemble:
            assert ensemble.generate(PROMPTS[0], max_new_tokens=2).token_ids
            with pytest.raises(
                ConfigurationError, match=r"has not started after 2 s .* have 1 CPU, .* nothing are free"
            ):
                Ensemble.load([far(folders["beta"], num_cpus=1, start_timeout=2)], progress=False)
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_a_connection_that_the_caller_has_closed(folders):
    """Nothing is started in its place."""
    ray.init(num_cpus=1, include_dashboard=False, logging_level="warning")
    models = [folders["alpha"], far(folders["beta"])]
    with Ensemble.load(models, device="cpu", progress=False, on_member_error="drop") as ensemble:
        assert not ensemble.generate(PROMPTS[0], max_new_tokens=2).warnings
        ray.shutdown()
        for _ in range(2):
            assert "no longer connected" in ensemble.generate(PROMPTS[0], max_new_tokens=2).warnings[0]
    assert not ray.is_initialized()


def test_a_cluster_that_is_not_there(folders):
    with pytest.raises(ConfigurationError, match="The Ray cluster 'auto' cannot be reached"):
        Ensemble.load([far(folders["beta"], address="auto")], progress=False)


def test_files_that_only_the_actor_reads(folders, tmp_path):
    shutil.copytree(folders["beta"], tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelFilesError, match=r"model\.safetensors"):
        Ensemble.load([folders["alpha"], far(tmp_path / "cut")], progress=False)
    assert not ray.is_initialized()


def test_adapters_share_it(folders):
    from deepen_integrations.langchain import DeepenLLM

    models = [str(folders["alpha"]), far(folders["beta"]).model_dump(exclude_none=True)]
    one, other = (DeepenLLM(models=models, device="cpu", max_tokens=4) for _ in range(2))
    assert one.invoke(PROMPTS[0]) == other.invoke(PROMPTS[0])
    assert one.ensemble is other.ensemble
    one.close()


def test_a_replica_has_its_members_in_actors_of_their_own(folders, tmp_path):
    """Ray Serve places them; they end with it."""
    from ray import serve

    from deepen_integrations.serve.ray import app

    models = [str(folders["alpha"]), far(folders["beta"]).model_dump(exclude_none=True)]
    (tmp_path / "far.yaml").write_text(yaml.safe_dump({"models": models, "device": "cpu"}))
    with Ensemble.load([folders["alpha"], folders["beta"]], device="cpu", progress=False) as ensemble:
        expected = ensemble.generate(PROMPTS[0], max_new_tokens=8)
    ray.init(num_cpus=4, include_dashboard=False, logging_level="warning")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": 8159})
        serve.run(app({"ensembles": str(tmp_path / "far.yaml"), "cpus": "1"}))
        (actor,) = actors()
        body = {"model": str(tmp_path / "far.yaml"), "prompt": PROMPTS[0], "max_tokens": 8}
        reply = httpx.post("http://127.0.0.1:8159/v1/completions", json=body, timeout=60).json()
        assert reply["choices"][0]["text"] == expected.text
    finally:
        serve.shutdown()
        over = gone(actor)
        ray.shutdown()
    assert over


def actors():
    """The processes of members."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile
            found += [int(process.name)] * (process / "cmdline").read_bytes().startswith(b"ray::MemberActor")
    return found


def test_the_benchmark_runs(folders):
    from benchmarks import ray_members

    pair = [folders["alpha"], folders["beta"]]
    here, full, top = ray_members.one_actor(pair, "float32", 3)
    assert here["same choices"] == full["same choices"] == 1.0
    assert full["largest difference"] < 1e-4
    assert full["bytes received a step"] > here["bytes received a step"] == 0
    assert top["steps compared"] > 0
    assert ray_members.two_actors(pair, "float32", 3)["ratio"] > 0
