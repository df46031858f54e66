"""ListOps and Pathfinder are what their labels say, by a reading of strings and of pixels."""

import dataclasses
import re

import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.synthetic import (
    ListOpsConfig,
    PathfinderConfig,
    draw_listops,
    draw_pathfinder,
    evaluate_listops,
    listops_text,
    read_listops,
)

SHORT = ListOpsConfig(shortest=5, longest=40, most_arguments=6, depth=4)
# Dashes of one path are two pixels apart, paths seven: what is nearer than that is one path.
FINE = PathfinderConfig(size=64, dashes=5, distractors=3, dash=5.0, gap=2.0, margin=7.0, disc=2.5)


def value_by_rewriting(text):
    """Evaluate an innermost list at a time, in strings."""
    of = {
        "MAX": max,
        "MIN": min,
        "SM": lambda digits: sum(digits) % 10,
        "MED": lambda digits: int(np.median(digits)),
    }
    while found := re.search(r"\[(MAX|MIN|MED|SM)((?: \d)+) \]", text):
        value = of[found[1]]([int(digit) for digit in found[2].split()])
        text = text[: found.start()] + str(value) + text[found.end() :]
    return int(text)


def test_expressions_have_the_value_that_rewriting_finds():
    items = draw_listops(SHORT, 300, seed=0)
    assert len({item.tokens for item in items}) == 300 and items == draw_listops(SHORT, 300, seed=0)
    assert items[:50] != draw_listops(SHORT, 50, seed=1)
    for item in items:
        text = listops_text(item.tokens)
        assert read_listops(text) == item.tokens and 5 <= len(item.tokens) <= 40
        assert item.value == value_by_rewriting(text)
        levels = np.cumsum([word.startswith("[") - (word == "]") for word in text.split()])
        assert item.depth == levels.max() <= 3
    assert {item.depth for item in items} == {1, 2, 3}
    arguments = [len(match.split()) for item in items if item.depth == 1
                 for match in re.findall(r"\[\w+ ([\d ]+) \]", listops_text(item.tokens))]  # fmt: skip
    assert set(arguments) >= {3, 4, 5, 6} and max(arguments) <= 6


@pytest.mark.parametrize("text", ["", "[MAX ]", "[MAX 1 2", "1 2", "]", "[MAX 1 2 ] 3", "[SM 1 ] ]"])
def test_what_is_no_expression_is_told(text):
    with pytest.raises(UserError, match="is no expression of ListOps"):
        evaluate_listops(read_listops(text))


def test_wrong_words_and_lengths_are_told():
    with pytest.raises(UserError, match="'11' is no word of ListOps; it has 0 1"):
        read_listops("[MAX 1 11 ]")
    with pytest.raises(UserError, match="longest is 3 and shortest 1"):
        ListOpsConfig(shortest=1, longest=3)
    with pytest.raises(UserError, match="of .* trees 1 have 90 to 90 tokens|of .* trees 0 have 90 to 90"):
        draw_listops(ListOpsConfig(shortest=90, longest=90, most_arguments=2, depth=2), 2, seed=0)


def touching(image_HW, reach):
    """Number the groups of bright pixels that steps of `reach` join."""
    left = {tuple(place) for place in np.argwhere(image_HW > 60).tolist()}
    groups = []
    while left:
        edge, group = [left.pop()], set()
        while edge:
            row, column = edge.pop()
            group.add((row, column))
            near = {(r, c) for r, c in left if (r - row) ** 2 + (c - column) ** 2 <= reach**2}
            left -= near
            edge += near
        groups.append(group)
    return groups


def test_discs_are_joined_as_the_label_says():
    """By following pixels: discs are where a full square of pixels is bright."""
    drawn = draw_pathfinder(FINE, 12, seed=0)
    np.testing.assert_array_equal(drawn.images_NHW, draw_pathfinder(FINE, 12, seed=0).images_NHW)
    assert 0 < drawn.joined_N.sum() < 12
    for image_HW, joined in zip(drawn.images_NHW, drawn.joined_N, strict=True):
        bright = image_HW > 200
        full = np.lib.stride_tricks.sliding_window_view(bright, (4, 4)).all(axis=(2, 3))
        discs = touching(255 * full, 3)
        assert len(discs) == 2
        paths = touching(image_HW, 4)
        assert len(paths) == 5
        holds = [{n for n, path in enumerate(paths) if path & disc} for disc in discs]
        assert (holds[0] == holds[1]) == joined and all(len(one) == 1 for one in holds)


def test_kinds_of_image_differ_by_their_discs_alone():
    """As bright on average, and half of them are joined; images of any size are drawn, or refused."""
    config = PathfinderConfig(size=16, dashes=3, distractors=1)
    drawn = draw_pathfinder(config, 100, seed=1)
    means = [drawn.images_NHW[drawn.joined_N == kind].mean() for kind in (False, True)]
    spread = drawn.images_NHW.mean(axis=(1, 2)).std() * (2 / 50) ** 0.5
    assert abs(means[0] - means[1]) < 4 * spread and 30 < drawn.joined_N.sum() < 70
    with pytest.raises(UserError, match="two paths of 90 dashes and 1 distractors do not fit an image of 16"):
        draw_pathfinder(dataclasses.replace(config, dashes=90), 1, seed=0)
