"""A loss from outside: called as promised, in training and in evaluation, and checked before any compile."""

import jax
import pytest

from jaxllm.errors import UserError
from jaxllm.text import evaluate, next_token_loss, prepare

ONE = jax.devices()[:1]


def test_an_evaluation_reports_what_a_loss_sums_and_its_mean_without_that(tiny):
    config = tiny(z_loss=0.1)
    plain = prepare(config, devices=ONE)
    next_token = next_token_loss(plain.config)
    params = plain.init(jax.random.key(0)).params
    want = evaluate(plain, params, max_batches=2)

    def told(params, batch, key, /):  # nothing else may be passed
        mean, sums = next_token(params, batch, key)
        return mean + 5.0, sums

    def untold(params, batch, key, /):
        mean, sums = told(params, batch, key)
        return mean, {"token_count": sums["token_count"]}

    jobs = [prepare(config, loss=loss, devices=ONE) for loss in (told, untold)]
    got = [evaluate(job, params, max_batches=2) for job in jobs]
    assert got[0]["loss"] == pytest.approx(want["loss"], rel=1e-6)
    assert got[1]["loss"] > want["loss"] + 5 and got[1]["tokens"] == want["tokens"]
    no_z = evaluate(prepare(tiny(), devices=ONE), params, max_batches=2)
    assert want["loss"] == pytest.approx(no_z["loss"], rel=1e-6)


@pytest.mark.parametrize(
    "returns, said",
    [
        (lambda x: x, r"returned float32\[\]"),
        (lambda x: (x, {}), r"\('float32\[\]', \{\}\)"),
        (lambda x: (x, {"token_count": x[None]}), r"'token_count': 'float32\[1\]'"),
        (lambda x: (x[None], {"token_count": x}), r"\('float32\[1\]'"),
    ],
)
def test_a_loss_that_returns_something_else_is_refused(tiny, returns, said):
    with pytest.raises(UserError, match=said):
        prepare(tiny(), loss=lambda params, batch, key: returns(batch["mask"].sum()), devices=ONE)
