"""BERT, RoBERTa and DeBERTa v2: parity with transformers, padding, heads, and what they refuse."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models, score
from jaxllm.errors import UserError
from jaxllm.generate import Decoder
from jaxllm.models import huggingface
from jaxllm.models.declarations import declare_attention
from jaxllm.models.disentangled import Disentangled, position_scores
from jaxllm.models.huggingface_config import config_from_huggingface, config_to_huggingface
from tests.models.random_params import random_params

# Float32 on both sides; the difference is the order of summation.
TOLERANCE = 1e-4
SIZES = dict(
    vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3,
    max_position_embeddings=32,
)  # fmt: skip
LABELS = dict(id2label={0: "no", 1: "yes", 2: "maybe"}, label2id={"no": 0, "yes": 1, "maybe": 2})
CASES = {
    "bert": ("BertForMaskedLM", SIZES),
    "bert-base": ("BertModel", SIZES),
    "bert-text": ("BertForSequenceClassification", SIZES | LABELS),
    "bert-token": ("BertForTokenClassification", SIZES | LABELS),
    "roberta": ("RobertaForMaskedLM", SIZES | dict(type_vocab_size=1)),
    "roberta-text": ("RobertaForSequenceClassification", SIZES | LABELS | dict(type_vocab_size=1)),
    "roberta-token": ("RobertaForTokenClassification", SIZES | dict(type_vocab_size=1)),
}
RELATIVE = dict(
    relative_attention=True, position_biased_input=False, position_buckets=4, max_relative_positions=11,
    pos_att_type="p2c|c2p", share_att_key=True, norm_rel_ebd="layer_norm", pad_token_id=0,
)  # fmt: skip
APART = dict(share_att_key=False, norm_rel_ebd="none", type_vocab_size=2)
CASES |= {
    "deberta": ("DebertaV2Model", SIZES | RELATIVE),
    "deberta-masked": ("DebertaV2ForMaskedLM", SIZES | RELATIVE | APART | dict(pos_att_type=["p2c"])),
    "deberta-text": ("DebertaV2ForSequenceClassification", SIZES | LABELS | RELATIVE | APART | dict(
        position_buckets=-1, max_relative_positions=-1,
    )),
    "deberta-token": ("DebertaV2ForTokenClassification", SIZES | LABELS | RELATIVE | APART | dict(
        pos_att_type=["c2p"],
    )),
    "deberta-learned": ("DebertaV2Model", SIZES | dict(type_vocab_size=0)),
}  # fmt: skip
LENGTHS = (17, 9, 1)


def theirs_and_ours(case):
    """Return (torch model in eval mode, our config, our params) with the same random weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    name, sizes = CASES[case]
    architecture = getattr(transformers, name)
    torch.manual_seed(0)
    model = architecture(architecture.config_class(**sizes)).eval()
    with torch.no_grad():  # so that biases and gains matter, and scores are far from uniform
        for parameter in model.parameters():
            parameter.copy_(parameter + 0.1 * torch.randn_like(parameter))
    theirs = model.config.to_dict() | dict(architectures=[name])
    config = config_from_huggingface(theirs)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return model, config, huggingface.params_from_state_dict(config, theirs["model_type"], state)


def padded_batch():
    """Return (tokens, types, mask) of texts of LENGTHS; 0 and 1, the ids of padding, are no token's."""
    draw = np.random.default_rng(0)
    mask = np.arange(max(LENGTHS))[None] < np.array(LENGTHS)[:, None]
    tokens = np.where(mask, draw.integers(2, 61, mask.shape), 0)
    return tokens, np.where(mask, np.arange(mask.shape[1])[None] > 6, 0).astype(int), mask.astype(int)


@pytest.mark.torch
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_match_transformers_with_padding(case):
    import torch

    model, config, params = theirs_and_ours(case)
    family = model.config.model_type
    tokens, types, mask = padded_batch()
    if family == "roberta":
        tokens, types = np.where(mask, tokens, 1), 0 * types
    given = dict(input_ids=tokens, token_type_ids=types, attention_mask=mask)
    output = model(**{name: torch.from_numpy(array) for name, array in given.items()})
    theirs = output.last_hidden_state if config.head == "tokens" else output.logits
    weights = np.random.default_rng(1).normal(size=theirs.shape) / 20
    if theirs.ndim == 3:
        weights *= mask[..., None]
    (theirs * torch.from_numpy(weights)).sum().backward()

    given_types = types if config.num_token_types else None

    def ours(params):
        hidden = models.trunk(config, params, tokens, token_types=given_types, segment_ids=mask)
        return hidden if config.head == "tokens" else models.logits(config, params, hidden)

    found = jax.jit(ours)(params)
    counted = np.broadcast_to(weights != 0, found.shape)
    difference = np.abs(found - theirs.detach().numpy())[counted].max()
    assert difference <= TOLERANCE, difference
    assert np.abs(found[counted]).max() > 0.2

    gradients = jax.jit(jax.grad(lambda p: jnp.sum(ours(p) * weights)))(params)
    found = huggingface.state_dict_from_params(config, family, gradients)
    for name, parameter in model.named_parameters():
        if parameter.grad is None:  # a pooler that nothing reads
            continue
        gradient = np.asarray(found[huggingface.full_name(family, name)])
        difference = np.abs(gradient - parameter.grad.numpy()).max()
        assert difference <= TOLERANCE, f"{name}: {difference}"


@pytest.mark.torch
@pytest.mark.parametrize("case", CASES)
def test_folders_go_both_ways(case, tmp_path):
    import torch

    from jaxllm.pretrained import from_pretrained, save_pretrained

    model, config, params = theirs_and_ours(case)
    model.save_pretrained(tmp_path / "theirs")
    read = from_pretrained(tmp_path / "theirs")
    assert read.config == config
    jax.tree.map(np.testing.assert_array_equal, read.params, params)
    save_pretrained(tmp_path / "ours", config, params)
    again, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    missing = {name for name in info["missing_keys"] if "pooler" not in name}
    assert not missing and not info["unexpected_keys"], info
    tokens, _, mask = padded_batch()
    given = dict(input_ids=torch.from_numpy(np.where(mask, tokens, model.config.pad_token_id)))
    given["attention_mask"] = torch.from_numpy(mask)
    outputs = [one.eval()(**given) for one in (model, again)]
    for one, other in zip(*(list(output.values())[:1] for output in outputs), strict=True):
        kept = torch.from_numpy(mask) == 1 if one.ndim == 3 else slice(None)
        assert torch.allclose(one[kept], other[kept], atol=1e-5)
    assert again.config.id2label == model.config.id2label or config.head in ("tokens", "masked")


NANO = models.get_preset("bert-nano", vocab_size=61)


def test_padding_changes_nothing_and_every_token_sees_every_other():
    params = random_params(NANO)
    tokens, types, mask = padded_batch()
    run = jax.jit(lambda p, t, k, m: models.trunk(NANO, p, t, token_types=k, segment_ids=m))
    hidden = run(params, tokens, types, mask)
    alone = run(params, tokens[1:2, :9], types[1:2, :9], mask[1:2, :9])
    assert np.abs(hidden[1, :9] - alone[0]).max() <= 1e-5
    moved = run(params, tokens + (np.arange(17) == 16)[None], types, mask)  # the last token
    assert np.abs(moved - hidden)[0].max(axis=-1).min() > 1e-4
    assert np.array_equal(moved[1, :9], hidden[1, :9])
    pooled = models.mean_pool(hidden, jnp.asarray(mask))
    np.testing.assert_allclose(pooled[1], np.asarray(hidden)[1, :9].mean(0), atol=1e-6)


def test_the_loss_of_a_masked_head_is_that_of_its_logits():
    config = dataclasses.replace(NANO, dropout=0.0)
    params = random_params(config)
    tokens, _, mask = padded_batch()
    targets = np.where(mask, (tokens * 7) % 61, -100)

    def dense(params):
        logits = models.apply(config, params, tokens, segment_ids=mask)
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(targets, 0)[..., None], -1)
        return -jnp.sum(log_probs[..., 0] * mask) / mask.sum()

    def chunked(params):
        return models.loss(config, params, tokens, targets, segment_ids=mask)[0]

    expected, found = jax.jit(jax.value_and_grad(dense))(params), jax.jit(jax.value_and_grad(chunked))(params)
    assert abs(expected[0] - found[0]) <= 1e-5
    differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), expected[1], found[1])
    assert np.max(jax.tree.leaves(differences)) <= 1e-5
    assert np.abs(found[1]["head"]["bias"]).max() > 1e-3


@pytest.mark.parametrize("head", ["text_labels", pytest.param("token_labels", marks=pytest.mark.slow)])
def test_labels_are_learned(head):
    config = dataclasses.replace(NANO, head=head, labels=("a", "b", "c"), num_layers=1)
    params = models.init(config, jax.random.key(0))
    tokens, _, mask = padded_batch()
    targets = np.array([2, 0, 1]) if head == "text_labels" else tokens % 3
    weights = None if head == "text_labels" else mask

    @jax.jit
    def step(params):
        options = dict(mask=weights, segment_ids=mask)
        (loss, sums), gradient = jax.value_and_grad(
            lambda p: models.loss(config, p, tokens, targets, **options), has_aux=True
        )(params)
        return jax.tree.map(lambda w, g: w - 0.3 * g, params, gradient), loss, sums

    losses = []
    for _ in range(30):
        params, loss, sums = step(params)
        losses.append(float(loss))
    assert losses[0] == pytest.approx(np.log(3), abs=0.2) and losses[-1] < 0.5 * losses[0], losses
    assert float(sums["token_count"]) == (3 if weights is None else mask.sum())


def test_what_an_encoder_cannot_do_is_told_in_a_sentence():
    params = jax.tree.map(lambda s: jnp.zeros(s.shape), models.shapes(NANO))
    for use in (
        lambda: models.init_cache(NANO, 1, 8),
        lambda: Decoder(NANO, params),
        lambda: score.score_sequences(NANO, params, [[1, 2]]),
    ):
        with pytest.raises(UserError, match="causal=False: its tokens see those after them"):
            use()
    labelled = models.get_preset("gpt2-nano", head="token_labels", labels=("a", "b"))
    with pytest.raises(UserError, match="head='token_labels', which predicts labels; it cannot predict"):
        models.init_cache(labelled, 1, 8)
    with pytest.raises(UserError, match="token_types hold the id 2"):
        models.trunk(NANO, params, np.zeros((1, 3), int), token_types=np.full((1, 3), 2))
    classifier = dataclasses.replace(NANO, head="text_labels", labels=("a", "b"))
    with pytest.raises(UserError, match="targets of shape .* give a label of each text"):
        models.hidden_loss(classifier, random_params(classifier), jnp.zeros((2, 3, 64)),
                           jnp.zeros((2, 3), int))  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(windows=(4,)), r"windows=\(4,\) look back"),
        (dict(head="text_labels"), "head='text_labels' needs some"),
        (dict(labels=("a",)), "head='masked' takes none"),
        (dict(head="token_labels", labels=("a", "a")), "hold a name twice"),
        (dict(head="tagger"), "unknown head 'tagger'"),
        (dict(parallel_residual=True), "norms the stream after each block"),
    ],
)
def test_values_that_do_not_go_together(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        dataclasses.replace(NANO, **changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(position_embedding_type="relative_key"), "position_embedding_type is 'relative_key'"),
        (dict(is_decoder=True), "is_decoder is True, which is not supported"),
        (dict(id2label={"1": "a"}), "id2label is .* expected a name for each number"),
        (dict(architectures="BertModel"), "expected a list of names"),
        (dict(type_vocab_size=-1), "type_vocab_size is -1"),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused(changes, sentence):
    from jaxllm.pretrained.config_file import checked_config

    with pytest.raises(UserError, match=sentence):
        checked_config(config_to_huggingface(NANO) | changes, "config.json")


def bucket(positions, distance):
    """Return one distance's vector by cases, as DeBERTa's paper and code say, in Python floats."""
    near, size = positions.buckets // 2, abs(distance)
    if positions.buckets and size > near:
        far = math.log(size / near) / math.log((positions.distance - 1) / near) * (near - 1)
        distance = math.copysign(near + math.ceil(far - 1e-6), distance)
    return int(min(max(distance + positions.span, 0), 2 * positions.span - 1))


@pytest.mark.parametrize("positions", [Disentangled(4, 11), Disentangled(0, 3, ("p2c",), shared=False)])
def test_scores_of_positions_are_those_of_a_loop(positions):
    config = models.get_preset("deberta-nano", disentangled=positions, qkv_bias=False, head_dim=5)
    params, draw, T = random_params(config), np.random.default_rng(2), 14
    p = jax.tree.map(lambda w: np.asarray(w[0], np.float64), params["layers"]["attn"])
    table = draw.normal(size=(2 * positions.span, 64))
    query, key = draw.normal(size=(2, 1, T, 4, 5))
    expected = np.zeros((4, T, T))
    for t, s in np.ndindex(T, T):
        vector = table[bucket(positions, t - s)]
        names = ("key", "query") if positions.shared else ("position_key", "position_query")
        if "c2p" in positions.terms:
            expected[:, t, s] += np.einsum("hk,d,dhk->h", query[0, t], vector, p[names[0]])
        expected[:, t, s] += np.einsum("hk,d,dhk->h", key[0, s], vector, p[names[1]])
    layer = jax.tree.map(lambda w: w[0], params["layers"]["attn"])
    arrays = (jnp.asarray(x, jnp.float32) for x in (query, key, table))
    found = position_scores(positions, layer, declare_attention(config), *arrays)
    assert np.abs(found[0] - expected).max() <= 1e-4 * np.abs(expected).max()


def test_relative_positions_that_do_not_go_together():
    for values, sentence in (
        (dict(buckets=5), "disentangled.buckets is 5; it must be even"),
        (dict(buckets=8, distance=5), "above half of disentangled.buckets=8"),
        (dict(terms=("p2p",)), "unknown .* 'p2p'"),
    ):
        with pytest.raises(UserError, match=sentence):
            Disentangled(**values)
    with pytest.raises(UserError, match="needs as many as num_heads=4"):
        models.get_preset("deberta-nano", num_kv_heads=2)
    with pytest.raises(UserError, match="no keys are cached"):
        models.init_cache(models.get_preset("deberta-nano", causal=True), 1, 8)
