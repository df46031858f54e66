"""DeBERTa v2 and v3: BERT with disentangled attention, or with learned positions."""

from jaxllm.config import CountOrZero
from jaxllm.errors import UserError, brief
from jaxllm.models.disentangled import TERMS, Disentangled
from jaxllm.models.families import bert
from jaxllm.models.families.buffers import of_another_head, position_ids
from jaxllm.models.families.record import BYTES, THEIR_ACTIVATIONS, Family, Tensor, model, read_activation

_LAYER = "deberta.encoder.layer.{layer}.attention.self."
_TENSORS = bert.encoder_tensors("deberta")
for _name in ("query", "key", "value"):
    _TENSORS |= bert.dense(f"layers/attn/{_name}", f"{_LAYER}{_name}_proj")
for _name in ("key", "query"):
    _TENSORS |= bert.dense(f"layers/attn/position_{_name}", f"{_LAYER}pos_{_name}_proj")
_TENSORS |= bert.norm("embed/relative_norm", "deberta.encoder.LayerNorm")
_TENSORS |= {"embed/relative": Tensor("deberta.encoder.rel_embeddings.weight")}
_TENSORS |= bert.dense("head/transform", "cls.predictions.transform.dense")
_TENSORS |= bert.norm("head/norm", "cls.predictions.transform.LayerNorm")
_TENSORS |= {"head/bias": Tensor("cls.predictions.bias")}
_TENSORS |= {"head/kernel": Tensor("cls.predictions.decoder.weight", True)}
_TENSORS |= bert.dense("head/pooler", "pooler.dense")
_TENSORS |= bert.dense("head/text_labels", "classifier") | bert.dense("head/token_labels", "classifier")


def _read(theirs):
    fields = bert.read_encoder(theirs)
    if fields["head"] == "text_labels":
        tanh = theirs.get("pooler_hidden_act") == "tanh"
        fields["label_activation"] = "tanh" if tanh else read_activation(theirs, "pooler_hidden_act", "gelu")
    if not theirs.get("relative_attention", False):
        return fields | dict(position="learned" if theirs.get("position_biased_input", True) else "none")
    distance = theirs.get("max_relative_positions", -1)
    return fields | dict(
        position="disentangled",
        disentangled=Disentangled(
            buckets=max(theirs.get("position_buckets", -1), 0),
            distance=distance if distance > 0 else theirs["max_position_embeddings"],
            terms=tuple(term for term in TERMS if term in _terms(theirs)),
            shared=theirs.get("share_att_key", False),
            norm="layer_norm" in theirs.get("norm_rel_ebd", "none"),
        ),
    )


def _write(config):
    relative, positions = config.position == "disentangled", config.disentangled
    return dict(
        model_type="deberta-v2",
        **bert.write_encoder(config, "DebertaV2"),
        pooler_hidden_act=(THEIR_ACTIVATIONS | {"tanh": "tanh"})[config.label_activation],
        pooler_hidden_size=config.embed_dim,
        relative_attention=relative,
        position_biased_input=config.position == "learned",
        position_buckets=positions.buckets or -1,
        max_relative_positions=positions.distance,
        pos_att_type=list(positions.terms) if relative else [],
        share_att_key=positions.shared,
        norm_rel_ebd="layer_norm" if positions.norm and relative else "none",
    )  # fmt: skip


def _terms(theirs) -> list:
    terms = theirs.get("pos_att_type", [])
    return [term.strip() for term in terms.lower().split("|")] if isinstance(terms, str) else terms


def _check(theirs, source):
    bert.check_encoder(theirs, source)
    terms = _terms(theirs)
    if not isinstance(terms, list) or not all(term in TERMS for term in terms):
        raise UserError(f"{source}: pos_att_type is {brief(terms)}; expected some of {', '.join(TERMS)}")
    plain = dict(
        conv_kernel_size=0, embedding_size=theirs["hidden_size"], pooler_hidden_size=theirs["hidden_size"],
        attention_head_size=theirs["hidden_size"] // theirs["num_attention_heads"], z_steps=0, legacy=True,
    )  # fmt: skip
    found = {name: theirs.get(name, supported) for name, supported in plain.items()}
    if theirs.get("relative_attention", False):  # both kinds of positions at once
        plain, found = (
            plain | dict(position_biased_input=False),
            found | dict(position_biased_input=theirs.get("position_biased_input", True)),
        )
    for name, supported in plain.items():
        if found[name] != supported:
            raise UserError(
                f"{source}: {name} is {brief(found[name])}, which is not supported, only {supported}"
            )


_DEBERTA = dict(**(bert.ENCODER | dict(head="tokens")), position="disentangled", norm_eps=1e-7)

DEBERTA_V2 = Family(
    name="deberta-v2",
    title="DeBERTa v2",
    tensors=_TENSORS,
    required=bert.REQUIRED | dict(type_vocab_size=CountOrZero),
    optional=bert.OPTIONAL | dict(
        relative_attention=bool, position_biased_input=bool, position_buckets=int, max_relative_positions=int,
        share_att_key=bool, norm_rel_ebd=str, pooler_hidden_act=str,
    ),
    read=_read,
    write=_write,
    check=_check,
    buffers={
        "embeddings.position_ids": position_ids,
        # What other heads of the same checkpoint read.
        "pooler.dense.weight": of_another_head, "pooler.dense.bias": of_another_head,
        "lm_predictions.lm_head.dense.weight": of_another_head,
        "lm_predictions.lm_head.dense.bias": of_another_head,
        "lm_predictions.lm_head.LayerNorm.weight": of_another_head,
        "lm_predictions.lm_head.LayerNorm.bias": of_another_head,
        "lm_predictions.lm_head.bias": of_another_head,
        "cls.predictions.decoder.bias": of_another_head,
    },
    presets={
        "deberta-v3-xsmall": model(12, 384, 6, vocab_size=128100, **_DEBERTA),
        "deberta-v3-small": model(6, 768, 12, vocab_size=128100, **_DEBERTA),
        "deberta-v3-base": model(12, 768, 12, vocab_size=128100, **_DEBERTA),
        "deberta-v3-large": model(24, 1024, 16, vocab_size=128100, **_DEBERTA),
        "deberta-nano": model(
            2, 64, 4, **(_DEBERTA | BYTES), disentangled=Disentangled(buckets=16, distance=64),
        ),
    },
)  # fmt: skip
