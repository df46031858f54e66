"""What a model says of given texts: log-probabilities of tokens, texts, choices, labels and words."""

from jaxllm.score.choices import Choice as Choice
from jaxllm.score.choices import label_log_probs as label_log_probs
from jaxllm.score.choices import score_choices as score_choices
from jaxllm.score.sequences import map_sequences as map_sequences
from jaxllm.score.sequences import prepare as prepare
from jaxllm.score.sequences import score_sequences as score_sequences
from jaxllm.score.texts import TextScore as TextScore
from jaxllm.score.texts import rolling_log_probs as rolling_log_probs
from jaxllm.score.texts import rolling_windows as rolling_windows
from jaxllm.score.texts import score_examples as score_examples
from jaxllm.score.texts import score_texts as score_texts
from jaxllm.score.words import begins_word as begins_word
from jaxllm.score.words import word_surprisals as word_surprisals
