"""LlamaIndex on a real pair of models: questions to an index, streamed, and an object.

Run with: python examples/real_pair_llama_index.py [MODEL MODEL]

The models are folders or hub ids; by default two small ones, which the first run fetches from the hub. Other models
give other answers. `examples/README.md` has the output for the default pair.
"""

import sys
import time

from llama_index.core import Document, PromptTemplate, VectorStoreIndex
from pydantic import BaseModel, Field

from deepen_integrations.llama_index import DeepenLLM, HashingEmbedding, configure_settings

PAIR = ["Qwen/Qwen2.5-Coder-0.5B-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"]
TEXTS = [
    "The museum of ships opens at nine and closes at five. On Mondays it is closed.",
    "The tower was built in 1887. It has 300 steps and no lift.",
    "Tickets for the ferry cost four euros. Children under six travel free.",
]


class Museum(BaseModel):
    """What is written about a museum."""

    opens: str = Field(max_length=20)
    closes: str = Field(max_length=20)
    closed_on: str = Field(max_length=20)


def main() -> None:
    started = time.perf_counter()
    with DeepenLLM(models=sys.argv[1:] or PAIR, dtype="bfloat16", max_new_tokens=96) as llm:
        configure_settings(llm)  # loads the models: LlamaIndex fills prompts counted with main's tokenizer
        print(f"Loaded after {time.perf_counter() - started:.1f} s\n", file=sys.stderr)

        # The embedding is a toy that finds texts with the same words; any embedding of LlamaIndex takes its place.
        index = VectorStoreIndex.from_documents([Document(text=text) for text in TEXTS], embed_model=HashingEmbedding())
        engine = index.as_query_engine(similarity_top_k=1, streaming=True)
        for question in (
            "When does the museum close?",
            "When was the tower built?",
            "What do tickets for the ferry cost?",
        ):
            print(f"{question:<38}", end="")
            for piece in engine.query(question).response_gen:
                print(piece, end="", flush=True)
            print()

        print(f"\nAn object: {llm.structured_predict(Museum, PromptTemplate('{text}'), text=TEXTS[0])!r}")


if __name__ == "__main__":
    main()
