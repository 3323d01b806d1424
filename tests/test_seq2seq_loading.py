"""What encoder-decoder members are made of: languages, windows, prompts, and what is wrong with them."""

import json
import shutil

import pytest
import tiny_seq2seq
from cli_parts import run as deepen
from seq2seq_parts import LANGUAGES, Alone, config

from deepen_core import Ensemble, MemberConfig
from deepen_core.errors import ConfigurationError, ModelFilesError, PromptError
from deepen_core.members.loading import describe_member, member_configs
from deepen_integrations.langchain import ChatDeepen, DeepenLLM
from deepen_integrations.llama_index import DeepenLLM as LlamaIndexLLM
from deepen_integrations.load_options import LoadOptions
from deepen_integrations.model_facts import facts_from_files

ASKED = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Once upon a time"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Mira lived near the sea."},
]


@pytest.fixture
def changed(tmp_path, seq2seq_folders):
    """A copy of a model, with other values in one of its files."""

    def change(family, file, **values):
        folder = shutil.copytree(seq2seq_folders[family], tmp_path / family)
        path = folder / file
        held = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({name: value for name, value in held.items() if value is not None}))
        return folder

    return change


def described(entry, **options):
    [only] = member_configs([entry])
    return describe_member(only, "cpu", None, progress=False, **options)


def read(entry, prompt):
    reader = described(entry).tokenizer.reader
    return reader.read_text(prompt) if isinstance(prompt, str) else reader.read_messages(prompt)


@pytest.mark.parametrize("text", ["Mira lived near the sea.", "</s> is <s> text <pad>", "fra_Latn \n two  blanks "])
@pytest.mark.parametrize("family", tiny_seq2seq.FAMILIES)
def test_prompts_are_what_the_tokenizer_makes_of_them(seq2seq_folders, family, text):
    """And control tokens in them are text."""
    alone = Alone(seq2seq_folders[family], family)
    found = read(config(seq2seq_folders, family), text)
    assert found.ids == alone.start
    assert (found.text, found.inside, found.cut) == ("", False, False)
    encoded = alone.tokenizer(text, split_special_tokens=True)["input_ids"]
    ends = alone.tokenizer("a")["input_ids"]
    assert found.source[-1] == ends[-1]
    special = set(alone.tokenizer.all_special_ids) - {alone.tokenizer.unk_token_id}
    inner = found.source[1:-1] if ends[0] in special else found.source[:-1]
    assert not special & set(inner)
    if "<" not in text and "_" not in text:
        assert list(found.source) == encoded


def test_control_tokens_where_they_are_asked_for(seq2seq_folders):
    reader = described(config(seq2seq_folders, "bart")).tokenizer.reader
    found = reader.read_text("a<mask>b</s>", control_tokens=True).source
    assert list(found) == Alone(seq2seq_folders["bart"], "bart").tokenizer("a<mask>b")["input_ids"]


class TestLanguages:
    def test_are_tokens_before_source_and_answer(self, seq2seq_folders):
        tokenizer = tiny_seq2seq.nllb_tokenizer()
        german, english, french = tokenizer.convert_tokens_to_ids(tiny_seq2seq.LANGUAGES)
        found = read(config(seq2seq_folders, "nllb"), "a")
        assert (found.source[0], found.ids) == (german, [2, french])
        found = read(MemberConfig(model=str(seq2seq_folders["nllb"]), target_language="deu_Latn"), "a")
        assert (found.source[0], found.ids) == (english, [2, german])  # the tokenizer's own default
        assert read(str(seq2seq_folders["nllb"]), "a").ids == [2]

    def test_as_older_models_have_them(self, changed):
        folder = changed("nllb", "tokenizer_config.json", legacy_behaviour=True)
        german = tiny_seq2seq.nllb_tokenizer().convert_tokens_to_ids("deu_Latn")
        assert read(MemberConfig(model=str(folder), **LANGUAGES), "a").source[-2:] == (2, german)

    @pytest.mark.parametrize(
        ("family", "options", "part"),
        [
            ("nllb", {"target_language": "French"}, "target_language is 'French', which is not a token of .*deu_Latn"),
            ("nllb", {"source_language": "a"}, "source_language is 'a', which is not a token"),
            ("bart", {"source_language": "deu_Latn"}, "does not mark the language of texts: leave it out"),
            ("marian", {"target_language": "fr"}, "Tokens of that kind: <s>"),
        ],
    )
    def test_that_a_model_does_not_have(self, seq2seq_folders, family, options, part):
        with pytest.raises(ConfigurationError, match=part):
            described(MemberConfig(model=str(seq2seq_folders[family]), **options))

    def test_of_a_model_without_an_encoder(self, folders):
        with pytest.raises(ConfigurationError, match="not an encoder-decoder model") as caught:
            described(MemberConfig(model=str(folders["alpha"]), target_language="fra_Latn"))
        assert "so target_language cannot be set" in str(caught.value)

    def test_on_the_command_line(self, seq2seq_folders):
        member = ["-m", str(seq2seq_folders["nllb"]), "--device", "cpu", "--max-new-tokens", "8"]
        result = deepen("generate", "Der Hund", *member, "--languages", "nllb=deu_Latn:fra_Latn", "--json")
        assert result.exit_code == 0, result.output
        said = json.loads(result.stdout)["token_ids"]
        assert said == Alone(seq2seq_folders["nllb"], "nllb").greedy("Der Hund", 8)
        wrong = deepen("generate", "Der Hund", *member, "--languages", "other=deu_Latn:fra_Latn")
        assert wrong.exit_code == 2
        table = deepen("info", *member[:4]).stdout
        assert "(encoder-decoder)" in table.replace("\n", "")

    def test_are_part_of_what_an_evaluation_depends_on(self, seq2seq_folders):
        labels = {
            described(entry).tokenizer.reader.label
            for entry in (config(seq2seq_folders, "nllb"), MemberConfig(model=str(seq2seq_folders["nllb"])))
        }
        assert len(labels) == 2


class TestFiles:
    def test_a_decoder_without_a_start(self, changed):
        folder = changed("t5", "generation_config.json", decoder_start_token_id=None)
        path = folder / "config.json"
        held = json.loads(path.read_text())
        path.write_text(json.dumps({n: v for n, v in held.items() if n != "decoder_start_token_id"}))
        with pytest.raises(ConfigurationError, match="does not say with which token its decoder starts"):
            described(str(folder))

    @pytest.mark.parametrize("name", ["decoder_start_token_id", "forced_bos_token_id", "eos_token_id"])
    def test_ids_that_are_none(self, changed, name):
        with pytest.raises(ModelFilesError, match=f"has the {name} 'x'"):
            described(str(changed("bart", "generation_config.json", **{name: "x"})))

    def test_what_answers_never_contain(self, changed):
        folder = changed("bart", "generation_config.json", bad_words_ids=[[5], [6, 7]], suppress_tokens=[8])
        assert described(str(folder)).text.ruled_out == [5, 8]

    def test_pickled_weights(self, changed):
        folder = changed("t5", "config.json")
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(ModelFilesError, match=r"AutoModelForSeq2SeqLM\.from_pretrained"):
            described(str(folder))


class TestWindows:
    @pytest.mark.parametrize(
        ("family", "values", "options", "expected"),
        [
            ("bart", {}, {}, (128, 128)),
            ("bart", {}, {"context_window": 64}, (64, 64)),
            ("t5", {"n_positions": 99}, {}, (99, 99)),
            ("bart", {"max_encoder_position_embeddings": 512}, {}, (512, 128)),  # LED
        ],
    )
    def test_of_both_halves(self, changed, family, values, options, expected):
        found = described(MemberConfig(model=str(changed(family, "config.json", **values)), **options))
        assert (found.text.source_window, found.context_window) == expected

    def test_are_capped_together(self, seq2seq_folders):
        found = described(str(seq2seq_folders["bart"]), max_window=50)
        assert (found.text.source_window, found.context_window) == (50, 50)

    def test_prompts_are_planned_for_the_encoder(self, seq2seq_folders):
        with Ensemble.load([config(seq2seq_folders, "bart")], progress=False, device="cpu") as ensemble:
            text = "The quick brown fox"
            assert ensemble.budget.count(text) == ensemble.count_tokens(text)
            assert ensemble.budget.count(ASKED) == ensemble.count_tokens(ASKED[-1]["content"]) + 2
            assert 100 < ensemble.planning_window < 128
            assert ensemble.info.context_window == ensemble.context_window == 128
            answer = "The quick brown fox jumps over the lazy dog. " * 3
            assert ensemble.budget.share(answer, "fox") == (ensemble.count_tokens(answer) + 2) / 128  # BOS and EOS
            assert ensemble.budget.share("fox", answer) > ensemble.budget.share("fox")


class TestConversations:
    def test_are_read_by_the_last_message_of_the_user(self, seq2seq_folders):
        for family in tiny_seq2seq.FAMILIES:
            entry = config(seq2seq_folders, family)
            assert read(entry, ASKED) == read(entry, ASKED[-1]["content"])
            assert read(entry, [*ASKED, {"role": "assistant", "content": "Yes"}]) == read(entry, ASKED)
            assert read(entry, ASKED[:1]) == read(entry, "Be brief.")

    def test_whose_answer_is_begun(self, seq2seq_folders):
        """The decoder goes on from its beginning, and the encoder reads what comes before."""
        begun = [*ASKED, {"role": "assistant", "content": "Yes </s>", "prefix": True}]
        for family in tiny_seq2seq.FAMILIES:
            entry = config(seq2seq_folders, family)
            found, asked = read(entry, begun), read(entry, ASKED)
            assert (found.source, found.ids, found.text, found.cut) == (asked.source, asked.ids, "Yes </s>", True)

    def test_in_a_form_of_the_member(self, seq2seq_folders):
        form = "translate English to German: {prompt}"
        whole = form.replace("{prompt}", ASKED[-1]["content"])
        entry = config(seq2seq_folders, "t5", prompt=form)
        expected = read(config(seq2seq_folders, "t5"), whole).source
        assert read(entry, ASKED).source == read(entry, ASKED[-1]["content"]).source == expected
        entry = config(seq2seq_folders, "t5", prompt=lambda _prompt: whole)
        assert read(entry, ASKED).source == expected

    def test_by_a_chat_template(self, seq2seq_folders):
        template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        whole = "".join(f"{m['role']}: {m['content']}\n" for m in ASKED)
        entry = config(seq2seq_folders, "t5", chat_template=template, system=None)
        assert read(entry, ASKED).source == read(config(seq2seq_folders, "t5"), whole).source

    def test_without_a_place_for_an_instruction(self, seq2seq_folders):
        with pytest.raises(ConfigurationError, match="no chat template that would show it: put it into the text"):
            described(config(seq2seq_folders, "t5", system="Be brief."))

    def test_nothing_to_read(self, seq2seq_folders):
        with pytest.raises(PromptError, match="The prompt is empty"):
            read(config(seq2seq_folders, "t5"), "")
        assert read(config(seq2seq_folders, "bart"), "").source == (0, 1)


def test_adapters_load_and_ask_them(seq2seq_folders, folders):
    """Facts before loading, languages that survive a copy, texts and conversations."""
    models = [{"model": str(seq2seq_folders["nllb"]), **LANGUAGES}, str(folders["alpha"])]
    assert facts_from_files(LoadOptions(models=models)).without_template == ()
    expected = Alone(seq2seq_folders["nllb"], "nllb").greedy("Der Hund", 6)
    options = {"models": models, "weights": [1.0, 0.0], "device": "cpu", "max_new_tokens": 6}
    llm, chat = DeepenLLM(**options), ChatDeepen(**options)
    text = described(MemberConfig(**models[0])).tokenizer.vocabulary.join(expected, at_start=True).decode()
    assert llm.model_copy().invoke("Der Hund") == text
    assert chat.invoke("Der Hund").content == text
    assert LlamaIndexLLM(**options).complete("Der Hund").text == text
    for one in (llm, chat):
        one.close()


def test_options_that_survive_a_round_trip(seq2seq_folders):
    entry = config(seq2seq_folders, "nllb")
    assert MemberConfig.model_validate(entry.model_dump()) == entry
