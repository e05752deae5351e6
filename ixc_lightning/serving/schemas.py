# SPDX-License-Identifier: Apache-2.0
"""What the service's own endpoints are asked and answer. What they do not know they refuse."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from ixc_lightning.serving.libraries import BaseModel, ConfigDict, Discriminator, Field, Tag

PIXEL = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
"""One red pixel, for the examples."""
MEDIA = "Base64 of a file, a data URL, an http(s) URL if the service may fetch them."
PATH = "A file below the service's folder of media, if it was given one."


class Strict(BaseModel):
    """An object without other fields than it declares."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(Strict):
    """A text within a turn."""

    type: Literal["text"]
    text: str


class ImagePart(Strict):
    """The place of a picture: of the next one in `images`, or of its own."""

    type: Literal["image"]
    image: str | None = Field(None, description=MEDIA)
    url: str | None = Field(None, description="An http(s) URL, if the service may fetch them.")
    path: str | None = Field(None, description=PATH)


class VideoPart(Strict):
    """The place of a clip: of the next one in `videos`, or of its own."""

    type: Literal["video"]
    video: str | None = Field(None, description=MEDIA)
    url: str | None = Field(None, description="An http(s) URL, if the service may fetch them.")
    path: str | None = Field(None, description=PATH)


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


def _form(value: Any) -> str:
    return "text" if isinstance(value, str) else "parts"


Content = Annotated[Annotated[str, Tag("text")] | Annotated[list[Part], Tag("parts")], Discriminator(_form)]


class Turn(Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Content = Field(description="A text, or parts of text, pictures and clips.")


Turns = Annotated[list[Turn], Field(min_length=1)]
Prompt = Annotated[Annotated[str, Tag("text")] | Annotated[Turns, Tag("parts")], Discriminator(_form)]
Files = list[str]

PROMPT = "The turns up to the responses, the user's last, or the user's only text."
IMAGES = "Pictures of the prompt, in the order of their parts; without parts they come before the first text."


class ScoreRequest(Strict):
    """Conversations to score, each ending with the assistant's turn."""

    conversations: Annotated[list[Turns], Field(min_length=1)]
    images: list[Files] | None = Field(None, description="The pictures of each conversation.")
    videos: list[Files] | None = Field(None, description="The clips of each conversation.")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "conversations": [
                        [
                            {"role": "user", "content": "Which digit is it?"},
                            {"role": "assistant", "content": "It is 3."},
                        ]
                    ],
                    "images": [[PIXEL]],
                }
            ]
        }
    )


class ScoreAnswer(Strict):
    """A score for each conversation, in their order, on both scales."""

    scores: list[float] = Field(description="As the score head gives them; higher is better.")
    normalised_scores: list[float] = Field(
        description="With mean 0 and standard deviation 1 on the data that the model was last validated on."
    )


class CompareRequest(Strict):
    """Two responses to one prompt."""

    conversation: Prompt = Field(description=PROMPT)
    a: str = Field(description="The first response.")
    b: str = Field(description="The second response.")
    images: Files = Field([], description=IMAGES)
    videos: Files = Field([], description="Clips, likewise.")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"conversation": "Which digit is it?", "a": "It is 3.", "b": "It is 5.", "images": [PIXEL]}
            ]
        }
    )


class CompareAnswer(Strict):
    """Which of two responses is preferred, and how surely."""

    a: float = Field(description="Score of the first response.")
    b: float = Field(description="Score of the second response.")
    preferred: Literal["a", "b"] | None = Field(description="The higher one; null if both are equal.")
    probability: float = Field(description="Of the first being preferred, by the Bradley-Terry model.")


class RankRequest(Strict):
    """Responses to one prompt."""

    conversation: Prompt = Field(description=PROMPT)
    responses: Annotated[list[str], Field(min_length=1)]
    images: Files = Field([], description=IMAGES)
    videos: Files = Field([], description="Clips, likewise.")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"conversation": "Name a prime.", "responses": ["Four.", "Seven.", "I cannot."]}]
        }
    )


class RankAnswer(ScoreAnswer):
    """The rank and the score of each response, in the order in which they were given."""

    ranks: list[int] = Field(description="1 is the best; equal scores share the better rank.")


class Failure(Strict):
    """Why a request was not answered."""

    error: str = Field(description="What is wrong, where, and what to do.")


class Health(Strict):
    """State of the service."""

    status: Literal["ok", "stopped", "busy"]
