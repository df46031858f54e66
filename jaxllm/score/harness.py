"""A model as EleutherAI's lm-evaluation-harness takes it (extra `harness`)."""

import dataclasses
import itertools

import jax
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from jaxllm import models
from jaxllm.data import start_id
from jaxllm.data.tokenizer import begin_ids, encode_prompt, encode_source
from jaxllm.errors import UserError, brief, unknown
from jaxllm.generate import Decoder, SamplingConfig, generate_text
from jaxllm.score.choices import score_choices
from jaxllm.score.sequences import TOKENS_PER_BATCH, check_tokenizer, prepare
from jaxllm.score.texts import rolling_log_probs

_PROMPTS_PER_BATCH = 16
_SAMPLING = tuple(field.name for field in dataclasses.fields(SamplingConfig))


class HarnessModel(TemplateLM):
    """Answers the harness's requests with `jaxllm.score` and `jaxllm.generate`.

    A request longer than the model's context is cut on the left, as the harness's own backends do. Contexts
    that several continuations share, such as a question's, are read once. Each batch of prompts draws anew; a
    new instance draws the same again.

    Args:
      config: the model.
      params: its parameters.
      tokenizer: from `jaxllm.data.load_tokenizer`.
      prefix_id: read before a text that has nothing before it; None is `data.start_id`.
      max_gen_toks: new tokens of a request that names no number; a prompt has the rest of the context.
      tokens_per_batch: what one call of the model computes.
    """

    def __init__(
        self,
        config: models.LanguageModel,
        params,
        tokenizer,
        *,
        prefix_id: int | None = None,
        max_gen_toks: int = 256,
        tokens_per_batch: int = TOKENS_PER_BATCH,
    ):
        super().__init__()
        check_tokenizer(tokenizer)
        self.config, self.params = config, prepare(config, params)
        self._ids = tokenizer
        self._prefix_id = start_id(tokenizer) if prefix_id is None else prefix_id
        self._max_gen_toks, self._tokens_per_batch = max_gen_toks, tokens_per_batch
        self._batches = itertools.count()

    @property
    def eot_token_id(self) -> int:
        return self._ids.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self._prefix_id

    @property
    def max_length(self) -> int:
        return self.config.context_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        if add_special_tokens is False:
            return self._ids.encode(string).tolist()
        return encode_prompt(self._ids, string) if string else list(begin_ids(self._ids))

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs):
        groups: dict[tuple[int, ...], list[int]] = {}
        choices = []
        for number, (texts, context, choice) in enumerate(requests):
            if not choice:
                raise UserError(
                    f"the task asks for an empty continuation of the context {brief(texts[0])}; give it "
                    "at least one token"
                )
            choices.append(choice[-self.max_length :])
            kept = max(1, self.max_length + 1 - len(choices[-1]))  # as the harness's own backends truncate
            if self.config.start_id is not None:  # a source, with its end
                context, kept = [*context, self._ids.eos_id], len(context) + 1
            groups.setdefault(tuple(context[-kept:]), []).append(number)
        scores = score_choices(
            self.config,
            self.params,
            list(groups),
            [[choices[number] for number in group] for group in groups.values()],
            tokens_per_batch=self._tokens_per_batch,
            progress=not disable_tqdm,
        )
        answers = [(0.0, False)] * len(requests)
        for group, row in zip(groups.values(), scores, strict=True):
            for number, choice in zip(group, row, strict=True):
                answers[number] = (choice.log_prob, choice.is_greedy)
        for (texts, *_), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        texts = [request.args[0] for request in requests]
        documents = [[self.prefix_token_id, *ids.tolist()] for ids in self._ids.encode_batch(texts)]
        options = dict(tokens_per_batch=self._tokens_per_batch, progress=not disable_tqdm)
        totals = rolling_log_probs(self.config, self.params, documents, self.max_length, **options)
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), float(total))
        return totals.tolist()

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        decoder = Decoder(self.config, self.params)
        answers, groups = [""] * len(requests), {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        for group in groups.values():
            asked = normalize_gen_kwargs(requests[group[0]].args[1], self._max_gen_toks)
            sampling, new = _sampling(asked), asked["max_gen_toks"]
            group.sort(key=lambda number: -len(requests[number].args[0]))
            for start in range(0, len(group), _PROMPTS_PER_BATCH):
                some = group[start : start + _PROMPTS_PER_BATCH]
                prompts = [self._prompt(requests[number].args[0], new) for number in some]
                key = jax.random.fold_in(jax.random.key(0), next(self._batches))
                texts = generate_text(
                    *decoder, self._ids, prompts, sampling=sampling, max_new_tokens=new, key=key,
                    stop=tuple(word for word in asked["until"] if word),
                )  # fmt: skip
                for number, text in zip(some, texts, strict=True):
                    answers[number] = text
                    self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return answers

    def _prompt(self, text: str, new: int) -> list[int]:
        """Return the ids of a text, cut on the left where the context could not hold them and the answer."""
        if self.config.start_id is not None:  # an answer is not read where its source is
            return encode_source(self._ids, text)[-self.max_length :]
        if new >= self.max_length:
            raise UserError(
                f"a request asks for {new} new tokens, which leaves no room for its prompt in the model's "
                f"context of {self.max_length}; set max_gen_toks, in the task or of the model, to less"
            )
        return encode_prompt(self._ids, text)[new - self.max_length :]


def _sampling(asked: dict) -> SamplingConfig:
    """Return how a request draws, every argument read or refused."""
    known = ("until", "max_gen_toks", "do_sample", *_SAMPLING)
    for name, value in asked.items():
        if name not in known and (name, value) != ("num_beams", 1):
            raise unknown("generation argument", name, known)
    return SamplingConfig(**{"temperature": 0.0} | {name: asked[name] for name in _SAMPLING if name in asked})
