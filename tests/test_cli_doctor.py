"""`deepen doctor`: what it finds on folders, without their weights, and what it calls wrong."""

import json
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest
import tiny
from cli_parts import run

from deepen_integrations.doctor import installation, machine, members
from deepen_integrations.extras import EXTRAS


def findings(result) -> dict[str, dict[str, dict[str, str]]]:
    """By section and topic."""
    sections = json.loads(result.stdout)["sections"]
    return {s["title"]: {found["topic"]: found for found in s["findings"]} for s in sections}


def doctor(*arguments: str):
    return run("doctor", *arguments, "--json")


@pytest.fixture
def pair(folders):
    """The options that name two members."""
    return ["-m", str(folders["alpha"]), "-m", str(folders["beta"])]


def test_a_healthy_pair_is_described_without_its_weights(pair, weights_read):
    result = doctor(*pair)
    assert result.exit_code == 0, result.output
    found = findings(result)
    assert list(found) == ["Versions", "Extras", "Devices", "Files", "alpha", "beta", "Together"]
    assert list(found["Extras"]) == list(EXTRAS)
    assert "parameters" in found["alpha"]["weights"]["said"]
    assert "add --try" in found["beta"]["batch and cache"]["said"]
    assert "the weights need" in found["Together"]["memory of cpu"]["said"]
    assert weights_read == []


def test_what_members_can_is_tried_on_request(pair, load):
    found = findings(doctor(*pair, "--try"))
    expected = {member.name: member.batching for member in load("alpha", "beta").info.members}
    for name, batching in expected.items():
        said = found[name]["batch and cache"]["said"]
        assert batching.startswith("ragged")
        assert said.startswith("ragged: sequences of any length share a forward")
        assert found[name]["given texts"]["state"] == "ok"


def test_a_member_without_a_template_says_what_it_cannot_and_why(folders):
    found = findings(doctor("-m", str(folders["gamma"])))["gamma"]
    for topic in ("chat template", "thoughts"):
        assert found[topic]["state"] == "note"
    assert "add chat_template.jinja" in found["chat template"]["said"]


def test_a_model_with_a_state_says_why_it_runs_alone(tmp_path):
    tiny.save_mamba(tmp_path / "state", tiny.byte_level())
    result = doctor("-m", str(tmp_path / "state"), "--try")
    assert result.exit_code == 0  # it works, only slower
    found = findings(result)["state"]
    assert found["batch and cache"]["state"] == found["given texts"]["state"] == "note"
    assert "one sequence at a time: its state cannot be shortened" in found["batch and cache"]["said"]
    assert "read step by step" in found["given texts"]["said"]


def test_sizes_are_those_of_the_files_and_of_the_dtype(folders):
    import torch
    from safetensors.torch import load_file

    file = folders["alpha"] / "model.safetensors"
    count = sum(tensor.numel() for tensor in load_file(file).values())
    said = findings(doctor("-m", str(folders["alpha"]), "--dtype", "float64"))["alpha"]["weights"]["said"]
    assert said.startswith(f"{count:,} parameters, ")
    assert f"as float64 {machine.size(count * torch.float64.itemsize)} on cpu" in said


@pytest.mark.parametrize(
    ("harm", "topic", "message"),
    [
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"1234"),
            "weights",
            "too few for a safetensors file",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "files", "cannot be read as JSON"),
    ],
)
def test_damaged_members_are_wrong_and_the_others_are_still_examined(folder, folders, harm, topic, message):
    harm(folder)
    result = doctor("-m", str(folder), "-m", str(folders["alpha"]), "--try")
    assert result.exit_code == 1
    found = findings(result)
    assert found["model"][topic]["state"] == "wrong"
    assert message in found["model"][topic]["said"]
    assert found["alpha"]["batch and cache"]["state"] == "ok"


def test_too_little_memory_is_wrong(pair, monkeypatch):
    monkeypatch.setattr(members, "free_memory", lambda device: 1000)
    result = run("doctor", *pair)
    assert result.exit_code == 1
    assert "0.977 KiB are free: use a smaller dtype" in " ".join(result.stdout.split())
    assert result.stdout.endswith("1 thing is wrong: see ✗ above.\n")


def test_memory_that_cannot_be_told_is_no_fault(pair, monkeypatch):
    monkeypatch.setattr(members, "free_memory", lambda device: None)
    result = doctor(*pair)
    assert (result.exit_code, findings(result)["Together"]["memory of cpu"]["state"]) == (0, "note")


def test_a_limit_of_a_container_counts(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("4096\n")
    assert machine.free_memory(torch.device("cpu")) == 3096
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.free_memory(torch.device("cpu")) != 3096


def test_a_missing_extra_is_a_note_that_says_what_for(monkeypatch):
    real = installation.version

    def without(name):
        if name in ("lm-eval", "matplotlib", "jsonschema"):
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(installation, "version", without)
    found = {one.topic: one for one in installation.extras().findings}
    assert found["eval"].said.startswith("not installed; for lm-evaluation-harness")
    assert found["structured"].said.startswith("lacks jsonschema; for tools, structured output")
    assert found["structured"].said.endswith('pip install "deepen-integrations[structured]"')
    assert {one.state for one in found.values()} == {"ok", "note"}


def test_a_version_out_of_bounds_is_wrong(monkeypatch):
    monkeypatch.setattr(installation, "version", lambda name: "0.0.1")
    wrong = {one.topic: one.said for one in installation.versions().findings if one.state == "wrong"}
    assert wrong["torch"] == '0.0.1 is not >=2.6: pip install "torch>=2.6"'
    assert all(one.state == "wrong" for one in installation.extras().findings)


def test_devices_that_are_there_are_listed(monkeypatch):
    cuda = SimpleNamespace(
        device_count=lambda: 1, get_device_name=lambda _: "Toy 3000", mem_get_info=lambda _: (3 << 30, 4 << 30)
    )
    monkeypatch.setattr(machine.torch, "cuda", cuda)
    found = {one.topic: one.said for one in machine.devices().findings}
    assert found["cuda:0"] == "Toy 3000; 3 GiB free"
    assert "cuda" not in found


def test_a_broken_file_of_ensembles_is_wrong(tmp_path, monkeypatch):
    path = tmp_path / "ensembles.yaml"
    path.write_text("- no\n")
    monkeypatch.setenv("DEEPEN_ENSEMBLES", str(path))
    assert findings(doctor("--demo"))["Files"]["named ensembles"]["state"] == "wrong"


def test_the_report_fits_a_terminal(pair):
    result = run("doctor", *pair)
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert result.stdout.endswith("Nothing is wrong.\n")
