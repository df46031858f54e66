"""A policy as a task of the ordinary loop: rollouts are its batches, drawn from what is being trained."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import numpy as np

from jaxllm import models
from jaxllm.config import Count, Positive, Range, Size, UserPath
from jaxllm.errors import UserError
from jaxllm.generate import Decoder
from jaxllm.reward.advantages import group_standardised, kl_estimates, leave_one_out
from jaxllm.reward.losses import clipped_loss, reinforce_loss
from jaxllm.reward.rollouts import Rollouts, draw_rollouts, jitted_log_probs, policy_log_probs
from jaxllm.train import RunConfig, Task

# What is drawn of each row, without the end token -> (rewards [B], figures to log, by name).
SampleReward = Callable[[Sequence[Sequence[int]]], tuple[np.ndarray, dict[str, float]]]


@dataclass(frozen=True)
class PolicyConfig(RunConfig):
    """A run of policy gradients: REINFORCE, or with `clip` PPO's ratio; no value head.

    A draw serves `epochs` steps, each on all of it. A run that goes on within a draw draws anew.
    """

    steps: Count = 40
    rollouts: Size = 64  # a draw
    max_new_tokens: Count = 48  # of each, the end token included
    group: Size | None = None  # rollouts of one prompt, compared with one another; None: all of a draw are
    baseline: Literal["leave_one_out", "group"] = "leave_one_out"  # "group": GRPO's standardised rewards
    clip: Positive | None = None  # of PPO's ratio, 0.2 say; None: REINFORCE
    epochs: Count = 1  # steps on each draw
    kl: Annotated[float, Range(0)] = 0.05  # taken off the reward for each nat of KL to the reference
    log_every: Count = 1
    out: UserPath = "runs/policy"

    _free = RunConfig._free

    def __post_init__(self):
        super().__post_init__()
        if self.epochs > 1 and self.clip is None:
            raise UserError(
                f"epochs={self.epochs} trains on what older parameters drew, which needs clip; "
                "set it, 0.2 say"
            )
        group = self.group or self.rollouts
        if group < 2 or self.rollouts % group:
            raise UserError(
                f"rollouts={self.rollouts} in groups of {group}; give groups of 2 or more that divide them"
            )

    @property
    def work_per_step(self) -> tuple[int, str]:
        """What a step works through, for the log's speeds."""
        return self.rollouts * self.max_new_tokens, "tokens"


def policy_task(
    config: PolicyConfig,
    model: models.LanguageModel,
    reference: Any,
    prompts: Sequence[Sequence[int]],
    reward: SampleReward,
    *,
    end_id: int,
    policy: Callable[[Any], Any] = lambda params: params,
    on_draw: Callable[[int, Rollouts, dict[str, float]], None] | None = None,
) -> Task:
    """Return the task of a policy that is trained to be rewarded: what `jaxllm.train.train` takes.

    Its reward is r_i - kl sum_t (log p - log p_ref); see `PolicyConfig` for the rest. Where only a part of
    the model is trained, replace the task's `init`, `axes`, `frozen` and `frozen_axes` by the view's.

    Args:
      config: the run.
      model: the policy's config.
      reference: parameters that it should stay near, and mostly starts from (`start=` of `train`).
      prompts: token ids; each draw takes some, in an order of its own.
      reward: of what was drawn.
      end_id: the token that ends a sequence.
      policy: what is trained -> the model's parameters; of an adapter `lambda x: lora.merge(x, base)`.
      on_draw: is told each draw: its number, the rollouts, and figures (reward, kl, entropy, length, ended).

    Raises:
      UserError: several processes; prompts that the model's context has no room for.
    """
    if jax.process_count() > 1:
        raise UserError("rollouts are drawn in one process, and this run has several; start it on one host")
    if not len(prompts):
        raise UserError("there are no prompts to continue; give one at least ([[end_id]] begins a text)")
    longest = max(map(len, prompts))

    def loss(params, batch, key):
        log_probs_BT = policy_log_probs(model, params, batch["tokens"])
        if config.clip is None:
            mean = reinforce_loss(log_probs_BT, batch["advantages"], batch["mask"])
        else:
            mean = clipped_loss(
                log_probs_BT, batch["log_probs"], batch["advantages"], batch["mask"], config.clip
            )
        return mean, {"token_count": np.float32(len(log_probs_BT))}

    B, U, float32 = config.rollouts, longest + config.max_new_tokens, np.float32
    shapes = {name: jax.ShapeDtypeStruct((B, U - 1), float32) for name in ("mask", "log_probs")}
    shapes |= {
        "tokens": jax.ShapeDtypeStruct((B, U), np.int32),
        "advantages": jax.ShapeDtypeStruct((B,), float32),
    }
    draws = lambda: _Draws(config, model, reference, prompts, longest, reward, end_id, policy, on_draw)
    init = lambda key: models.init(model, key)
    return Task(init, models.axes(model), draws, loss, batch_shapes=shapes)


class _Draws(Iterator[dict[str, np.ndarray]]):
    """Batches that follow the parameters: the loop shows them before it asks for one."""

    def __init__(self, config, model, reference, prompts, longest, reward, end_id, policy, on_draw):
        self._config, self._model, self._prompts, self._longest = config, model, prompts, longest
        self._reference, self._reward, self._end_id = reference, reward, end_id
        self._policy, self._on_draw = policy, on_draw
        self._step, self._batch, self._params = 0, None, None

    def follow(self, params: Any) -> None:
        """Take the parameters that the next batch is drawn from."""
        self._params = params

    def __next__(self) -> dict[str, np.ndarray]:
        number, epoch = divmod(self._step, self._config.epochs)
        if epoch == 0 or self._batch is None:
            self._batch = self._draw(number)
        self._step, self._params = self._step + 1, None  # the next step uses their memory
        return self._batch

    def _draw(self, number: int) -> dict[str, np.ndarray]:
        config = self._config
        group = config.group or 1
        choose = np.random.default_rng((config.seed, number))
        count = config.rollouts // group
        order = np.concatenate(
            [choose.permutation(len(self._prompts)) for _ in range(-(-count // len(self._prompts)))]
        )
        prompts = [self._prompts[i] for i in order[:count] for _ in range(group)]
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        decoder = Decoder(self._model, self._policy(self._params))
        drawn = draw_rollouts(
            decoder, prompts, max_new_tokens=config.max_new_tokens, end_id=self._end_id, key=key,
            longest_prompt=self._longest,
        )  # fmt: skip
        del decoder
        reference_BT = jitted_log_probs(self._model, self._reference, drawn.tokens_BU)
        rewards_B, figures = self._reward(drawn.drawn())
        kl_B = kl_estimates(drawn.log_probs_BT, reference_BT, drawn.mask_BT).sum(axis=1)
        baseline = leave_one_out if config.baseline == "leave_one_out" else group_standardised
        advantages_B = baseline(np.asarray(rewards_B) - config.kl * kl_B, config.group)
        if self._on_draw is not None:
            count_B = drawn.mask_BT.sum(axis=1)
            known = {
                "reward": float(np.mean(rewards_B)), "kl": float(kl_B.mean()),
                "length": float(count_B.mean()),
                "entropy": float(-drawn.log_probs_BT.sum() / count_B.sum()),
                "ended": float(drawn.ended_B.mean()),
            }  # fmt: skip
            self._on_draw(number, drawn, known | figures)
        return {
            "tokens": drawn.tokens_BU, "mask": drawn.mask_BT, "log_probs": drawn.log_probs_BT,
            "advantages": advantages_B,
        }  # fmt: skip

    def state(self) -> dict[str, int]:
        """Return how many batches were taken."""
        return {"step": self._step}

    def restore(self, state: dict[str, int]) -> None:
        """Go to a saved place."""
        self._step, self._batch = state["step"], None
