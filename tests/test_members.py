"""Members of unusual kinds: without a cache, with a state, of other dtypes, with a matrix too small."""

from dataclasses import replace

import pytest
import torch

from deepen_core import Ensemble, SamplingParams
from deepen_core.errors import CompatibilityWarning, ModelFilesError
from deepen_core.members.sequence import MemberSequence

PROMPT = "The quick brown fox"


def test_models_that_ignore_the_cache_run_without_one(tmp_path, folders):
    """OpenAI GPT takes a cache among its options and does not look at it."""
    import tiny
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    tokenizer = tiny.byte_level()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = OpenAIGPTConfig(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=2)
        model = OpenAIGPTLMHeadModel(config)
    model.config.update({"eos_token_id": 1, "bos_token_id": 0})
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    expected = model.eval().generate(ids, do_sample=False, max_new_tokens=12, pad_token_id=1, use_cache=False)
    with pytest.warns(CompatibilityWarning, match="its whole text is run again for every token"):
        ensemble = Ensemble.load([tmp_path], progress=False, device="cpu")
    with ensemble:
        found = ensemble.generate(PROMPT, max_new_tokens=12)
    assert found.token_ids == [t for t in expected[0, ids.shape[1] :].tolist() if t not in (1, 3)]


def test_a_tokenizer_larger_than_the_matrix(tmp_path, folders):
    import tiny

    tokenizer = tiny.byte_level()
    tiny.save_gpt2(tmp_path, tokenizer)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelFilesError, match=r"has 1 tokens with ids up to 420, but the model has 420 embeddings"):
        Ensemble.load([tmp_path, folders["beta"]], progress=False, device="cpu")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_dtypes_and_default_dtypes(folders, dtype):
    """Members of any precision, in a process whose default is another one."""
    torch.set_default_dtype(torch.float64)
    try:
        with Ensemble.load([folders["alpha"], folders["beta"]], dtype=dtype, progress=False, device="cpu") as ensemble:
            assert len(ensemble.generate(PROMPT, max_new_tokens=5, ignore_eos=True).token_ids) == 5
    finally:
        torch.set_default_dtype(torch.float32)


def test_state_space_members_run_from_their_states(tmp_path, folders):
    """A state cannot be shortened, but a copy of it can be continued."""
    import tiny

    tiny.save_mamba(tmp_path, tiny.byte_level())
    with pytest.warns(CompatibilityWarning, match="its state cannot be shortened, so copies of it are kept"):
        ensemble = Ensemble.load([folders["beta"], tmp_path], weights="static", progress=False, device="cpu")
    with ensemble:
        sequence = ensemble._engine.decoder.start(PROMPT, SamplingParams(max_new_tokens=20, ignore_eos=True))
        part, member = sequence.member_sequences[1], ensemble._engine.members[1]
        for _ in range(10):
            ensemble._engine.decoder.step([sequence])
        with torch.inference_mode():
            found = member.next_logits([part])[0]
            fresh = member.model(torch.tensor([part.ids])).logits[0, -1]
        torch.testing.assert_close(found, fresh, atol=1e-4, rtol=1e-4)
        assert 0 < part.tokens_run < 3 * 10


def test_prefill_in_pieces_gives_the_same_logits(pair):
    """What is run ahead, in pieces of any size, changes nothing, and nothing is run twice."""
    member = pair._engine.members[0]
    prompt = member.tokenizer.reader.read_text("The quick brown fox jumps over the lazy dog. The dog sleeps;")
    with torch.inference_mode():
        whole = MemberSequence(prompt, member.tokenizer, is_main=False)
        expected = member.next_logits([whole])
        whole.release()  # the next sequence would take over what it holds
        for limit in (1, 2, 7, 1000):
            sequence = MemberSequence(prompt, member.tokenizer, is_main=False)
            run = []
            while n := member.prefill(sequence, limit):
                run.append(n)
            assert max(run) <= limit
            assert sum(run) == len(sequence.ids) - 2
            assert sequence.pending == 2
            torch.testing.assert_close(member.next_logits([sequence]), expected)
            torch.testing.assert_close(sequence.logits_before, whole.logits_before)
            sequence.release()


def test_only_places_that_are_looked_at_have_logits(pair):
    """Main's last id is as it was chosen, and no token goes on across the end of a template."""
    member = pair._engine.members[0]
    cut = member.tokenizer.reader.read_text("The quick brown fox jumps over the lazy dog")
    closed = replace(cut, cut=False)
    kept, layer = [], member.model.get_output_embeddings()
    hook = layer.register_forward_pre_hook(lambda _, given: kept.append(given[0].shape[1]))
    with torch.inference_mode():
        for prompt, is_main, places in ((cut, True, 1), (cut, False, 2), (closed, True, 1), (closed, False, 1)):
            sequence = MemberSequence(prompt, member.tokenizer, is_main=is_main)
            found = member.next_logits([sequence])[0]
            assert kept.pop() == places
            whole = member.model(torch.tensor([sequence.ids])).logits[0]
            assert kept.pop() == len(sequence.ids)
            torch.testing.assert_close(found, whole[-1], atol=1e-4, rtol=1e-4)
            assert (sequence.logits_before is None) == (places == 1)
            assert bool(sequence.open_places) == (places == 2)
            sequence.append_token(5) if is_main else sequence.append_text(" and")
            found = member.next_logits([sequence])[0]
            whole = member.model(torch.tensor([sequence.ids])).logits[0]
            torch.testing.assert_close(found, whole[-1], atol=1e-4, rtol=1e-4)
            if not is_main:
                torch.testing.assert_close(sequence.logits_before, whole[-2], atol=1e-4, rtol=1e-4)
            kept.clear()
            sequence.release()
    hook.remove()


def test_a_prompt_that_is_alone_runs_in_one_forward(load):
    """In pieces it would take one forward more, in which all weights are read again."""
    with load("alpha", "beta") as ensemble:
        members = ensemble._engine.members
        ensemble.generate("The dog", max_new_tokens=1)
        before = [member.work.forwards for member in members]
        ensemble.generate("The quick brown fox jumps over the lazy dog. " * 4, max_new_tokens=1)
        assert [member.work.forwards - n for member, n in zip(members, before, strict=True)] == [1, 1]


def test_output_layers_get_dense_hidden_states(pair):
    """`matmul` copies the whole output layer for each sequence of a slice, one by one too."""
    seen = []
    hooks = [
        member.model.get_output_embeddings().register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        for member in pair._engine.members
    ]
    pair.generate("The quick brown fox jumps over", max_new_tokens=2)
    pair.generate(["The lazy dog sleeps under the trees", "The quick brown fox jumps over the dog"], max_new_tokens=2)
    for hook in hooks:
        hook.remove()
    assert len(seen) >= 2 * len(hooks)
    assert all(hidden.stride() == torch.empty(hidden.shape).stride() for hidden in seen)


@pytest.mark.parametrize("member", [0, 1])
def test_ids_that_have_settled(pair, member):
    """All of main's; of another member's, at least those before the open text, and none that changes."""
    tokenizer = pair._engine.members[member].tokenizer
    text = "The quick brown fox jumps over the lazy dog. The dog sleeps;"
    for prompt in (tokenizer.reader.read_text(text), tokenizer.reader.read_text("")):
        main = MemberSequence(prompt, tokenizer, is_main=True)
        assert main.settled == len(main.ids)
        other = MemberSequence(prompt, tokenizer, is_main=False)
        assert len(prompt.ids) <= other.settled <= len(other.ids)
        for piece in (" the f", "ox does", "n't", " sleep at all, and nei", "ther does the", " girl named Mira"):
            before = other.ids[: other.settled]
            other.append_text(piece)
            assert other.ids[: len(before)] == before
            assert len(before) <= other.settled <= len(other.ids)
        assert other.settled > len(prompt.ids)
