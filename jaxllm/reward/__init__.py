"""Rollouts and policy gradients for text, on the ordinary loop.

Start with `policy_task`:

    task = policy_task(config, model, params, prompts, reward, end_id=tokenizer.eos_id)
    trained = train(task, config, optimizer=optax.adam(1e-5), start=params)

where `reward` says what each drawn sequence is worth: any function, or a `Reward` of weighted terms, each
standardised within the batch. `draw_rollouts` samples at temperature 1 and truncates nothing; baselines
(`leave_one_out`, `group_standardised`), losses (`reinforce_loss`, `clipped_loss`), `kl_estimates` and
`generalised_advantages` stand alone, for a loop of your own.
"""

from jaxllm.reward.advantages import (
    generalised_advantages,
    group_standardised,
    kl_estimates,
    leave_one_out,
    standardised,
)
from jaxllm.reward.losses import clipped_loss, reinforce_loss
from jaxllm.reward.rollouts import Rollouts, draw_rollouts, policy_log_probs
from jaxllm.reward.task import PolicyConfig, policy_task
from jaxllm.reward.terms import Reward, Rewarded, Term, agreement, diversity, head_gradients

__all__ = [
    "PolicyConfig",
    "Reward",
    "Rewarded",
    "Rollouts",
    "Term",
    "agreement",
    "clipped_loss",
    "diversity",
    "draw_rollouts",
    "generalised_advantages",
    "group_standardised",
    "head_gradients",
    "kl_estimates",
    "leave_one_out",
    "policy_log_probs",
    "policy_task",
    "reinforce_loss",
    "standardised",
]
