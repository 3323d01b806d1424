"""What tests of encoder-decoder members have in common: what `transformers` says by itself."""

import tiny
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from deepen_core import MemberConfig

LANGUAGES = {"source_language": "deu_Latn", "target_language": "fra_Latn"}
FAMILIES = ["t5", "bart", "marian", "nllb"]
TEXTS = [line[:length] for line in tiny.CORPUS[:7] for length in (5, 17, 40)]


def config(folders, family, **options):
    """The configuration of a member; the translation model translates."""
    return MemberConfig(model=str(folders[family]), **(LANGUAGES if family == "nllb" else {}), **options)


class Alone:
    """A model and its tokenizer as `transformers` loads them.

    Args:
        folder: The model's.
        family: Its name.
        dtype: Of the weights.
    """

    def __init__(self, folder, family, dtype=torch.float32):
        self.model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self._forced = {}
        if family == "nllb":
            self.tokenizer.src_lang = LANGUAGES["source_language"]
            token_id = self.tokenizer.convert_tokens_to_ids(LANGUAGES["target_language"])
            self._forced = {"forced_bos_token_id": token_id}
        settings = self.model.generation_config
        forced = self._forced.get("forced_bos_token_id", settings.forced_bos_token_id)
        self.start = [settings.decoder_start_token_id, *([] if forced is None else [forced])]
        self._stop = settings.eos_token_id

    def greedy(self, text, tokens):
        """The ids of an answer without those that start it and the one that ends it."""
        ids = torch.tensor([self.tokenizer(text)["input_ids"]])
        new = tokens + len(self.start) - 1
        with torch.inference_mode():
            found = self.model.generate(
                ids, do_sample=False, max_new_tokens=new, forced_eos_token_id=None, **self._forced
            )[0].tolist()
        assert found[: len(self.start)] == self.start
        said = found[len(self.start) :]
        return said[: said.index(self._stop)] if self._stop in said else said

    @torch.inference_mode()
    def logits(self, source, ids):
        """Logits after each id of a text, run whole [ids, vocabulary]."""
        batch = torch.tensor([list(source)]), torch.tensor([list(ids)])
        logits = self.model(input_ids=batch[0], decoder_input_ids=batch[1], use_cache=False).logits[0].float()
        logits[:, [word for [word] in self.model.generation_config.bad_words_ids or ()]] = -1e30
        return logits
