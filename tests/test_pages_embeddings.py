"""The pages' snippets on embedding models, which need packages of their own: run where these are, on a tiny model."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

DOCS = Path(__file__).parent.parent / "docs"
FOLDER = "models/bge-small-en-v1.5"
PAGES = {"langchain.md": "langchain_huggingface", "llama_index.md": "llama_index.embeddings.huggingface"}


def save_bert(folder):
    """A random sentence encoder; sentence-transformers adds mean pooling by itself."""
    from transformers import BertConfig, BertModel

    tokenizer = tiny.wordpiece()
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)


def snippet(page):
    (text,) = re.findall(r"^```py\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return text


@pytest.mark.parametrize("page", PAGES)
def test_they_can_be_compiled_and_name_the_model(page):
    compile(snippet(page), page, "exec")
    assert FOLDER in snippet(page)


@pytest.mark.slow
@pytest.mark.usefixtures("needs_demo")
@pytest.mark.parametrize(("page", "package"), PAGES.items())
def test_they_run(page, package, tmp_path):
    pytest.importorskip(package)
    save_bert(tmp_path / FOLDER)
    run = subprocess.run(
        [sys.executable, "-c", snippet(page)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()
