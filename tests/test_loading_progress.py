"""What loading says meanwhile, on the error stream and in the log, and that nothing is left for the first request."""

import io
import logging
import re
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
import torch
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
from transformers import AutoModelForCausalLM
from transformers.utils.logging import set_tqdm_hook

from deepen_core import Ensemble, progress
from deepen_core.errors import CompatibilityWarning, ConfigurationError, MemberError, ModelFilesError
from deepen_core.members.collector import collector_paused
from deepen_core.members.transformers import causal, hub
from deepen_core.progress import Steps

STEPS = [
    "alpha: reading its tokenizer",
    "beta: reading its tokenizer",
    "comparing vocabularies",
    "alpha: loading weights",
    "beta: loading weights",
    "alpha: probing how it batches sequences",
    "beta: probing how it batches sequences",
    "preparing the fusion",
]


@pytest.fixture
def models(folders):
    return [folders["alpha"], folders["beta"]]


@pytest.fixture
def trials(monkeypatch):
    """The kinds of models that were tried, as often as that was begun anew."""
    tried, probe = [], causal.probe

    def watched(model, window):
        tried.append(type(model).__name__)
        return probe(model, window)

    monkeypatch.setattr(causal, "probe", watched)
    return tried


def one_at_a_time(monkeypatch, why="its logits are shy"):
    """Makes all models ones that cannot run rows together."""
    probe = causal.probe
    monkeypatch.setattr(causal, "probe", lambda *given: replace(probe(*given), masks=None, why_not=why))


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self):
        return True


# The bar


def screen_of(monkeypatch):
    """A terminal that stderr leads to from here on; pytest sets stderr anew when a test begins."""
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def test_every_step_is_shown_in_one_bar(models, capfd, monkeypatch):
    screen = screen_of(monkeypatch)
    Ensemble.load(models, device="cpu").close()
    assert capfd.readouterr() == ("", "")
    shown = screen.getvalue()
    states = re.findall(r"Loading: +(\d+)%\|[^|]*\| (\d+)/(\d+) \[\d\d:\d\d, ([^\]]+)\]", shown)
    seen = list(dict.fromkeys((int(done), what) for _, done, _, what in states))
    assert [what for _, what in seen] == STEPS
    assert [done for done, _ in seen] == list(range(len(STEPS)))
    assert {total for _, _, total, _ in states} == {str(len(STEPS))}


def test_the_bar_comes_to_its_end_whoever_takes_part(folders, monkeypatch):
    ended, close = [], progress.tqdm.close
    monkeypatch.setattr(progress.tqdm, "close", lambda bar: ended.append((bar.n, bar.total)) or close(bar))
    for names, options in ((["alpha"], {}), (["alpha", "beta", "gamma"], {"weights": [0, 1, 0]})):
        Ensemble.load([folders[n] for n in names], device="cpu", progress=False, **options).close()
        done, total = ended[0]
        assert done == total > 2 * len(names)
        ended.clear()


def test_nothing_is_printed_without_progress(models, capfd, monkeypatch):
    screen = screen_of(monkeypatch)
    with Ensemble.load(models, device="cpu", progress=False) as ensemble:
        ensemble.generate("The dog", max_new_tokens=3)
    assert (screen.getvalue(), *capfd.readouterr()) == ("", "", "")


def test_nothing_is_printed_without_a_terminal(models, capfd, monkeypatch):
    """In a server's log, a notebook or a pipe; nor where there is no stderr at all, as in a service of Windows."""
    with Ensemble.load(models, device="cpu") as ensemble:
        ensemble.generate("The dog", max_new_tokens=3)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", None)
    Ensemble.load(models, device="cpu").close()


def weights_bars():
    """What `transformers` draws for a bar of a caller's, while it may."""
    from transformers.utils.logging import tqdm

    return list(tqdm(range(3), desc="somebody else's"))


def test_bars_of_transformers_are_kept_from_this_load_only(models, monkeypatch, capfd):
    """Another thread's are drawn meanwhile, by the hook that its program has set."""
    hooked, from_pretrained = [], AutoModelForCausalLM.from_pretrained

    def another_loads(*given, **options):
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(weights_bars).result() == [0, 1, 2]
        return from_pretrained(*given, **options)

    def hook(factory, given, options):
        hooked.append(options["desc"])
        return factory(*given, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", another_loads)
    before = set_tqdm_hook(hook)
    try:
        Ensemble.load(models, device="cpu").close()
        assert hooked == ["somebody else's"] * 2
        assert "somebody else's" in capfd.readouterr().err
        assert weights_bars() == [0, 1, 2]
    finally:
        assert set_tqdm_hook(before) is hook


def test_bars_of_transformers_are_shown_as_ours_are(models, monkeypatch):
    screen = screen_of(monkeypatch)
    Ensemble.load(models, device="cpu").close()
    assert "Loading weights" in screen.getvalue()


def test_a_bar_does_not_outlive_a_load_that_fails(models, monkeypatch):
    screen = screen_of(monkeypatch)
    monkeypatch.setattr("deepen_core.engine.builder.try_member", lambda _: pytest.fail("as planned"))
    with pytest.raises(pytest.fail.Exception, match="as planned"):
        Ensemble.load(models, device="cpu")
    assert not progress.tqdm._instances
    assert re.search(r"\r +\r$", screen.getvalue()), "its line is wiped"


def test_the_clock_goes_on_in_a_terminal(monkeypatch):
    screen = screen_of(monkeypatch)
    monkeypatch.setattr(progress, "_TICK_S", 0.01)
    with Steps("Loading", "alpha", 1, shown=True) as work, work.doing("alpha: sleeping"):
        before, until = screen.getvalue().count("sleeping"), time.monotonic() + 30
        while screen.getvalue().count("sleeping") < before + 3:
            assert time.monotonic() < until, "it stands still"
            time.sleep(0.01)
    after = screen.getvalue()
    time.sleep(0.05)
    assert screen.getvalue() == after


# The log


@pytest.mark.parametrize("progress", [True, False])
def test_every_step_is_logged_with_its_seconds(models, caplog, monkeypatch, progress):
    """And nothing that takes long is outside a step: in seconds of computing, which other processes do not stretch."""
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    # The collector goes through whatever earlier tests left, at any moment.
    with collector_paused, caplog.at_level(logging.INFO, logger="deepen_core"):
        Ensemble.load(models, device="cpu", progress=progress).close()
    records = [r for r in caplog.records if r.name == "deepen_core"]
    assert {r.levelno for r in records} == {logging.INFO}
    first, *middle, last = [r.getMessage() for r in records]
    assert first == "Loading alpha and beta"
    assert [m.rpartition(" took ")[0] for m in middle] == STEPS
    seconds = [float(re.fullmatch(r".* took (\d+\.\d) s", m)[1]) for m in [*middle, last]]
    assert last.startswith("Loading alpha and beta took ")
    assert sum(seconds[:-1]) == pytest.approx(seconds[-1], abs=0.06 * len(seconds))


def test_seconds_are_those_of_the_step(caplog):
    with (
        caplog.at_level(logging.INFO, logger="deepen_core"),
        Steps("Loading", "alpha", 2, shown=False) as work,
    ):
        with work.doing("one"):
            time.sleep(0.3)
        with work.doing("two"):
            pass
    assert [r.getMessage() for r in caplog.records[1:3]][1] == "two took 0.0 s"
    assert re.fullmatch(r"one took 0\.[3-9] s", caplog.records[1].getMessage())


def test_lines_of_the_log_do_not_run_into_the_bar(monkeypatch):
    """Where both go to the same terminal, the bar's line is wiped before a line is written."""
    screen = screen_of(monkeypatch)
    handler, logger = logging.StreamHandler(screen), logging.getLogger("deepen_core")
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.manager._clear_cache()
    with Steps("Loading", "alpha", 1, shown=True) as work, work.doing("one"):
        pass
    logger.manager._clear_cache()
    lines = [line.rpartition("\r")[2] for line in screen.getvalue().split("\n")]
    assert lines[:2] == ["Loading alpha", "one took 0.0 s"]


# Files from the hub


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("progress", [True, False])
def test_bars_of_the_hub_are_shown_as_ours_are(folders, monkeypatch, progress, terminal):
    screen = screen_of(monkeypatch)
    silent = []
    monkeypatch.setattr(screen, "isatty", lambda: terminal)

    def fetched(*_, **__):
        silent.append(are_progress_bars_disabled())
        return str(folders["alpha"])

    monkeypatch.setattr(hub.HfApi, "model_info", lambda *_, **__: SimpleNamespace(siblings=None))
    monkeypatch.setattr(hub, "snapshot_download", fetched)
    Ensemble.load(["someone/alpha"], device="cpu", progress=progress).close()
    assert silent == [not (progress and terminal)] * 2
    assert not are_progress_bars_disabled()


def test_bars_of_the_hub_that_the_program_has_turned_off_stay_off(folders, monkeypatch):
    monkeypatch.setattr(hub.HfApi, "model_info", lambda *_, **__: SimpleNamespace(siblings=None))
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(folders["alpha"]))
    with disable_progress_bars():
        Ensemble.load(["someone/alpha"], device="cpu").close()
        assert are_progress_bars_disabled()


# The trial


def test_members_are_tried_before_the_first_request(models, trials):
    with Ensemble.load(models, device="cpu", progress=False) as ensemble:
        assert set(trials) == {"GPT2LMHeadModel", "LlamaForCausalLM"}
        trials.clear()
        assert [m.batching for m in ensemble.info.members] == ["ragged", "ragged"]
        ensemble.generate(["The dog", "Once"], max_new_tokens=3)
        assert trials == []


def test_a_member_that_is_never_run_is_not_tried(models, trials, monkeypatch):
    one_at_a_time(monkeypatch)
    with pytest.warns(CompatibilityWarning) as said:
        ensemble = Ensemble.load(models, weights=[1, 0], device="cpu", progress=False)
    with ensemble:
        assert [m.batching.partition(":")[0] for m in ensemble.info.members] == ["one sequence at a time", "never run"]
        ensemble.generate("The dog", max_new_tokens=3)
    assert set(trials) == {"GPT2LMHeadModel"}
    assert [str(w.message)[:15] for w in said] == ["Member 'alpha' "]


def test_main_is_tried_whatever_its_weight(models, trials):
    Ensemble.load(models, weights=[0, 1], device="cpu", progress=False).close()
    assert set(trials) == {"GPT2LMHeadModel", "LlamaForCausalLM"}


@pytest.mark.parametrize(
    ("problem", "error", "message"),
    [
        (
            torch.OutOfMemoryError("no room"),
            ConfigurationError,
            r"^alpha fits on cpu, but leaves no memory to run it\. Use another device, or",
        ),
        (AssertionError("odd heads"), MemberError, r"^Member 'alpha' failed when it was tried .*: odd heads\. Run the"),
    ],
)
def test_a_member_that_cannot_be_tried(models, monkeypatch, problem, error, message):
    def failing(*_):
        raise problem

    monkeypatch.setattr(causal, "probe", failing)
    with pytest.raises(error, match=message) as caught:
        Ensemble.load(models, device="cpu", progress=False)
    assert caught.value.__cause__ is problem


def test_what_the_device_says_of_memory_while_weights_are_loaded(models, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("MPS backend out of memory")

    monkeypatch.setattr("torch.nn.Module.to", full)
    with pytest.raises(ConfigurationError, match="alpha does not fit on cpu"):
        Ensemble.load(models, device="cpu", progress=False)
    monkeypatch.setattr("torch.nn.Module.to", lambda *_: {}["gone"])
    with pytest.raises(ModelFilesError):
        Ensemble.load(models, device="cpu", progress=False)


# One row at a time


def test_members_that_run_one_row_at_a_time_are_warned_of(models, monkeypatch):
    one_at_a_time(monkeypatch)
    with pytest.warns(CompatibilityWarning) as said:
        ensemble = Ensemble.load(models, device="cpu", progress=False)
    with ensemble:
        messages = [str(w.message) for w in said]
        assert messages == ensemble.info.warnings
        for name, message in zip(["alpha", "beta"], messages, strict=True):
            assert message.startswith(
                f"Member {name!r} runs one sequence at a time: its logits are shy. It processes the requests"
            )
            assert "a batch of 8 is no faster than 8 calls" in message
            assert message.endswith("use another model instead.")
    assert {w.filename for w in said} == {__file__}


def test_members_that_run_rows_together_are_not(models):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        Ensemble.load(models, device="cpu", progress=False).close()
    assert said == []


def test_a_state_space_model_is_warned_of_with_what_it_costs(tmp_path, folders):
    """It runs one sequence at a time, but no text again from its start."""
    tiny.save_mamba(tmp_path / "mamba", tiny.wordpiece())
    why = "one sequence at a time: its state cannot be shortened, so copies of it are kept"
    with pytest.warns(CompatibilityWarning, match=f"Member 'mamba' runs {why}\\. It processes"):
        ensemble = Ensemble.load([folders["alpha"], tmp_path / "mamba"], device="cpu", progress=False)
    with ensemble:
        assert all("run again" not in warning for warning in ensemble.info.warnings)
        assert ensemble.generate("the dog", max_new_tokens=3, ignore_eos=True).token_ids
