"""A member in this process and the same one behind a server of llama.cpp: what they say, and what a step costs.

Run with `python -m benchmarks.server_members --main FOLDER --member FOLDER --gguf FILE`. It needs `xllamacpp`,
which is llama.cpp's server as a Python package, and `gguf`. The weights of the GGUF file are written as float32 into
another one, which are those of the folder, so that the two ways compute the same.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import publish
from deepen_core import Ensemble, MemberConfig
from deepen_core.engine.scoring import score
from deepen_core.members.sequence import MemberSequence

TURNS = 5
ALL = 2**20  # tokens: more than any vocabulary has
PROMPTS = (
    "The capital of France is Paris, and the capital of Portugal is",
    "def mean(values):\n    ",
    "Heat the water to 80 degrees, then",
    "In 1969, two people walked on the moon for the first time. Their names were",
    "Question: If a train travels 60 km in 45 minutes, how fast is it? Answer:",
    "Dear Ms Miller,\n\nthank you for your letter of",
    "The three states of matter are",
    "SELECT name, age FROM people WHERE",
    "Once upon a time there was a little girl who",
    "Photosynthesis is the process by which",
)


def as_float(source: Path, target: Path) -> None:
    """Writes a GGUF file with the same weights as float32."""
    import gguf  # noqa: PLC0415 (a package of this benchmark alone)

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name in ("general.architecture", "general.file_type") or field.name.startswith("GGUF."):
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, values.astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def serve(path: str, window: int, slots: int) -> None:
    """Serves a GGUF file until the input ends; its address is the first line of the output."""
    import xllamacpp  # noqa: PLC0415 (as above)

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.n_gpu_layers = window * slots, slots, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.port, params.warmup, params.cache_ram_mib = 0, False, 0
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


@contextmanager
def served(path: Path, window: int = 1024, slots: int = 4) -> Iterator[str]:
    """Serves a GGUF file in a process of its own while the block runs; gives its address."""
    command = [sys.executable, "-m", "benchmarks.server_members", "--serve", str(path), str(window), str(slots)]
    given: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, cwd=Path(__file__).parent.parent, **given) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


class Pair:
    """An ensemble of a main member in this process, and another one: a folder, a GGUF file, or on a server."""

    def __init__(self, main: Path, member: Path, url: str | None, top_k: int = 512) -> None:
        given = {"url": url, "top_k": top_k, "timeout": 300.0}
        kind = {} if member.is_file() else {"dtype": "float32"}
        other = {"model": str(member), **(kind if url is None else {"server": given})}
        models = [{"model": str(main), "dtype": "bfloat16"}, MemberConfig(**other)]
        self.ensemble = Ensemble.load(models, device="cpu", progress=False)
        self.member: Any = self.ensemble._opened().members[1]

    def logprobs(self, ids: list[int]) -> torch.Tensor:
        """Log-probabilities [vocabulary] of the member after a text."""
        return torch.log_softmax(self.member.next_logits([_sequence(self.member, ids)])[0].double(), -1)

    def timed(self, tokens: int) -> tuple[float, float, float]:
        """Returns ms a step, and the bytes received and sent for a step, over an answer of so many tokens."""
        traffic = getattr(self.member, "traffic", None)
        before = (traffic.bytes_received, traffic.bytes_sent) if traffic is not None else (0, 0)
        answer = self.ensemble.generate(PROMPTS[0], max_new_tokens=tokens, ignore_eos=True)
        after = (traffic.bytes_received, traffic.bytes_sent) if traffic is not None else (0, 0)
        received, sent = ((b - a) / tokens for a, b in zip(before, after, strict=True))
        return answer.timings.decode_s / (tokens - 1) * 1000, received, sent


def _sequence(member: Any, ids: list[int]) -> MemberSequence:
    prompt = member.tokenizer.reader.read_text("a")
    sequence = MemberSequence(prompt, member.tokenizer, is_main=True)
    sequence.ids = list(ids)
    return sequence


def texts(local: Pair, tokens: int) -> list[tuple[str, str]]:
    """Returns each prompt with the greedy answer of the local ensemble."""
    answers = local.ensemble.generate(list(PROMPTS), max_new_tokens=tokens, ignore_eos=True)
    return [(prompt, answer.text) for prompt, answer in zip(PROMPTS, answers, strict=True)]


def compare(local: Pair, remote: Pair, given: list[tuple[str, str]]) -> dict[str, Any]:
    """Compares the fused choices along given answers, step by step."""
    same, steps, apart = 0, 0, 0.0
    for prompt, answer in given:
        own, its = (score(pair.ensemble._opened(), [(prompt, answer)], greedy=True)[0] for pair in (local, remote))
        assert own.greedy is not None
        assert its.greedy is not None
        same += sum(a == b for a, b in zip(own.greedy, its.greedy, strict=True))
        steps += len(own.greedy)
        apart = max([apart, *(abs(a - b) for a, b in zip(own.logprobs, its.logprobs, strict=True))])
    return {"steps": steps, "same choice": same / steps, "fused logprob apart": apart}


def member_apart(local: Pair, remote: Pair, given: list[tuple[str, str]]) -> float:
    """Returns the largest difference of two members' log-probabilities, over all tokens, after some texts."""
    found = 0.0
    for prompt, answer in given:
        ids = local.member.tokenizer.encode(prompt + answer[:60])
        own, its = local.logprobs(ids), remote.logprobs(ids)
        width = min(len(own), len(its))
        found = max(found, float((own[:width] - its[:width]).abs().max()))
    return found


def changed(local: Pair, given: list[tuple[str, str]]) -> float:
    """Returns the share of steps in which the other member changes what main would choose."""
    alone = local.ensemble.alone(0)
    own = [score(alone._opened(), [one], greedy=True)[0].greedy or [] for one in given]
    flags = [flag for found in own for flag in found]
    return 1.0 - sum(flags) / len(flags)


def turns(local: Pair, remote: Pair, tokens: int) -> dict[str, float]:
    """Times the two ways in turns, since other work on the machine slows down both."""
    pairs = [(local.timed(tokens), remote.timed(tokens)) for _ in range(TURNS)]
    return {
        "in this process, ms": statistics.median(own[0] for own, _ in pairs),
        "ms a step": statistics.median(its[0] for _, its in pairs),
        "ratio": statistics.median(its[0] / own[0] for own, its in pairs),
        "KB a step": statistics.median(its[1] + its[2] for _, its in pairs) / 1000,
    }


def measure(options: argparse.Namespace) -> None:
    """Measures everything, and publishes it."""
    local = Pair(options.main, options.member, None)
    given = texts(local, options.steps // len(PROMPTS))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        as_float(options.gguf, Path(scratch) / "float32.gguf")
        ways = [("float32", Path(scratch) / "float32.gguf", top) for top in (ALL, 512, 64)]
        for name, path, top in [*ways, ("as in the file", options.gguf, 512)]:
            with served(path) as url:
                remote = Pair(options.main, options.member, url, top)
                row: dict[str, Any] = {"weights": name, "top": "all" if top == ALL else str(top)}
                row |= turns(local, remote, 8 if top == ALL else options.timed)
                row |= compare(local, remote, given[:1] if top == ALL else given)
                row["member logprob apart"] = member_apart(local, remote, given) if top == ALL else None
                rows.append(row)
                remote.ensemble.close()
    about = {"main": options.main.name, "member": options.member.name, "choices changed": changed(local, given)}
    publish("server_members", "A member behind a llama.cpp server, and in this process in float32", rows, **about)


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--main", type=Path, help="Folder of the main member.")
    parser.add_argument("--member", type=Path, help="Folder of the other member, with the weights of the GGUF file.")
    parser.add_argument("--gguf", type=Path, help="Its GGUF file.")
    parser.add_argument("--steps", type=int, default=500, help="Of answers that are compared.")
    parser.add_argument("--timed", type=int, default=48, help="Tokens of an answer that is timed.")
    parser.add_argument("--scratch", type=Path, help="Folder for the file with float32 weights.")
    parser.add_argument("--serve", nargs=3, metavar=("FILE", "WINDOW", "SLOTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.serve:
        serve(options.serve[0], int(options.serve[1]), int(options.serve[2]))
    else:
        measure(options)


if __name__ == "__main__":
    main()
