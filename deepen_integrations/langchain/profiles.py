"""What LangChain's model profile says about an ensemble."""

from __future__ import annotations

from typing import cast

from langchain_core.language_models.model_profile import ModelProfile

from deepen_core.config.constraints import can_constrain
from deepen_integrations.adapter import DeepenAdapter


def model_profile(adapter: DeepenAdapter) -> ModelProfile:
    """Describes a chat model by what is known without loading it."""
    window, constrains = adapter.facts.main_window, can_constrain()
    profile = ModelProfile(
        name=adapter.model_name,
        max_output_tokens=adapter.max_tokens,
        text_inputs=True,
        image_inputs=False,
        audio_inputs=False,
        video_inputs=False,
        text_outputs=True,
        image_outputs=False,
        audio_outputs=False,
        video_outputs=False,
        tool_calling=constrains,
        tool_choice=constrains,
        tool_call_streaming=constrains,
        structured_output=constrains,
        reasoning_output=adapter.facts.thinks,
    )
    if window is not None:
        profile["max_input_tokens"] = window - 1  # a prompt leaves room for one token of an answer
    # LangChain warns of keys that it does not know, and its versions differ in what they know.
    known = {name: value for name, value in profile.items() if name in ModelProfile.__annotations__}
    return cast("ModelProfile", known)
