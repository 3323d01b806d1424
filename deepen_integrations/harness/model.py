"""The model that lm-evaluation-harness asks: an ensemble behind the harness's kinds of requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import simple_parse_args_string
from tqdm.auto import tqdm
from typing_extensions import Self

from deepen_core.chat.prompt_encoder import no_template
from deepen_core.config.sampling import ANSWER_TOKENS
from deepen_core.errors import ContextWindowError
from deepen_integrations.harness.answering import Question, question
from deepen_integrations.harness.arguments import load_options
from deepen_integrations.harness.conversation import as_text, split_pair
from deepen_integrations.harness.fitting import fitted, rolling_windows
from deepen_integrations.shared_ensembles import shared_ensemble

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from deepen_core import Ensemble
    from deepen_core.results import Score

T = TypeVar("T")

_TOGETHER = 64
"""Pairs that are prepared at once; several share a forward."""
_DOCUMENTS = 16
"""Documents that are prepared at once."""
_SPARE = 8
"""Tokens of the smallest window that texts leave free which had to be made shorter."""


@register_model("deepen")
class DeepenHarnessLM(LM):  # type: ignore[misc]  # the harness has no types
    """An ensemble as a model of lm-evaluation-harness.

    Log-likelihoods are those of the fused distribution over main's tokens, and answers are decoded from it. Contexts
    are texts, or conversations as `apply_chat_template` writes them, which each member reads by its own chat template.

    Args:
        ensemble: An open ensemble.
        max_gen_toks: Most tokens of an answer, where the task does not say.
        seed: Of answers that are sampled.
        owner: Kept alive as long as the model, since the ensemble is closed with it.
    """

    def __init__(
        self, ensemble: Ensemble, *, max_gen_toks: int = ANSWER_TOKENS, seed: int = 0, owner: object = None
    ) -> None:
        super().__init__()
        self._ensemble = ensemble
        self._max_gen_toks = max_gen_toks
        self._seed = seed
        self._owner = owner

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> Self:
        """Loads the ensemble that `--model_args` describes, such as `models=./general;./specialist,weights=0.7;0.3`.

        Args:
            arg_string: Options, see `arguments.load_options`; also `max_gen_toks` and `seed`.
            additional_config: The harness's own: `batch_size`, `max_batch_size` and `device`.

        Raises:
            DeepenError: If the ensemble cannot be loaded.
        """
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> Self:
        """Loads the ensemble that a mapping describes, see `create_from_arg_string`."""
        given = {**(additional_config or {}), **arg_dict}
        own = {name: given.pop(name) for name in ("max_gen_toks", "seed") if name in given}
        shared = shared_ensemble(load_options(given))
        return cls(shared.ensemble(progress=True), owner=shared, **own)

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns the log-likelihood (nats) of continuations, and whether greedy decoding would give each.

        An empty context is BOS, or EOS for a member without BOS. A context that is too long loses its beginning.

        Args:
            requests: Their `args` are a context and a continuation.
            disable_tqdm: Show no bar.

        Raises:
            DeepenError: If a text cannot be scored.
        """
        order = sorted(range(len(requests)), key=lambda place: requests[place].args)  # equal beginnings are shared
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with self._bar("loglikelihood", len(requests), disable_tqdm) as bar:
            for part in _parts(order, _TOGETHER):
                scores = self._fitting(partial(self._pairs, [requests[place].args for place in part]))
                for place, score in zip(part, scores, strict=True):
                    found[place] = score.total, all(score.greedy or ())
                    self.cache_hook.add_partial("loglikelihood", requests[place].args, found[place])
                    bar.update()
        return found

    def _pairs(self, asked: Sequence[tuple[str, str]], share: float | None) -> list[Score]:
        """Returns the scores of contexts and continuations; contexts are made to fit a share of the windows."""
        pairs = [split_pair(*one) for one in asked]
        if share is not None:
            pairs = [(fitted(self._ensemble, prompt, text, share), text) for prompt, text in pairs]
        return self._ensemble.score([prompt for prompt, _ in pairs], [text for _, text in pairs], greedy=True)

    def _fitting(self, work: Callable[[float | None], T]) -> T:
        """Returns the result of some work, done again with a share of the members' windows if they are too small."""
        try:
            return work(None)
        except ContextWindowError:  # the states of a text may be longer than the text
            return work(1.0 - _SPARE / self._ensemble.context_window)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood (nats) of whole documents, each after BOS (or EOS) alone.

        A document that is longer than the windows is read in pieces, see `fitting.rolling_windows`.

        Args:
            requests: Their `args` are a text.
            disable_tqdm: Show no bar.

        Raises:
            DeepenError: If a text cannot be scored.
        """
        found: list[float] = []
        with self._bar("loglikelihood_rolling", len(requests), disable_tqdm) as bar:
            for part in _parts(requests, _DOCUMENTS):
                totals = self._fitting(partial(self._documents, [request.args[0] for request in part]))
                for request, total in zip(part, totals, strict=True):
                    found.append(total)
                    self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
                    bar.update()
        return found

    def _documents(self, texts: Sequence[str], share: float | None) -> list[float]:
        """Returns the log-likelihoods of documents, whose windows take at most a share of the members' own."""
        windows = [rolling_windows(self._ensemble, text, 1.0 if share is None else share) for text in texts]
        pairs = [pair for several in windows for pair in several]
        scores = iter(self._ensemble.score([prompt for prompt, _ in pairs], [piece for _, piece in pairs]))
        return [float(sum(score.total for score in islice(scores, len(several)))) for several in windows]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns answers, decoded together, each up to the first of its stop strings.

        A context that leaves too little room for `max_gen_toks` loses its beginning. Thoughts before an answer are left
        out.

        Args:
            requests: Their `args` are a context and options: `until`, `max_gen_toks`, `do_sample`, `temperature`, and
                options of `SamplingParams`.
            disable_tqdm: Show no bar.

        Raises:
            SamplingError: For an option that is unknown.
            DeepenError: If an answer cannot be decoded.
        """
        order = sorted(range(len(requests)), key=lambda place: str(requests[place].args[0]))
        asked = {place: self._question(requests[place], place) for place in order}
        handles = {place: self._ensemble.submit(one.prompt, one.params) for place, one in asked.items()}
        found = [""] * len(requests)
        try:
            with self._bar("generate_until", len(requests), disable_tqdm) as bar:
                for place in order:
                    found[place] = asked[place].answer(handles[place].result().text)
                    del handles[place]
                    self.cache_hook.add_partial("generate_until", requests[place].args, found[place])
                    bar.update()
        finally:
            for handle in handles.values():  # if one fails, nobody waits for the others
                handle.cancel()
        return found

    def _question(self, request: Instance, place: int) -> Question:
        context, options = request.args
        return question(self._ensemble, context, options, max_gen_toks=self._max_gen_toks, seed=self._seed + place)

    def _bar(self, kind: str, total: int, disable: bool) -> tqdm[Any]:
        return tqdm(total=total, desc=f"Running {kind} requests", disable=disable or self.rank != 0)

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """Returns a conversation as a text that this model reads again, see `conversation`.

        Args:
            chat_history: The messages.
            add_generation_prompt: False if the last message begins the answer.

        Raises:
            ChatTemplateError: If a member has no chat template.
            PromptError: If the last message should begin the answer, and is not the assistant's.
        """
        if not self._ensemble.has_chat_template:
            raise no_template([m.name for m in self._ensemble.info.members if not m.has_chat_template])
        return as_text(chat_history, begins_answer=not add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns what to record of the chat templates: there is no common one."""
        if chat_template is False:
            return None
        return f"Messages as JSON, which each member reads by its own chat template: {', '.join(self._names)}"

    @property
    def tokenizer_name(self) -> str:
        """Distinguishes requests in the harness's caches: conversations are the same for all ensembles."""
        return "deepen-messages"

    @property
    def _names(self) -> list[str]:
        return [member.name for member in self._ensemble.info.members]

    def get_model_info(self) -> dict[str, Any]:
        """Returns facts about the ensemble, which the harness adds to its results."""
        info = self._ensemble.info
        return {
            "model_num_parameters": sum(member.parameters for member in info.members),
            "model_dtype": ", ".join(dict.fromkeys(member.dtype for member in info.members)),
            "members": {member.name: member.weight for member in info.members},
            "main": info.main,
            "fusion": info.fusion,
            "weight_policy": info.weight_policy,
            "gate": info.gate,
        }


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
