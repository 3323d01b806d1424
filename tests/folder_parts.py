"""Changes to model folders, and the advice that is given for them."""

import json
from importlib.metadata import PackageNotFoundError, version

from deepen_core import Ensemble


def there(package):
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


SPM = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"  # how a SentencePiece model begins


def set_json(path, **fields):
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **fields}))


def only(folder, *names):
    """Leaves nothing of a folder, and puts empty files in it; a name with a slash at its end is a folder."""
    for path in folder.iterdir():
        path.unlink()
    for name in names:
        (folder / name).mkdir() if name.endswith("/") else (folder / name).touch()


def without_weights(folder, *names):
    """Puts other files in place of the weights."""
    (folder / "model.safetensors").unlink()
    for name in names:
        (folder / name).mkdir() if name.endswith("/") else (folder / name).touch()


def saved(place, options="", tokenizer_options=""):
    return (
        f"AutoModelForCausalLM.from_pretrained('{place}'{options}).save_pretrained('converted') and "
        f"AutoTokenizer.from_pretrained('{place}'{tokenizer_options}).save_pretrained('converted')."
    )


def answer(folder):
    with Ensemble.load([folder], device="cpu", progress=False) as ensemble:
        return ensemble.generate("The quick", max_new_tokens=6).text
