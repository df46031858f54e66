"""What a model says of given texts: log-probabilities of tokens, texts, choices, labels and words."""

from jaxllm.score.choices import Choice, label_log_probs, score_choices
from jaxllm.score.sequences import map_sequences, prepare, score_sequences
from jaxllm.score.texts import TextScore, rolling_log_probs, rolling_windows, score_examples, score_texts
from jaxllm.score.words import begins_word, word_surprisals

__all__ = [
    "Choice",
    "TextScore",
    "begins_word",
    "label_log_probs",
    "map_sequences",
    "prepare",
    "rolling_log_probs",
    "rolling_windows",
    "score_choices",
    "score_examples",
    "score_sequences",
    "score_texts",
    "word_surprisals",
]
