"""jaxllm demo: the words that everybody begins with."""

import pytest

from jaxllm.cli.demo import counted
from jaxllm.write import Lexicon

LINES = ["one two three four", "", "two three  five", "six"]


@pytest.mark.parametrize("most", range(1, 10))
@pytest.mark.parametrize("lines", [LINES, LINES[:1]], ids=["lines", "one line"])
def test_as_many_words_are_counted_as_asked_whatever_the_lines(lines, most, tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(lines))
    found, expected, left = counted(str(tmp_path / "text.txt"), most), Lexicon(), most
    for line in lines:
        first = line.split()[:left]
        expected.learn(" ".join(first))
        left -= len(first)
    assert found.tokens == expected.tokens == min(most, len(" ".join(lines).split()))
    assert list(found.grams.grams()) == list(expected.grams.grams())
