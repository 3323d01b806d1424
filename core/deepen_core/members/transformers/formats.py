"""Recognises models in other formats than `transformers` folders, and says how to get to one that can be loaded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from deepen_core.errors import ModelFilesError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CAUSAL, SEQ2SEQ = "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"
"""Names of the classes of `transformers` that load decoder-only and encoder-decoder models."""

# How weights for other runtimes are called. They cannot be turned back.
_RUNTIMES = {
    "OpenVINO": ("openvino*.xml", "openvino/"),
    "ONNX": ("*.onnx", "onnx/"),
    "TensorFlow Lite": ("*.tflite",),
    "Core ML": ("*.mlpackage/", "*.mlmodel", "coreml/"),
    "TensorRT": ("*.engine",),
}
# What training leaves beside weights, in files that are named like weights.
_LEFTOVERS = ("training_args.*", "optimizer*", "scheduler*", "scaler*", "rng_state*")


def top_names(paths: Iterable[str]) -> list[str]:
    """Returns what is at the top of a folder, sorted: its files, and its folders with a slash at the end.

    Args:
        paths: Paths of all files, relative to the folder.
    """
    return sorted({name + slash for name, slash, _ in (path.partition("/") for path in paths)})


def folder_names(folder: Path) -> list[str]:
    """Returns the same as `top_names` for a folder on disk; nothing if there is none."""
    return sorted(path.name + "/" * path.is_dir() for path in folder.iterdir()) if folder.is_dir() else []


def has_weights(names: Collection[str]) -> bool:
    """Whether there are weights of the kind that is loaded.

    Args:
        names: As `top_names` returns them.
    """
    return WEIGHTS in names or INDEX in names


def check_format(place: str, names: Collection[str], kind: str = CAUSAL) -> None:
    """Rejects what is recognised as another kind of model, or as one whose weights are in another format.

    Args:
        place: The folder or hub id.
        names: As `top_names` returns them.
        kind: The class of `transformers` that loads the model, for advice.

    Raises:
        ModelFilesError: Naming the format, and how to get to a model that can be loaded.
    """
    kinds: list[Callable[[str, Collection[str]], str]] = [_diffusers, _sentence_transformers]
    if not has_weights(names):
        kinds += [partial(_pickled, kind=kind), _unnamed_safetensors, _gguf, _original]
        kinds += [partial(_old_framework, kind=kind), _runtime, _unknown_weights]
    for recognised in kinds:
        if found := recognised(place, names):
            raise ModelFilesError(f"{place} {found}")


def check_file(path: Path) -> None:
    """Rejects a file that was given in place of a model folder, where more can be said than that.

    Raises:
        ModelFilesError: Naming the folder to give, or how to convert the file.
    """
    if path.is_file() and path.suffix == ".gguf":
        raise ModelFilesError(f"{path} is a GGUF file, and kind is 'transformers': leave it out, or give kind='gguf'.")
    if path.is_file() and (path.parent / "config.json").is_file():
        raise ModelFilesError(f"{path} is a file: give the folder that it is in, {path.parent}.")


def conversion(place: str, options: str = "", tokenizer_options: str = "", kind: str = CAUSAL) -> str:
    """Returns the two lines of Python that save a model and its tokenizer in the format that is loaded.

    Args:
        place: The folder or hub id.
        options: Further arguments of the model's `from_pretrained`, each after a comma.
        tokenizer_options: The same for the tokenizer.
        kind: The class of `transformers` that loads the model.
    """
    return (
        f"{kind}.from_pretrained({place!r}{options}).save_pretrained('converted') and "
        f"AutoTokenizer.from_pretrained({place!r}{tokenizer_options}).save_pretrained('converted')"
    )


# Each of these returns the rest of a sentence, or nothing if the names are of another kind.


def _diffusers(_place: str, names: Collection[str]) -> str:
    found = _matching(names, "model_index.json", "diffusion_pytorch_model*")
    return f"belongs to diffusers ({_listed(found)}), not to a language model: give one." if found else ""


def _sentence_transformers(_place: str, names: Collection[str]) -> str:
    signs = ("config_sentence_transformers.json", "sentence_bert_config.json", "*_Pooling/")
    if "modules.json" not in names or not _matching(names, *signs):
        return ""
    return (
        "is a sentence-transformers model (modules.json), which turns texts into vectors: members must predict the "
        "next token. Give a causal language model."
    )


def _pickled(place: str, names: Collection[str], kind: str) -> str:
    found = _matching(names, "pytorch_model*.bin")
    if not found:
        return ""
    return (
        f"has its weights as pickle files only ({_listed(found)}), which can run code when they are loaded. If you "
        f"trust their author, convert them once with transformers: {conversion(place, kind=kind)}."
    )


def _unnamed_safetensors(_place: str, names: Collection[str]) -> str:
    found = _matching(names, "*.safetensors", but=("consolidated*", "adapter_*"))
    if not found:
        return ""
    if _matching(found, "*-of-*"):
        return f"has weight files ({_listed(found)}), but no {INDEX}, which says what is in which: fetch it again."
    return (
        f"has no {WEIGHTS}, but {_listed(found)}: if that is the whole model, rename it to {WEIGHTS}; if not, save the "
        "model with model.save_pretrained(folder)."
    )


def _gguf(place: str, names: Collection[str]) -> str:
    found = _matching(names, "*.gguf", but=("mmproj*",))  # these encode images for a model
    if not found:
        return ""
    file, told = found[0], f"has its weights as GGUF only ({_listed(found)})"
    if Path(place).is_dir():
        return f"{told}: give the file, such as {Path(place) / file}."
    return f"{told}: fetch a file, such as with `hf download {place} {file} --local-dir .`, and give its path."


def _original(_place: str, names: Collection[str]) -> str:
    found = _matching(names, "consolidated*")
    if not found:
        return ""
    return (
        f"is in the format of its authors ({_listed([*_matching(names, 'params.json'), *found])}), not in that of "
        "transformers. Fetch its config.json and model*.safetensors, which most hub repositories have as well, or "
        "convert it with convert_llama_weights_to_hf.py or convert_mistral_weights_to_hf.py of the transformers "
        "repository."
    )


def _old_framework(place: str, names: Collection[str], kind: str) -> str:
    for framework, name, option in (
        ("TensorFlow", "tf_model*.h5", ", from_tf=True"),
        ("Flax", "flax_model*.msgpack", ", from_flax=True"),
    ):
        if found := _matching(names, name):
            return (
                f"has its weights for {framework} only ({_listed(found)}): convert them once, with transformers 4 and "
                f"{framework} installed: {conversion(place, option, kind=kind)}."
            )
    return ""


def _runtime(_place: str, names: Collection[str]) -> str:
    for runtime, patterns in _RUNTIMES.items():
        if found := _matching(names, *patterns):
            return (
                f"has its weights for {runtime} only ({_listed(found)}), and they cannot be turned back: give the "
                "model that they were exported from."
            )
    return ""


def _unknown_weights(_place: str, names: Collection[str]) -> str:
    found = _matching(names, "*.bin", "*.pt", "*.pth", "*.ckpt", but=_LEFTOVERS)
    if not found:
        return ""
    return (
        f"has no {WEIGHTS}, but files that transformers does not load ({_listed(found)}): load them with the program "
        "that wrote them, and save the model with model.save_pretrained(folder)."
    )


def _matching(names: Collection[str], *patterns: str, but: tuple[str, ...] = ()) -> list[str]:
    def matches(name: str, some: tuple[str, ...]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in some)

    return [name for name in names if matches(name, patterns) and not matches(name, but)]


def _listed(names: Collection[str]) -> str:
    return ", ".join([*names][:3]) + (", ..." if len(names) > 3 else "")
