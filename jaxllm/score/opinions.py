"""What a model's next word says of a target: opinions of one word, read off exactly, without sampling.

Susaiyah, Pandya and Harma, "Opinion Mining Using Population-tuned Generative Language Models" (arXiv
2307.13173), generate texts and classify them. Where a template's next word is the opinion, its distribution
is what endless samples at temperature 1 would say.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxllm import models
from jaxllm.data.tokenizer import encode_prompt
from jaxllm.errors import UserError, brief
from jaxllm.score.choices import score_choices

SLOT = "{x}"


def fill_template(template: str, target: str) -> str:
    """Return a template with a target in its slot.

    Raises:
      UserError: a template without a slot, or an empty target.

    Examples:
      >>> fill_template("I think the {x} is", "pear")
      'I think the pear is'
    """
    if SLOT not in template:
        raise UserError(f"the template {brief(template)} has no slot; write {SLOT} where the target goes")
    if not target.strip():
        raise UserError("a target is empty; give the word that the opinion is of")
    return template.replace(SLOT, target)


def read_opinions(
    config: models.LanguageModel,
    params,
    tokenizer,
    templates: Sequence[str],
    targets: Sequence[str],
    words: Mapping[str, Sequence[str]],
) -> np.ndarray:
    """Return the probability that each class of words comes next, float64 [templates, targets, classes].

    What is missing to 1 went to other words: it says how often no such opinion is expressed. A word of
    several tokens has the product of their probabilities. "bad" counts "badly" too where a tokenizer begins
    both with one token.

    Args:
      config: the model.
      params: its parameters.
      tokenizer: its tokenizer.
      templates: prompts with `SLOT` in place of the target, whose next word is the opinion.
      targets: what opinions are asked of.
      words: the opinion words of each class, as they follow the prompt: with the space before them where the
        tokenizer wants one.

    Raises:
      UserError: no templates, targets or classes; a template without its slot; a word that two classes hold.
    """
    for name, some in (("templates", templates), ("targets", targets), ("words", words)):
        if not len(some):
            raise UserError(f"{name} is empty; give at least one")
    prompts = [fill_template(template, target) for template in templates for target in targets]
    classes = [(name, word) for name, some in words.items() for word in some]
    ids = [tokenizer.encode(word).tolist() for _, word in classes]
    if len({tuple(one) for one in ids}) < len(ids):
        raise UserError("an opinion word is there twice, in one class or in two; give each once")
    scored = score_choices(
        config, params, [encode_prompt(tokenizer, p) for p in prompts], [ids] * len(prompts)
    )
    chances = np.exp([[one.log_prob for one in row] for row in scored])
    of_class = np.array([[name == wanted for wanted in words] for name, _ in classes], float)
    return (chances @ of_class).reshape(len(templates), len(targets), len(words))


def polarisation(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Return positive / (positive + negative), NaN where neither is said."""
    total = np.asarray(positive, np.float64) + negative
    return np.divide(positive, total, out=np.full(np.shape(total), np.nan), where=total > 0)
