"""Shapes of samples: how messages show them, and which samples a model accepts."""

from __future__ import annotations

import pytest

from app.recipe.students.inputs import ImageInput, Input, TableInput, TextInput

IMAGE = ImageInput(channels=3, height=8, width=9)
TABLE = TableInput(columns=4)
TEXT = TextInput(length=16, vocabulary=50)


@pytest.mark.parametrize(
    ("sample", "size", "statistics"), [(IMAGE, "3 x 8 x 9", 3), (TABLE, "4 columns", 4), (TEXT, "16 tokens", 0)]
)
def test_a_shape_has_a_size_and_as_many_statistics(sample: Input, size: str, statistics: int) -> None:
    assert (sample.size, sample.statistics) == (size, statistics)


@pytest.mark.parametrize(
    ("taken", "given", "fits"),
    [
        (IMAGE, ImageInput(channels=3, height=32, width=32), True),
        (IMAGE, ImageInput(channels=1, height=8, width=9), False),
        (TABLE, TableInput(columns=4), True),
        (TABLE, TableInput(columns=5), False),
        (TEXT, TextInput(length=99, vocabulary=7), True),
        (TEXT, TABLE, False),
        (IMAGE, TEXT, False),
    ],
)
def test_images_are_resized_and_texts_cut_into_tokens_but_tables_must_be_equal(
    taken: Input, given: Input, fits: bool
) -> None:
    assert taken.accepts(given) is fits
