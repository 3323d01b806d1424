"""The header of a GGUF file: what it says about its model, and where its tensors are.

A file may come from anywhere, so nothing is allocated or repeated by a number in it before that is checked.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from deepen_core.errors import ModelFilesError
from deepen_core.members.transformers.limits import MAX_LAYERS, check_file
from deepen_core.tokenization.vocabulary import MAX_IDS

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_MAX_HEADER = 2**28  # bytes; those of 256,000 tokens with merges have a sixteenth of that
_MAX_FIELDS, _MAX_TENSORS, _MAX_NAME, _MAX_DIMENSIONS = 2**14, 2**17, 2**16, 4
_MAX_TEXT = 2**22  # bytes of a value, such as a chat template
_MAX_WEIGHTS = 2**43
_ALIGNMENT = 32  # of the tensors' data, unless the header has another

TOKENS = "tokenizer.ggml.tokens"
"""The field with the vocabulary."""

Value = bool | int | float | str


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is in its file.

    Attributes:
        name: Its name.
        shape: As numpy has it, the dimension that is adjacent in memory last.
        type: ggml's number of its type.
        start: Its first byte in the file.
        size: Its bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    start: int
    size: int


@dataclass(frozen=True)
class GgufHeader:
    """The header of one file.

    Attributes:
        path: The file.
        values: Everything that it says, by name; arrays are left out.
        lengths: Number of elements of each array, by name.
        tensors: Its tensors, by name.
    """

    path: Path
    values: Mapping[str, Value]
    lengths: Mapping[str, int]
    tensors: Mapping[str, TensorInfo]

    @property
    def architecture(self) -> str:
        """The kind of model, such as "llama"."""
        return str(self.values["general.architecture"])

    def number(self, name: str, default: int | None = None) -> int:
        """Returns a whole number of the architecture.

        Args:
            name: Its name without that of the architecture, such as "context_length".
            default: If there is none.

        Raises:
            ModelFilesError: If there is none and no default, or it is not a positive number.
        """
        value = self.values.get(f"{self.architecture}.{name}", default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelFilesError(
                f"{self.path} has {self.architecture}.{name} {value!r}, which must be a positive number: fetch the "
                "file again."
            )
        return value

    @property
    def parameters(self) -> int:
        """Number of learned parameters."""
        return sum(prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def matrix_types(self) -> set[int]:
        """The types, as ggml numbers them, of all tensors that are not vectors."""
        return {tensor.type for tensor in self.tensors.values() if len(tensor.shape) > 1}


def read_header(path: Path) -> GgufHeader:
    """Reads and checks the header of a file.

    Raises:
        ModelFilesError: If the file is damaged, cut off, or has numbers that no model has.
    """
    check_file(path, None)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _Reader(path, mapped).read()
    except (OSError, ValueError) as problem:  # an empty file cannot be mapped
        raise ModelFilesError(f"{path} cannot be read ({problem}): fetch it again.") from problem


class _Reader:
    """Reads a header from its first byte on.

    Args:
        path: The file, for error messages.
        mapped: Its bytes.
    """

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self._path = path
        self._mapped = mapped
        self._end = min(len(mapped), _MAX_HEADER)
        self._at = 0
        self._tokens: set[bytes] = set()

    def read(self) -> GgufHeader:
        if self._mapped[:4] != _MAGIC:
            raise self._error("is not a GGUF file, whose first bytes are 'GGUF'")
        self._at = 4
        version = self._number("<I")
        if version not in _VERSIONS:
            raise self._error(f"has version {version} of the format, and versions 2 and 3 are read")
        tensors = self._count("<Q", "tensors", _MAX_TENSORS)
        fields = self._count("<Q", "fields", _MAX_FIELDS)
        values: dict[str, Value] = {}
        lengths: dict[str, int] = {}
        for _ in range(fields):
            name, kind = self._text(_MAX_NAME), self._count("<I", "types", _MAX_FIELDS)
            if name in values or name in lengths:
                raise self._error(f"has the field {name[:60]!r} twice")
            if kind == _ARRAY:
                lengths[name] = self._skip_array(name)
            else:
                values[name] = self._value(kind, name)
        if not isinstance(values.get("general.architecture"), str):
            raise self._error("does not name its architecture")
        self._check_bytes(values.get("tokenizer.ggml.model"))
        found = [self._tensor() for _ in range(tensors)]
        alignment = values.get("general.alignment", _ALIGNMENT)
        if isinstance(alignment, bool) or not isinstance(alignment, int) or not 1 <= alignment <= _MAX_NAME:
            raise self._error(f"has the alignment {alignment!r}")
        return GgufHeader(self._path, values, lengths, self._placed(found, alignment))

    def _placed(self, found: Sequence[TensorInfo], alignment: int) -> dict[str, TensorInfo]:
        """Moves the tensors behind the header, and checks that they follow one another and are in the file."""
        placed: dict[str, TensorInfo] = {}
        data, expected = _aligned(self._at, alignment), 0
        for one in found:
            if one.name in placed:
                raise self._error(f"has the tensor {one.name[:60]!r} twice")
            if one.start != expected:
                raise self._error(f"has the tensor {one.name[:60]!r} at {one.start:,}, where {expected:,} is its place")
            expected = _aligned(one.start + one.size, alignment)
            if data + one.start + one.size > len(self._mapped):
                raise self._error(
                    f"ends after {len(self._mapped):,} bytes, but its tensor {one.name[:60]!r} reaches to "
                    f"{data + one.start + one.size:,}"
                )
            placed[one.name] = TensorInfo(one.name, one.shape, one.type, data + one.start, one.size)
        return placed

    def _tensor(self) -> TensorInfo:
        name = self._text(_MAX_NAME)
        count = self._count("<I", f"dimensions of {name[:60]!r}", _MAX_DIMENSIONS)
        shape = tuple(reversed([self._number("<Q") for _ in range(count)]))
        kind, start = self._number("<I"), self._number("<Q")
        if not all(1 <= length <= _MAX_WEIGHTS for length in shape) or prod(shape) > _MAX_WEIGHTS:
            raise self._error(f"has the tensor {name[:60]!r} of shape {shape}")
        sizes = block_sizes()
        if kind not in sizes:
            raise self._error(f"has the tensor {name[:60]!r} of type {kind}, which is not known")
        block, size = sizes[kind]
        if shape and shape[-1] % block:
            raise self._error(f"has the tensor {name[:60]!r} of shape {shape}, in blocks of {block}")
        return TensorInfo(name, shape, kind, start, prod(shape) // block * size)

    def _value(self, kind: int, name: str) -> Value:
        if kind == _STRING:
            return self._text(_MAX_TEXT)
        if kind not in _SCALARS:
            raise self._error(f"has the field {name[:60]!r} of type {kind}, which is not known")
        value: Value = self._unpacked(_SCALARS[kind])
        return value

    def _skip_array(self, name: str) -> int:
        kind = self._number("<I")
        count = self._count("<Q", f"elements of {name[:60]!r}", MAX_IDS)
        if kind in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING and name == TOKENS:
            self._read_tokens(count)
        elif kind == _STRING:
            for _ in range(count):
                self._skip(self._number("<Q"))
        else:
            raise self._error(f"has the array {name[:60]!r} of type {kind}, which is not known")
        return count

    def _read_tokens(self, count: int) -> None:
        """Reads the vocabulary, on whose doubles llama.cpp ends the process."""
        for _ in range(count):
            length, start = self._number("<Q"), self._at
            self._skip(length)
            token = self._mapped[start : self._at]
            if token and token in self._tokens:
                raise self._error(f"has the token {token[:60]!r} twice")
            self._tokens.add(token)

    def _check_bytes(self, kind: object) -> None:
        """Checks that a SentencePiece vocabulary spells every byte; llama.cpp ends the process where it needs one."""
        for byte in range(256) if kind == "llama" else ():
            if b"<0x%02X>" % byte not in self._tokens and bytes([byte]) not in self._tokens:
                raise self._error(f"has no token for the byte 0x{byte:02X}, which llama.cpp needs")

    def _text(self, most: int) -> str:
        length = self._count("<Q", "bytes of a text", most)
        start = self._at
        self._skip(length)
        try:
            return self._mapped[start : self._at].decode()
        except UnicodeDecodeError as problem:
            raise self._error("has a text that is not UTF-8") from problem

    def _count(self, form: str, what: str, most: int) -> int:
        count = self._number(form)
        if count > most:
            raise self._error(f"has {count:,} {what}, and at most {most:,} are read")
        return count

    def _number(self, form: str) -> int:
        return int(self._unpacked(form))

    def _unpacked(self, form: str) -> Value:
        start = self._at
        self._skip(struct.calcsize(form))
        value: Value = struct.unpack_from(form, self._mapped, start)[0]
        return value

    def _skip(self, count: int) -> None:
        if count > self._end - self._at:
            raise self._error(f"is cut off: its header goes on after byte {self._end:,}")
        self._at += count

    def _error(self, what: str) -> ModelFilesError:
        return ModelFilesError(f"{self._path} {what}: fetch the file again.")


def _aligned(place: int, alignment: int) -> int:
    """Returns the next place that is a multiple of the alignment."""
    return -(-place // alignment) * alignment


def block_sizes() -> Mapping[int, tuple[int, int]]:
    """Returns the weights and the bytes of a block of each of ggml's types."""
    from gguf.constants import GGML_QUANT_SIZES  # noqa: PLC0415 (an extra)

    return {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}


def check_model(header: GgufHeader) -> None:
    """Rejects what is not a language model, or cannot be.

    Raises:
        ModelFilesError: Naming what is wrong.
    """
    kind = header.values.get("general.type", "model")
    if kind != "model" or header.architecture in ("clip", "mmproj"):
        raise ModelFilesError(
            f"{header.path} is a GGUF file of the kind {kind!r} ({header.architecture}), not of a language model: give "
            "the file with the model's own weights."
        )
    parts = header.values.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        raise ModelFilesError(
            f"{header.path} is one of {parts} parts: put them together with llama-gguf-split --merge, and give the "
            "file that this makes."
        )
    for name in ("context_length", "embedding_length", "block_count"):
        header.number(name)
    if header.number("block_count") > MAX_LAYERS:
        raise ModelFilesError(
            f"{header.path} has {header.number('block_count')} layers, and at most {MAX_LAYERS:,} are built: fetch it "
            "again."
        )
    for name, value in header.values.items():
        if isinstance(value, float) and not (math.isfinite(value) and (value >= 0 or not name.endswith("epsilon"))):
            raise ModelFilesError(
                f"{header.path} has {name} {value}, with which nothing can be computed: fetch it again."
            )
    tokens = header.lengths.get(TOKENS, 0)
    if not tokens or not isinstance(header.values.get("tokenizer.ggml.model"), str):
        raise ModelFilesError(f"{header.path} has no tokenizer in it: fetch a file that has one.")
    embeddings = header.tensors.get("token_embd.weight")
    wanted = (tokens, header.number("embedding_length"))
    if embeddings is None or embeddings.shape != wanted:
        found = "none" if embeddings is None else f"those of shape {embeddings.shape}"
        raise ModelFilesError(
            f"{header.path} must have embeddings of shape {wanted} (token_embd.weight), and has {found}: fetch the "
            "file again."
        )
