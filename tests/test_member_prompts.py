"""Members that are shown prompts in a form of their own."""

import pickle

import pytest
from cli_parts import run as deepen
from tiny import byte_level

from deepen_core import Ensemble, MemberConfig, SamplingParams
from deepen_core.chat.prompt_form import PromptForm
from deepen_core.errors import ChatTemplateError, ConfigurationError, EvaluationError, PromptError
from deepen_core.evaluation.items import ChoiceItem, Task
from deepen_core.evaluation.plan import Plan
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_integrations.langchain import ChatDeepen, DeepenLLM
from deepen_integrations.llama_index import DeepenLLM as LlamaIndexLLM

ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who sleeps?"}]
OPTIONS = {"max_new_tokens": 12, "ignore_eos": True}


def upper(prompt):
    """A function that can be pickled."""
    return prompt.upper() if isinstance(prompt, str) else "SAID: " + prompt[-1]["content"]


@pytest.mark.parametrize(
    ("form", "prompt", "shown"),
    [
        (PromptForm(), "x", "x"),
        (PromptForm(), ASKED, ASKED),
        (PromptForm("Q: {prompt}\nA:"), "x {prompt}", "Q: x {prompt}\nA:"),
        (PromptForm("Q: {prompt}\nA:"), ASKED, "Q: Who sleeps?\nA:"),
        (PromptForm("{prompt} {prompt}"), [{"role": "user", "content": ["a", {"type": "text", "text": "b"}]}], "ab ab"),
        (PromptForm("chat"), "x", [{"role": "user", "content": "x"}]),
        (PromptForm("chat"), ASKED, ASKED),
        (PromptForm(upper), "x", "X"),
        (PromptForm(upper), ASKED, "SAID: Who sleeps?"),
        (PromptForm(None, "Do."), "x", "x"),
        (PromptForm(None, "Do."), ASKED[1:], [{"role": "system", "content": "Do."}, ASKED[1]]),
        (PromptForm(None, "Do."), ASKED, [{"role": "system", "content": "Do.\n\nBe brief."}, ASKED[1]]),
        (PromptForm("chat", "Do."), "x", [{"role": "system", "content": "Do."}, {"role": "user", "content": "x"}]),
        (PromptForm("Q: {prompt}", "Do."), ASKED, "Q: Who sleeps?"),
    ],
)
def test_what_a_member_is_shown(form, prompt, shown):
    assert form.shown(prompt) == shown


def test_labels():
    assert [
        form.label for form in (PromptForm(), PromptForm("x {prompt}"), PromptForm(upper), PromptForm("chat", "Do."))
    ] == [
        "{prompt}",
        "x {prompt}",
        f"{upper.__module__}.upper",
        "chat after 'Do.'",
    ]


def test_other_forms_are_another_evaluation(load, tmp_path):
    task = Task("x", (ChoiceItem("Who sleeps?", ("the dog", "the fox"), 0),))
    plan = Plan([task], fusions=["product"], policies=[], gates=[])
    with load("alpha", "beta") as ensemble:
        ensemble.evaluate(plan, output=tmp_path, progress=False)
    with load("alpha", "beta", prompts=[None, "chat"]) as ensemble, pytest.raises(EvaluationError, match="prompts was"):
        ensemble.evaluate(plan, output=tmp_path, progress=False)


def starts(ensemble, prompt):
    """The ids that each member starts from."""
    sequence = ensemble._engine.decoder.start(prompt, SamplingParams(max_new_tokens=4))
    return [part.ids for part in sequence.member_sequences]


@pytest.mark.parametrize("main", [0, 1])
def test_each_member_starts_from_its_own(load, folders, main):
    template = "Question: {prompt}\nAnswer:"
    for prompt in ("Who sleeps?", ASKED):
        with load("alpha", "beta", main=main) as plain:
            own, _ = starts(plain, prompt)
            _, told = starts(plain, "Question: Who sleeps?\nAnswer:")
        for prompts in ([None, template], {"beta": template}):
            with load("alpha", "beta", main=main, prompts=prompts) as ensemble:
                assert starts(ensemble, prompt) == [own, told]
    models = [str(folders["alpha"]), MemberConfig(model=str(folders["beta"]), prompt=template)]
    with Ensemble.load(models, main=main, device="cpu", progress=False) as ensemble:
        assert starts(ensemble, "Who sleeps?")[1] == told


def test_a_text_as_a_conversation(load):
    with load("alpha", "beta") as plain:
        own = starts(plain, "Who sleeps?")
        talked = starts(plain, [{"role": "user", "content": "Who sleeps?"}])
    with load("alpha", "beta", prompts=["chat", None]) as ensemble:
        assert starts(ensemble, "Who sleeps?") == [talked[0], own[1]]
        assert ensemble.generate("Who sleeps?", **OPTIONS).text


def test_an_instruction_for_one_member(folders, load):
    models = [str(folders["alpha"]), MemberConfig(model=str(folders["beta"]), system="Be brief.")]
    with load("alpha", "beta") as plain:
        expected = [starts(plain, ASKED[1:])[0], starts(plain, ASKED)[1]]
    with Ensemble.load(models, device="cpu", progress=False) as ensemble:
        assert starts(ensemble, ASKED[1:]) == expected


def test_a_member_without_a_chat_template_takes_part_in_chats(load):
    with load("alpha", "gamma") as ensemble, pytest.raises(ChatTemplateError, match="'gamma' has no chat template"):
        ensemble.generate(ASKED, **OPTIONS)
    with load("alpha", "gamma", prompts={"gamma": "{prompt}\n"}, chat=True) as ensemble:
        assert ensemble.has_chat_template
        assert ensemble.generate(ASKED, **OPTIONS).text
        assert starts(ensemble, ASKED)[1] == starts(ensemble, "Who sleeps?")[1]


def test_what_a_function_changes_is_its_own(load):
    """The messages that it is given are a copy."""

    def instructed(prompt):
        prompt.insert(0, {"role": "system", "content": "Be brief."})
        return prompt

    with load("alpha", "beta") as plain:
        expected = [starts(plain, ASKED)[0], starts(plain, ASKED[1:])[1]]
    with load("alpha", "beta", prompts=[instructed, None]) as ensemble:
        assert starts(ensemble, ASKED[1:]) == expected
        assert len(ASKED) == 2


def test_a_function_can_stand_in_for_a_chat_template(load):
    with load("alpha", "gamma", prompts={"gamma": upper}, chat=True) as ensemble:
        assert ensemble.generate(ASKED, **OPTIONS).text
    with pytest.raises(ChatTemplateError, match="'gamma' has no chat template"):
        load("alpha", "gamma", prompts={"gamma": "chat"})


def test_answers_are_the_same_where_the_form_changes_nothing(load):
    with load("alpha", "beta") as plain, load("alpha", "beta", prompts=["{prompt}", "{prompt}"]) as ensemble:
        for prompt in ("The quick bro", "x"):
            assert ensemble.generate(prompt, **OPTIONS).token_ids == plain.generate(prompt, **OPTIONS).token_ids


def test_only_a_prompt_that_ends_what_is_shown_may_be_cut(load):
    for prompts, cut in (
        (None, [True, True]),
        ([None, "{prompt}"], [True, True]),
        ([None, "{prompt}\n"], [True, False]),
        (["{prompt}\n", None], [False, False]),
        (["chat", None], [False, False]),
        ([None, "chat"], [True, False]),
        ([None, upper], [True, False]),
    ):
        with load("alpha", "beta", prompts=prompts) as ensemble:
            sequence = ensemble._engine.decoder.start("The quick bro", SamplingParams(max_new_tokens=4))
            assert [part.cut for part in sequence.member_sequences] == cut


def test_prompts_are_counted_as_they_are_shown(load):
    template = "Here is a question that somebody has asked: {prompt}\nAnswer:"
    with load("alpha", "beta") as plain, load("alpha", "beta", prompts=[None, template]) as ensemble:
        for prompt in ("Who sleeps?", ASKED):
            counted = len(starts(ensemble, prompt)[1]) - 1  # without BOS
            assert ensemble.budget.count(prompt) >= counted
        told = template.replace("{prompt}", "Who sleeps?")
        assert ensemble.budget.count("Who sleeps?") == len(plain._engine.members[1].tokenizer.encode(told))


def test_texts_are_scored_after_what_is_shown(load):
    template, text = "Question: {prompt}\nAnswer:", " the lazy dog"
    with load("alpha", "beta", prompts=[None, template], weights="static") as ensemble:
        scores = ensemble.score("Who sleeps?", text)
    with load("alpha", "beta", weights="static") as plain:
        own = plain.score("Who sleeps?", text), plain.score(template.replace("{prompt}", "Who sleeps?"), text)
    for number in (0, 1):
        assert scores.members[number].logprobs == pytest.approx(own[number].members[number].logprobs, abs=1e-4)
    assert scores.logprobs != pytest.approx(own[0].logprobs, abs=1e-4)


class TestMistakes:
    @pytest.mark.parametrize(
        ("prompts", "message"),
        [
            ([None], "prompts: give one for each of the members alpha, beta"),
            ("chat", "prompts: give one for each"),
            ({"gamma": "chat"}, "prompts: 'gamma' is none of the members alpha, beta"),
            ([None, "Question:"], r"prompts: 'Question:' has no \{prompt\} where the prompt belongs"),
            ([None, 5], "prompts: 5 is not a template"),
        ],
    )
    def test_are_told_before_anything_is_loaded(self, load, prompts, message, monkeypatch):
        monkeypatch.setattr("deepen_core.ensemble.describe_member", lambda *_, **__: pytest.fail("read"))
        with pytest.raises(ConfigurationError, match=message):
            load("alpha", "beta", prompts=prompts)

    def test_in_a_member(self):
        with pytest.raises(ConfigurationError, match=r"has no \{prompt\}"):
            MemberConfig.parse({"model": "x", "prompt": "y"}, ConfigurationError)

    def test_of_a_function(self):
        def none(_prompt):
            return None

        def broken(_prompt):
            raise KeyError("x")

        for function, message in (
            (none, "Message|conversation|sequence"),
            (broken, "of member 'm' failed: KeyError: 'x'"),
        ):
            reader = MemberTokenizer(byte_level(), "m", form=PromptForm(function, name="m")).reader
            with pytest.raises(PromptError, match=message):
                reader.read_text("x")


class TestFromTheAdapters:
    def test_survive_copies_and_pickles(self, folders):
        models = [str(folders["alpha"]), str(folders["beta"])]
        for kind in (DeepenLLM, LlamaIndexLLM):
            for prompts in ([None, "Question: {prompt}\nAnswer:"], {"beta": "Question: {prompt}\nAnswer:"}):
                llm = kind(models=models, prompts=prompts, device="cpu", max_new_tokens=4)
                again = pickle.loads(pickle.dumps(llm))
                assert again.prompts == llm.prompts == llm.model_copy().prompts
                assert len(llm.prompts) == 2
        assert starts(llm.ensemble, "Who?")[1] == starts(llm.ensemble, [{"role": "user", "content": "Who?"}])[1]

    @pytest.mark.parametrize("kind", [DeepenLLM, LlamaIndexLLM])
    def test_functions_are_refused(self, kind):
        """They could be neither saved nor compared."""
        for options in ({"prompts": [upper, None]}, {"models": ["a", MemberConfig(model="b", prompt=upper)]}):
            with pytest.raises(ConfigurationError, match="a function cannot be saved with an adapter: give a template"):
                kind(**{"models": ["a", "b"], **options})

    def test_a_base_model_in_a_chat(self, folders):
        chat = ChatDeepen(
            models=[str(folders["alpha"]), str(folders["gamma"])],
            prompts={"gamma": "{prompt}\n"},
            device="cpu",
            max_tokens=4,
        )
        assert chat.invoke("Who sleeps?").content is not None

    def test_mistakes(self):
        with pytest.raises(ConfigurationError, match="give one for each of the members a, b"):
            DeepenLLM(models=["a", "b"], prompts=["chat"])


def test_on_the_command_line(fake):
    result = deepen("generate", "text", "-m", "a", "-m", "b", "--prompt", r"b=Question: {prompt}\nAnswer:")
    assert result.exit_code == 0, result.output
    assert fake.opened["prompt"] == [r"b=Question: {prompt}\nAnswer:"]


def test_the_command_reads_forms(folders):
    models = ["-m", str(folders["alpha"]), "-m", str(folders["beta"])]
    result = deepen("generate", "Who", *models, "--max-new-tokens", "3", "--prompt", r"beta=Q: {prompt}\nA:")
    assert result.exit_code == 0, result.output
    for wrong, message in (("x", "is not MEMBER=TEMPLATE"), ("gamma=chat", "'gamma' is none of the members")):
        result = deepen("generate", "Who", *models, "--prompt", wrong)
        assert result.exit_code in (1, 2)
        assert message in " ".join(result.output.replace("│", " ").split())
