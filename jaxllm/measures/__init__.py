"""What sets of texts are like, and what may be concluded from counts of them. NumPy alone, no model.

Start with `find_copies(texts, training)` and `distinct_n(texts, 2, budget=10_000)` of what a model wrote:

    copied = find_copies(samples, training_texts)       # print it beside any figure of quality
    print(copied.exact_rate, copied.copy_rate(words=8), distinct_n(samples, 2, budget=10_000), mtld(samples))

Shares of two populations: `refit_test` compares refitted models, `sample_test` texts that people wrote,
`benjamini_hochberg` corrects for many tests, `correct_shares` for a scorer's mistakes. `Lexicon` says a
text's polarity by VADER's rules. `crossed_interval` and `krippendorff_alpha` are for ratings.
"""

from jaxllm.measures.copied import Copied, find_copies, suffix_array
from jaxllm.measures.diversity import distinct_n, loop_share, mark_share, mtld, opening_share, words_of
from jaxllm.measures.polarity import CLASSES, Lexicon, load_vader, parse_lexicon
from jaxllm.measures.proportions import (
    Comparison,
    benjamini_hochberg,
    correct_shares,
    effect_size,
    refit_test,
    sample_test,
    table_test,
    wilson_interval,
)
from jaxllm.measures.ratings import crossed_interval, krippendorff_alpha
from jaxllm.measures.readability import flesch_reading_ease, syllables
from jaxllm.measures.typography import normalize_typography

__all__ = [
    "CLASSES",
    "Comparison",
    "Copied",
    "Lexicon",
    "benjamini_hochberg",
    "correct_shares",
    "crossed_interval",
    "distinct_n",
    "effect_size",
    "find_copies",
    "flesch_reading_ease",
    "krippendorff_alpha",
    "load_vader",
    "loop_share",
    "mark_share",
    "mtld",
    "normalize_typography",
    "opening_share",
    "parse_lexicon",
    "refit_test",
    "sample_test",
    "suffix_array",
    "syllables",
    "table_test",
    "wilson_interval",
    "words_of",
]
