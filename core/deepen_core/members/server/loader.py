"""Describes a member on a server: its text side from a folder, and the server after it was tried."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from deepen_core.config import MemberConfig
from deepen_core.config.servers import ServerConfig
from deepen_core.errors import CompatibilityWarning, ConfigurationError
from deepen_core.members.base import WeightBytes
from deepen_core.members.server.connection import Connection, ServerError
from deepen_core.members.server.finding import find_server, unusable
from deepen_core.members.server.member import ServerMember
from deepen_core.members.server.model_server import ModelServer
from deepen_core.members.server.same_tokenizer import check_tokenizer
from deepen_core.members.server.vllm import most_allowed
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.members.transformers.bars import hub_bars
from deepen_core.members.transformers.generation_settings import GenerationSettings
from deepen_core.members.transformers.json_file import read_object
from deepen_core.members.transformers.pretrained import (
    architecture_of,
    check_kind,
    is_encoder_decoder,
    load_tokenizer,
)
from deepen_core.members.transformers.source import ModelSource, find_small_files
from deepen_core.members.transformers.text_side import TextDescribed, TextSide

_TRIED = 8  # ids of a text that is tried
_FEW = 100  # of the probabilities that are fetched: the others together may matter


@dataclass(frozen=True)
class DescribedServer(TextDescribed):
    """A `DescribedMember` whose model is on a server, which was asked and answers."""

    config: MemberConfig
    text: TextSide
    server: ModelServer
    top_k: int
    architecture: str
    device: torch.device = ServerMember.device
    embedded: bool = False

    @property
    def context_window(self) -> int:
        """See `DescribedMember.context_window`: a server needs room for one more token."""
        window = self.server.served.window
        return self.text.context_window if window is None else min(self.text.context_window, window - 1)

    def weight_bytes(self) -> WeightBytes | None:
        """See `DescribedMember.weight_bytes`: there are none on this machine."""
        return None

    def check_files(self) -> None:
        """See `DescribedMember.check_files`: there are none."""

    def load(self, *, progress: bool) -> ServerMember:  # noqa: ARG002 (nothing is left to load)
        """See `DescribedMember.load`."""
        given = (self.name, self.server, self.tokenizer, self.context_window, self.top_k, self.architecture)
        return ServerMember(*given)


def describe(
    config: MemberConfig,
    device: str | None,  # noqa: ARG001 (the server has its own)
    dtype: str | None,  # noqa: ARG001
    max_window: int | None = None,
    *,
    progress: bool = False,
) -> DescribedServer:
    """Reads a member's tokenizer and configuration, and tries its server.

    Args:
        config: The member.
        device: Not used.
        dtype: Not used.
        max_window: Caps its context window.
        progress: Show the hub's progress bars while files are downloaded.

    Raises:
        ConfigurationError: If the server cannot be used, or the model does not predict the next token.
        ModelFilesError: If files are missing or damaged.
        TokenizerError: If the tokenizer cannot be used, or the server has another one.
    """
    assert config.server is not None, "that is what makes this kind"
    with hub_bars(progress):
        source = find_small_files(config)
    model_config = _model_config(config, source)
    settings = GenerationSettings.in_folder(source.place, source.folder, model_config)
    tokenizer = load_tokenizer(config, source, model_config)
    text = TextSide.of(config, source.place, tokenizer, model_config, settings, max_window)
    connection = Connection(config.server.url, config.server.key(), config.server.timeout)
    try:
        server, top_k = connection.start(_tried(connection, config.server, text.tokenizer, source.place)).result()
    except ServerError as fault:
        raise unusable(fault, str(config.name), config.server.url) from fault
    return DescribedServer(config, text, server, top_k, architecture_of(model_config))


async def _tried(
    connection: Connection, config: ServerConfig, tokenizer: MemberTokenizer, place: str
) -> tuple[ModelServer, int]:
    """Returns the server, and the number of tokens whose probabilities it gives."""
    server = await find_server(connection, config, tokenizer.encode("a")[-1])
    await check_tokenizer(server, tokenizer, place)
    ids, top_k = tokenizer.sample_ids[:_TRIED], min(config.top_k, tokenizer.vocabulary.size)
    try:
        await server.api.next_tokens(server, ids, top_k, -1)
    except ServerError as fault:
        most = most_allowed(fault)
        if most is None or not 0 < most < top_k:
            raise
        top_k = most
        await server.api.next_tokens(server, ids, top_k, -1)
    if top_k < min(_FEW, config.top_k):
        warnings.warn(
            f"{connection.url} gives the probabilities of {top_k} tokens at most, and {config.top_k} were asked for: "
            f"start it with --max-logprobs {config.top_k}.",
            CompatibilityWarning,
            stacklevel=2,
        )
    return server, top_k


def _model_config(config: MemberConfig, source: ModelSource) -> Any:
    """Returns the configuration of a model that this machine need not be able to load.

    Raises:
        ConfigurationError: If an encoder reads the prompt, or the model does not predict the next token.
    """
    trusted = config.trust_remote_code
    try:
        found = AutoConfig.from_pretrained(source.folder, trust_remote_code=trusted)
    except Exception:  # noqa: BLE001 (transformers may not know the model, which the server does)
        given = read_object(source.folder / "config.json")
        made: Any = PreTrainedConfig
        return made(**{name: given.get(name) for name in ("architectures", "eos_token_id", "bos_token_id")})
    if is_encoder_decoder(found):
        raise ConfigurationError(
            f"{source.place} is an encoder-decoder model ({found.model_type}), which no server runs step by step: "
            "give its folder without server."
        )
    check_kind(source.place, found, config, trusted=True)
    return found
