"""An ensemble as a model of lm-evaluation-harness: how it is given, and what the harness keeps of its answers."""

import pytest
from harness_parts import CHAT, FOX, PAIRS, requests
from lm_eval.api.model import CachingLM
from lm_eval.api.registry import get_model

from deepen_core import Ensemble
from deepen_core.errors import ConfigurationError
from deepen_integrations.harness import DeepenHarnessLM
from deepen_integrations.harness.arguments import load_options


class TestTheHarnessesCache:
    def test_what_is_known_is_not_asked_again(self, pair, tmp_path, monkeypatch):
        cached = CachingLM(DeepenHarnessLM(pair), str(tmp_path / "answers.db"))
        asked = {
            "loglikelihood": requests(*PAIRS, (DeepenHarnessLM(pair).apply_chat_template(CHAT), "By")),
            "loglikelihood_rolling": requests((FOX,), ("你好",)),
            "generate_until": requests((FOX, {"max_gen_toks": 3}), ("Once", {"max_gen_toks": 3})),
        }
        found = {kind: getattr(cached, kind)(several) for kind, several in asked.items()}
        for name in ("score", "submit"):
            monkeypatch.setattr(Ensemble, name, lambda *_, **__: pytest.fail("asked again"))
        again = {kind: [*map(_plain, getattr(cached, kind)(several))] for kind, several in asked.items()}
        assert again == {kind: [*map(_plain, answers)] for kind, answers in found.items()}

    def test_answers_are_kept_while_others_are_missing(self, pair, tmp_path, monkeypatch):
        cached = CachingLM(DeepenHarnessLM(pair), str(tmp_path / "answers.db"))
        monkeypatch.setattr("deepen_integrations.harness.model._TOGETHER", 2)
        whole, calls = Ensemble.score, []

        def breaks(*given, **options):
            if len(calls) == 2:
                raise KeyboardInterrupt
            calls.append(given)
            return whole(*given, **options)

        monkeypatch.setattr(Ensemble, "score", breaks)
        with pytest.raises(KeyboardInterrupt):
            cached.loglikelihood(requests(*PAIRS))
        assert len(cached.dbdict) == 4


def _plain(answer):
    return tuple(answer) if isinstance(answer, (tuple, list)) else answer


class TestArguments:
    """What `lm_eval --model deepen --model_args ...` loads."""

    def test_a_string(self, folders, monkeypatch):
        models = f"{folders['alpha']};{folders['beta']}"
        text = f"models={models},weights=0.7;0.3,main=beta,fusion=product,max_gen_toks=3"
        model = get_model("deepen").create_from_arg_string(text, {"batch_size": 4, "device": "cpu"})
        facts = model.get_model_info()
        assert facts["members"] == {"alpha": 0.7, "beta": 0.3}
        assert (facts["main"], facts["fusion"], facts["model_dtype"]) == ("beta", "product", "float32")
        [answer] = model.generate_until(requests((FOX, {})), disable_tqdm=True)
        with Ensemble.load(
            [folders["alpha"], folders["beta"]], weights=[0.7, 0.3], main=1, fusion="product", device="cpu"
        ) as ensemble:
            assert answer == ensemble.generate(FOX, max_new_tokens=3).text

    def test_a_mapping(self, folders):
        model = DeepenHarnessLM.create_from_arg_obj({"models": [str(folders["alpha"])], "device": "cpu"})
        assert list(model.get_model_info()["members"]) == ["alpha"]

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({}, {"models": "demo", "max_batch_size": 32}),
            ({"weights": "adaptive", "batch_size": 1}, {"weights": "adaptive", "max_batch_size": 32}),
            ({"weights": "perplexity:1;3"}, {"weights": "perplexity:1,3"}),
            ({"weights": "1;3", "batch_size": "auto:4"}, {"weights": (1.0, 3.0), "max_batch_size": 32}),
            ({"models": "x", "weights": 1, "batch_size": "8"}, {"weights": (1.0,), "max_batch_size": 8}),
            ({"batch_size": 4, "max_batch_size": 7, "device": None}, {"max_batch_size": 7, "device": None}),
        ],
    )
    def test_options(self, given, expected):
        options = load_options(given)
        assert {name: getattr(options, name) for name in expected} == expected

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"batch_size": "many"}, "batch_size is 'many'"),
            ({"weights": "a;b"}, "weights is 'a;b': give numbers such as 0.7;0.3"),
            ({"modles": "x"}, "modles"),
        ],
    )
    def test_options_that_are_wrong(self, given, message):
        with pytest.raises(ConfigurationError, match=message):
            load_options(given)
