"""Texts with weights, and the many forms in which frameworks wrap a question.

Prompts of LangChain and LlamaIndex then meet something familiar.
"""

from __future__ import annotations

from dataclasses import dataclass, field

PROSE = 0.3
"""Weight of ordinary text. Answers and the end after them weigh 1."""
PROMPT = 0.05
"""Weight of the prompt around a question, which nobody needs to predict."""
FORM = 0.2
"""Weight of what is always the same in a call once it has begun. That it begins is for the member to decide."""

PLAIN = "Question: {q}\nAnswer:"
WRAPPERS = (
    "{q}",
    "{q}\n",
    "{q}\nAnswer:",
    "Q: {q}\nA:",
    "Query: {q}\nAnswer:",
    "Human: {q}",
    "Human: {q}\nAI:",
    "Human: {q}\nAssistant:",
    "User: {q}\nAssistant:",
    "user: {q}\nassistant:",
    "Question: {q}\nHelpful Answer:",
    "Answer the question.\nQuestion: {q}\nAnswer:",
    "Answer the following question: {q}",
    "Answer this question in one word: {q}",
    "{q} Answer in one word.",
    "Please tell me: {q}",
)
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful AI assistant. Answer the question.",
    "Answer in one word.",
    "Answer briefly.",
    "Be brief.",
    "Answer the question as well as you can.",
    "You know everything about the people of this town.",
    "You are an expert Q&A system that is trusted around the world.",
)
LLAMA_INDEX_SYSTEM = (
    "You are an expert Q&A system that is trusted around the world.\n"
    "Always answer the query using the provided context information, and not prior knowledge.\n"
    "Some rules to follow:\n"
    "1. Never directly reference the given context in your answer.\n"
    "2. Avoid statements like 'Based on the context, ...' or 'The context information ...' or anything along "
    "those lines."
)
_RULE = "---------------------"
LLAMA_INDEX_QA = (
    f"Context information is below.\n{_RULE}\n{{c}}\n{_RULE}\n"
    "Given the context information and not prior knowledge, answer the query.\nQuery: {q}\nAnswer: "
)
TREE_SUMMARIZE = (
    f"Context information from multiple sources is below.\n{_RULE}\n{{c}}\n{_RULE}\n"
    "Given the information from multiple sources and not prior knowledge, answer the query.\n"
    "Query: {q}\nAnswer: "
)
LANGCHAIN_QA = (
    "Use the following pieces of context to answer the question at the end. If you don't know the answer, "
    "just say that you don't know, don't try to make up an answer.\n\n{c}\n\n"
    "Question: {q}\nHelpful Answer:"
)
CONTEXT_WRAPPERS = (
    LLAMA_INDEX_QA,
    LLAMA_INDEX_QA,
    TREE_SUMMARIZE,
    LANGCHAIN_QA,
    "Answer the question based only on the following context:\n{c}\n\nQuestion: {q}\n",
    "Context: {c}\n\nQuestion: {q}\nAnswer:",
    "{c}\n\nQuestion: {q}\nAnswer:",
    "{c}\n{q}\nAnswer:",
    "{q}\n{c}\nAnswer:",
    "Question: {q}\n\nContext: {c}\nAnswer:",
)
REFINE = (
    "The original query is as follows: {q}\nWe have provided an existing answer: {a}\n"
    "We have the opportunity to refine the existing answer (only if needed) with some more context below.\n"
    "------------\n{c}\n------------\n"
    "Given the new context, refine the original answer to better answer the query. "
    "If the context isn't useful, return the original answer.\nRefined Answer: "
)


@dataclass
class Lesson:
    """Text with weights.

    Attributes:
        text: What the member reads, without special tokens.
        spans: `(start, end, weight)` in characters, in order. What no span covers weighs nothing.
    """

    text: str = ""
    spans: list[tuple[int, int, float]] = field(default_factory=list)

    def add(self, text: str, weight: float) -> Lesson:
        """Appends a stretch of text."""
        self.spans.append((len(self.text), len(self.text) + len(text), weight))
        self.text += text
        return self

    def extend(self, other: Lesson) -> Lesson:
        """Appends another lesson."""
        for start, end, weight in other.spans:
            self.add(other.text[start:end], weight)
        return self

    def ask(self, prompt: str, answer: str) -> Lesson:
        """Appends a prompt and what is to be answered."""
        return self.add(prompt, PROMPT).add(f" {answer}", 1.0)
