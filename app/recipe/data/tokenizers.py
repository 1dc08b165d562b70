"""Sources of a student's tokenizer."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from app.recipe.base import Option, Paper

Vocabulary = Annotated[int, Field(ge=64, le=1_000_000)]


class TeacherTokenizer(Option):
    """The teacher's tokenizer, so that both have the same tokens."""

    kind: Literal["teacher"] = "teacher"


class Trained(Option):
    """A tokenizer that is trained on the training texts and stored with the student's weights."""

    vocabulary: Vocabulary = 8000
    """Most tokens, special ones included."""
    lowercase: bool = True
    """Converts texts to lower case, and removes accents."""


class WordPiece(Trained):
    """Splits words into pieces that make the training texts likely, as in BERT."""

    paper: ClassVar[Paper | None] = Paper(
        "Google's Neural Machine Translation System: Bridging the Gap between Human and Machine Translation",
        "1609.08144",
    )
    kind: Literal["wordpiece"] = "wordpiece"


class BytePairs(Trained):
    """Merges the most frequent pairs of bytes, so that no text has unknown tokens."""

    paper: ClassVar[Paper | None] = Paper("Neural Machine Translation of Rare Words with Subword Units", "1508.07909")
    kind: Literal["bpe"] = "bpe"
    vocabulary: Annotated[int, Field(ge=512, le=1_000_000)] = 8000
    """Most tokens, special ones and the 256 bytes included."""


Tokenizer = Annotated[TeacherTokenizer | WordPiece | BytePairs, Field(discriminator="kind")]
TOKENIZERS: tuple[type[Option], ...] = (TeacherTokenizer, WordPiece, BytePairs)
