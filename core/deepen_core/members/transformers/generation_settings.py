"""What a model's files say about its answers: what starts and ends them, and what they never contain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import Self

from deepen_core.errors import ConfigurationError, ModelFilesError
from deepen_core.members.transformers.json_file import read_object
from deepen_core.members.transformers.pretrained import text_config

_FILE = "generation_config.json"


class GenerationSettings:
    """The settings in generation_config.json, and those in config.json that it does not name.

    Args:
        place: The folder or hub id, for error messages.
        given: What is in generation_config.json; None without one.
        model_config: The model's configuration.
    """

    def __init__(self, place: str, given: Mapping[str, Any] | None, model_config: Any) -> None:
        self._place = place
        folder = Path(place)
        self._sources = [] if given is None else [(folder / _FILE, given)]
        parts = (text_config(model_config), model_config)
        self._configs = [(folder / "config.json", part.to_dict()) for part in parts]

    @classmethod
    def in_folder(cls, place: str, folder: Path, model_config: Any) -> Self:
        """Reads the settings of a model's files.

        Args:
            place: The folder or hub id, for error messages.
            folder: The folder with the small files.
            model_config: The model's configuration.

        Raises:
            ModelFilesError: If generation_config.json is not JSON.
        """
        path = folder / _FILE
        return cls(place, read_object(path) if path.is_file() else None, model_config)

    def stop_ids(self) -> set[int]:
        """Returns every id that ends a text according to generation_config.json, else to config.json.

        Raises:
            ModelFilesError: If one is no id.
        """
        return self._ids("eos_token_id")

    def decoder_start(self, language_id: int | None) -> list[int]:
        """Returns the ids with which the decoder of an encoder-decoder model starts every answer.

        They are those that `transformers.generate` gives it or forces it to say first.

        Args:
            language_id: The token of the language to answer in; the model's own forced first token if None.

        Raises:
            ConfigurationError: If the files name none to start with.
            ModelFilesError: If one is no id.
        """
        found = self._ids("decoder_start_token_id") or self._ids("bos_token_id")
        if len(found) != 1:
            raise ConfigurationError(
                f"{self._place} does not say with which token its decoder starts: set decoder_start_token_id in its "
                "generation_config.json."
            )
        forced = self._ids("forced_bos_token_id") if language_id is None else {language_id}
        return [*found, *sorted(forced)[:1]]

    def ruled_out(self) -> list[int]:
        """Returns the ids that no answer contains: `bad_words_ids` of one token, and `suppress_tokens`.

        Raises:
            ModelFilesError: If one is no id.
        """
        words = self._value("bad_words_ids")[1] or []
        alone = [word[0] for word in words if isinstance(word, list) and len(word) == 1]
        return sorted({i for i in alone if isinstance(i, int)} | self._ids("suppress_tokens"))

    def _ids(self, name: str) -> set[int]:
        file, value = self._value(name)
        values = value if isinstance(value, list) else [value]
        if any(isinstance(v, bool) or not isinstance(v, int | None) for v in values):
            raise ModelFilesError(f"{file} has the {name} {value!r}: it must be a token id or a list of them.")
        return {v for v in values if v is not None}

    def _value(self, name: str) -> tuple[Path, Any]:
        """Returns a setting and the file that has it."""
        places = [source for source in self._sources if name in source[1]]
        places = places or [config for config in self._configs if config[1].get(name) is not None]
        return next(((file, source[name]) for file, source in places), (Path(), None))
