"""What fails in a step outside of any member: the error says where it was, and advises only what can help there."""

import weakref

import pytest
import torch
from scheduler_parts import FAILING, OPTIONS, PROMPTS, hook

from deepen_core import Ensemble, SamplingParams
from deepen_core.errors import DecodingError, NonFiniteLogitsError
from deepen_core.members.memory import is_memory

REPORT = "This is a bug in deepen: please report it with this text."
MEMORY = [
    MemoryError("no room"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
    OSError(12, "Cannot allocate memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.fixture
def ensemble(load):
    with load("alpha", "beta") as ensemble:
        yield ensemble


def raises(problem, *, after=0):
    """A function that returns what the original does so many times, and then raises."""

    def wrapped(original):
        calls = []

        def failing(*arguments, **options):
            calls.append(True)
            if len(calls) > after:
                raise problem
            return original(*arguments, **options)

        return failing

    return wrapped


def said_by(ensemble, **options):
    """What the error of a request says."""
    with pytest.raises(DecodingError) as caught:
        ensemble.generate(FAILING, **{**OPTIONS, **options})
    assert caught.value.__cause__ is not None
    return str(caught.value)


def ask_together(ensemble, prompts):
    sequences = [ensemble._engine.decoder.start(prompt, SamplingParams(**OPTIONS)) for prompt in prompts]
    return ensemble._worker.submit(sequences, ensemble)


# Fusing


@pytest.mark.parametrize(
    ("fusion", "called", "other"),
    [
        ("deepen", "deepen", "product"),
        ("deepen-paper", "deepen-paper", "product"),
        ("product", "product", "deepen"),
        ("union", "union", "product"),
        ("translate", "translate", "product"),
        ({"steps": 3}, "custom (deepen)", "product"),
    ],
)
@pytest.mark.parametrize(("main", "weights"), [(0, "[1, 0]"), (1, "[0, 1]")])
def test_fusing(load, monkeypatch, fusion, called, other, main, weights):
    with load("alpha", "beta", fusion=fusion, main=main) as ensemble:
        fuse = raises(IndexError("a sequence too many"), after=4)(ensemble._engine.fusion.fuse)
        monkeypatch.setattr(ensemble._engine.fusion, "fuse", fuse)
        said = said_by(ensemble, temperature=0.7, top_k=5)
    assert said == (
        f"Fusing alpha and beta ({called}) failed at token 5 of the answer: IndexError: a sequence too many. {REPORT} "
        f"Members loaded with fusion='{other}' may avoid it; with weights={weights} main answers alone, and nothing "
        "is fused."
    )


def test_the_advice_for_a_failing_fusion_is_true(folders, monkeypatch):
    """With the weights that the error names nothing is fused."""
    fuse = raises(IndexError("a sequence too many"))(None)
    monkeypatch.setattr("deepen_core.fusion.deepen.sparse_fusion.DeepenFusion._combine", fuse)
    models = [folders["alpha"], folders["beta"]]
    with Ensemble.load(models, weights=[1, 0], progress=False, device="cpu") as ensemble:
        assert ensemble.generate(FAILING, **OPTIONS).token_ids


def test_fusing_with_nobody_left_but_main(ensemble, monkeypatch):
    """What has one member only is fused by nothing that other weights would leave out."""
    beta = hook(ensemble, 1)
    beta.fail = raises(RuntimeError("a kernel broke"))(None)
    monkeypatch.setattr(ensemble._engine.fusion, "fuse", raises(IndexError("a sequence too many"))(None))
    said = said_by(ensemble, on_member_error="drop")
    assert said == f"Fusing alpha (deepen) failed at token 1 of the answer: IndexError: a sequence too many. {REPORT}"


def test_fusing_while_a_text_is_scored(ensemble, monkeypatch):
    monkeypatch.setattr(ensemble._engine.fusion, "logprobs_of", raises(IndexError("a sequence too many"))(None))
    with pytest.raises(DecodingError, match=r"Fusing alpha and beta \(deepen\) failed over a given text: IndexError"):
        ensemble.score(FAILING, " lie and the dog")


@pytest.mark.parametrize("problem", MEMORY, ids=lambda p: type(p).__name__)
def test_a_lack_of_memory(ensemble, monkeypatch, problem):
    assert is_memory(problem)
    monkeypatch.setattr(ensemble._engine.fusion, "fuse", raises(problem)(None))
    said = said_by(ensemble)
    assert said.endswith(f"{problem}. Lower max_batch_size, or shorten the prompt.")
    assert "bug in deepen" not in said
    assert "weights" not in said


def test_other_problems_are_no_lack_of_memory():
    for problem in (RuntimeError("a kernel broke"), ValueError("out of memory"), KeyError("allocate memory")):
        assert not is_memory(problem)


def test_sequences_that_do_not_fit_into_memory_together_are_fused_one_by_one(ensemble, monkeypatch):
    """The members are not run again for it, and what the first try had computed is gone by then."""
    expected = ensemble.generate(list(PROMPTS[:3]), **OPTIONS)
    alpha, fuse, held = hook(ensemble, 0), ensemble._engine.fusion.fuse, []

    def full(inputs):
        if len(inputs.weights) > 1:
            computed = torch.zeros(10)
            held.append(weakref.ref(computed))
            raise torch.OutOfMemoryError("no room")
        assert all(reference() is None for reference in held)
        return fuse(inputs)

    monkeypatch.setattr(ensemble._engine.fusion, "fuse", full)
    answers = [handle.result() for handle in ask_together(ensemble, PROMPTS[:3])]
    assert [a.token_ids for a in answers] == [e.token_ids for e in expected]
    assert len(held) == len(alpha.forwards) == OPTIONS["max_new_tokens"]
    assert set(alpha.forwards) == {3}


# Choosing


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, ""),
        ({"top_k": 5, "top_p": 0.9, "min_p": 0.1}, ""),  # they do nothing where the best token is taken
        ({"temperature": 0.7}, "temperature=0.7"),
        ({"temperature": 0.7, "top_k": 5, "min_p": 0.1}, "temperature=0.7 and top_k=5 and min_p=0.1"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2"),
        ({"temperature": 0.5, "regex": "[a-z]+"}, "temperature=0.5 and regex"),
        ({"json_schema": {"type": "integer"}}, "json_schema"),
    ],
)
def test_choosing(ensemble, monkeypatch, options, named):
    """Only options that have to do with the choice are named, and fusion is not."""
    monkeypatch.setattr("deepen_core.sampling.sampler.Sampler.choose", raises(IndexError("no such token"))(None))
    around = f" The same request without {named} may avoid it." if named else ""
    said = said_by(ensemble, ignore_eos=False, logprobs=2, **options)
    assert said == f"Choosing token 1 of the answer failed: IndexError: no such token. {REPORT}{around}"


def test_ignore_eos_has_to_do_with_the_choice(ensemble, monkeypatch):
    monkeypatch.setattr("deepen_core.sampling.sampler.Sampler.choose", raises(IndexError("no such token"))(None))
    assert said_by(ensemble, ignore_eos=True).endswith("The same request without ignore_eos=True may avoid it.")


@pytest.mark.parametrize(("method", "token"), [("allowed", 3), ("advance", 3)])
def test_following_a_constraint(ensemble, monkeypatch, method, token):
    from deepen_core.constraints.matcher import Constraint

    failing = raises(IndexError("no such state"), after=2)(getattr(Constraint, method))
    monkeypatch.setattr(Constraint, method, failing)
    said = said_by(ensemble, regex="[a-z ]{40}", temperature=0.7)
    assert said == (
        f"Following the regex at token {token} of the answer failed: IndexError: no such state. {REPORT} "
        "The same request without regex avoids it."
    )


def test_what_a_constraint_itself_says_stays(ensemble, monkeypatch):
    own = DecodingError("The regex cannot be followed further: it is too long.")
    monkeypatch.setattr("deepen_core.constraints.matcher.Constraint.advance", raises(own)(None))
    with pytest.raises(DecodingError, match=r"^The regex cannot be followed further: it is too long\.$"):
        ensemble.generate(FAILING, regex="[a-z ]{40}", **OPTIONS)


def test_reporting(ensemble, monkeypatch):
    monkeypatch.setattr("deepen_core.engine.logprobs.TokenReporter.report", raises(IndexError("no such token"))(None))
    assert said_by(ensemble, logprobs=2, temperature=0.7) == (
        "Reporting the log-probabilities of token 1 of the answer failed: IndexError: no such token. "
        f"{REPORT} The same request without logprobs avoids it."
    )
    assert ensemble.generate(FAILING, **OPTIONS).token_ids


# Telling


def test_telling_the_members(ensemble, load, monkeypatch):
    from deepen_core.members.sequence import MemberSequence

    expected = ensemble.generate(FAILING, **OPTIONS)
    monkeypatch.setattr(
        MemberSequence, "append_text", raises(IndexError("no such place"), after=1)(MemberSequence.append_text)
    )
    said = said_by(ensemble)
    heard = said.partition(" with ")[2].partition(" (token ")
    assert said.startswith("Updating member 'beta' with '")
    token = int(heard[2].partition(" of the answer) failed: IndexError: no such place.")[0])
    assert 2 <= token <= len(expected.token_ids)
    assert eval(heard[0]) in expected.text  # noqa: S307 (a string)
    assert said.endswith(f"{REPORT} With weight 0, 'beta' is not updated.")
    with load("alpha", "beta", weights=[1, 0]) as alone:
        assert alone.generate(FAILING, **OPTIONS).token_ids


# The rest


def test_anything_else(ensemble, monkeypatch):
    monkeypatch.setattr("deepen_core.sampling.stop_strings.StopMatcher.feed", raises(IndexError("no such place"))(None))
    assert said_by(ensemble) == (f"The step for token 1 of the answer failed: IndexError: no such place. {REPORT}")


def test_a_step_that_fails_as_a_whole_ends_its_requests_and_not_the_worker(ensemble):
    step = ensemble._engine.decoder.step
    ensemble._engine.decoder.step = raises(IndexError("no such sequence"))(None)
    for handle in ask_together(ensemble, PROMPTS[:2]):
        with pytest.raises(
            DecodingError, match=r"^The step for token 1 of the answer failed: IndexError: no such sequence"
        ):
            handle.result()
    ensemble._engine.decoder.step = step
    assert ensemble.generate(FAILING, **OPTIONS).token_ids


@pytest.mark.parametrize("place", ["choosing", "following"])
def test_an_error_holds_nothing_of_the_step(ensemble, monkeypatch, place):
    """Callers keep errors; the distributions over all vocabularies would stay with them."""
    held, fuse = [], ensemble._engine.fusion.fuse

    def watched(*arguments):
        fused = fuse(*arguments)
        held.append(weakref.ref(fused))
        return fused

    monkeypatch.setattr(ensemble._engine.fusion, "fuse", watched)
    failing = {"choosing": "sampling.sampler.Sampler.choose", "following": "constraints.matcher.Constraint.advance"}[
        place
    ]
    problem = DecodingError("it cannot go on") if place == "following" else IndexError("no such token")
    monkeypatch.setattr(f"deepen_core.{failing}", raises(problem)(None))
    with pytest.raises(DecodingError) as caught:
        ensemble.generate(FAILING, regex="[a-z ]{40}", **OPTIONS)
    assert caught.value is not None
    assert len(held) == 1
    assert held[0]() is None


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        (torch.float16, r"its dtype float16 overflows \(load it with dtype='bfloat16' or 'float32'\)"),
        (torch.float32, "its weights are damaged, or its code fails on this text"),
        (torch.bfloat16, "its weights are damaged, or its code fails on this text"),
    ],
)
def test_another_dtype_is_advised_only_where_one_reaches_further(ensemble, dtype, advice):
    alpha = hook(ensemble, 0)
    alpha.dtype = dtype
    alpha.spoil = lambda sequences, logits: logits + float("inf")
    with pytest.raises(NonFiniteLogitsError, match=rf"logits whose largest is inf: {advice}"):
        ensemble.generate(FAILING, **OPTIONS)
