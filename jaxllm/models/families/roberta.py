"""RoBERTa: BERT with one kind of tokens, and positions that are counted from two."""

from jaxllm.errors import UserError, brief
from jaxllm.models.families import bert
from jaxllm.models.families.buffers import of_another_head, position_ids
from jaxllm.models.families.record import Family, Tensor, model

_SKIP = 2  # rows of the table of positions: padding's, and one before it
_ROBERTA = dict(**bert.ENCODER, num_token_types=1, vocab_size=50265, norm_eps=1e-5)


def _check(theirs, source):
    bert.check_encoder(theirs, source)
    if theirs.get("pad_token_id", 1) != 1:
        raise UserError(
            f"{source}: pad_token_id is {brief(theirs['pad_token_id'])}, from which positions are counted; "
            "only 1 is supported"
        )
    if theirs["max_position_embeddings"] <= _SKIP:
        raise UserError(
            f"{source}: max_position_embeddings is {theirs['max_position_embeddings']}; two of them are "
            "padding's: expected more"
        )
    masked = any(name.endswith("ForMaskedLM") for name in theirs.get("architectures", []))
    if masked and theirs["hidden_act"] != "gelu":
        raise UserError(
            f"{source}: hidden_act is {brief(theirs['hidden_act'])}, and the head's activation is gelu; only "
            "gelu is supported"
        )


ROBERTA = Family(
    name="roberta",
    title="RoBERTa",
    tensors=bert.encoder_tensors("roberta", _SKIP)
    | bert.dense("head/transform", "lm_head.dense")
    | bert.norm("head/norm", "lm_head.layer_norm")
    | {"head/bias": Tensor("lm_head.bias"), "head/kernel": Tensor("lm_head.decoder.weight", True)}
    | bert.dense("head/pooler", "classifier.dense")
    | bert.dense("head/text_labels", "classifier.out_proj")
    | bert.dense("head/token_labels", "classifier"),
    required=bert.REQUIRED,
    optional=bert.OPTIONAL,
    read=lambda theirs: bert.read_encoder(theirs, _SKIP),
    write=lambda config: dict(
        model_type="roberta", pad_token_id=1, bos_token_id=0, eos_token_id=2,
        **(bert.write_encoder(config, "Roberta", _SKIP) | dict(type_vocab_size=1)),
    ),
    check=_check,
    buffers={
        "embeddings.position_ids": position_ids,
        # What other heads of the same checkpoint read.
        "roberta.pooler.dense.weight": of_another_head, "roberta.pooler.dense.bias": of_another_head,
        "lm_head.dense.weight": of_another_head, "lm_head.dense.bias": of_another_head,
        "lm_head.layer_norm.weight": of_another_head, "lm_head.layer_norm.bias": of_another_head,
        "lm_head.bias": of_another_head, "lm_head.decoder.bias": of_another_head,
    },
    presets={
        "roberta-base": model(12, 768, 12, **_ROBERTA),
        "roberta-large": model(24, 1024, 16, **_ROBERTA),
    },
)  # fmt: skip
