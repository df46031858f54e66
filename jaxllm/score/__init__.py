"""What a model says of given texts: of tokens, texts, choices, labels and words, and their calibration.

Start with `score_texts(config, params, tokenizer, texts)`: loss, perplexity and bits per byte of each text.
Of ids: `score_sequences` gives log p of every token.

    model = from_pretrained("HuggingFaceTB/SmolLM2-135M")
    print(score_texts(*model, "One text, of any length.").bits_per_byte)
    [[yes, no]] = score_choices(config, params, [context], [[[318], [407, 257]]])  # ids

`label_log_probs` turns choices into a classifier's answer, `word_surprisals` adds up to words,
`score_examples` scores completions, `score_combined_choices` choices under several models together (a step of
`jaxllm.generate`); a `FewShotTask` asks in prompts, and `CALIBRATORS` correct its answers by a `Prior`.
lm-evaluation-harness runs on them: `jaxllm evaluate --tasks`.
"""

from jaxllm.score.calibrate import CALIBRATORS, divide_by_prior, keep_as_given
from jaxllm.score.choices import Choice, label_log_probs, score_choices
from jaxllm.score.combined import score_combined_choices
from jaxllm.score.few_shot import FewShotTask, content_free_inputs, random_word_inputs
from jaxllm.score.label_metrics import accuracy, macro_auroc, macro_f1
from jaxllm.score.opinions import SLOT, fill_template, polarisation, read_opinions
from jaxllm.score.prior import Prior, estimate_prior, uniform_prior
from jaxllm.score.prompted import FewShotPrompt
from jaxllm.score.prototypes import Prototypes, assign_prototypes, fit_prototypes
from jaxllm.score.sample_inputs import SampledInputs, sample_inputs
from jaxllm.score.sequences import map_sequences, prepare, score_sequences
from jaxllm.score.texts import TextScore, rolling_log_probs, rolling_windows, score_examples, score_texts
from jaxllm.score.words import begins_word, word_surprisals

__all__ = [
    "CALIBRATORS",
    "SLOT",
    "Choice",
    "FewShotPrompt",
    "FewShotTask",
    "Prior",
    "Prototypes",
    "SampledInputs",
    "TextScore",
    "accuracy",
    "assign_prototypes",
    "begins_word",
    "content_free_inputs",
    "divide_by_prior",
    "estimate_prior",
    "fill_template",
    "fit_prototypes",
    "keep_as_given",
    "label_log_probs",
    "macro_auroc",
    "macro_f1",
    "map_sequences",
    "polarisation",
    "prepare",
    "random_word_inputs",
    "read_opinions",
    "rolling_log_probs",
    "rolling_windows",
    "sample_inputs",
    "score_choices",
    "score_combined_choices",
    "score_examples",
    "score_sequences",
    "score_texts",
    "uniform_prior",
    "word_surprisals",
]
