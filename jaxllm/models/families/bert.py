"""BERT: an encoder with norms after each block; its heads of tokens, texts' labels and tokens' labels."""

from collections.abc import Mapping
from typing import Any

from jaxllm.config import Positive, Size
from jaxllm.errors import UserError, brief
from jaxllm.models.config import Layers
from jaxllm.models.families.buffers import of_another_head, position_ids
from jaxllm.models.families.record import BYTES, THEIR_ACTIVATIONS, Family, Tensor, model, read_activation


def encoder_tensors(prefix: str, skip: int = 0) -> dict[str, Tensor]:
    """Return where an encoder's tensors lie, without its head.

    Args:
      prefix: of the whole model's names.
      skip: rows of the table of positions that no token reads.
    """
    layer, found = f"{prefix}.encoder.layer.{{layer}}.", {
        "embed/tokens": Tensor(f"{prefix}.embeddings.word_embeddings.weight"),
        "embed/positions": Tensor(f"{prefix}.embeddings.position_embeddings.weight", skip=skip),
        "embed/token_types": Tensor(f"{prefix}.embeddings.token_type_embeddings.weight"),
    }  # fmt: skip
    for path, name in {
        "layers/attn/query": "attention.self.query",
        "layers/attn/key": "attention.self.key",
        "layers/attn/value": "attention.self.value",
        "layers/attn/out": "attention.output.dense",
        "layers/mlp/in": "intermediate.dense",
        "layers/mlp/out": "output.dense",
    }.items():
        found |= dense(path, layer + name)
    found |= norm("embed/norm", f"{prefix}.embeddings.LayerNorm")
    found |= norm("layers/attn_norm", layer + "attention.output.LayerNorm")
    return found | norm("layers/mlp_norm", layer + "output.LayerNorm")


def dense(path: str, name: str) -> dict[str, Tensor]:
    """Return the places of a torch.nn.Linear."""
    return {path: Tensor(name + ".weight", output_first=True), path + "_bias": Tensor(name + ".bias")}


def norm(path: str, name: str) -> dict[str, Tensor]:
    """Return the places of a torch.nn.LayerNorm."""
    return {path + "/scale": Tensor(name + ".weight"), path + "/bias": Tensor(name + ".bias")}


def read_encoder(theirs: Mapping[str, Any], skip: int = 0) -> dict[str, Any]:
    """Return the fields of a ModelConfig that every encoder has, its head among them."""
    return dict(
        vocab_size=theirs["vocab_size"],
        context_length=theirs["max_position_embeddings"] - skip,
        num_layers=theirs["num_hidden_layers"],
        embed_dim=theirs["hidden_size"],
        num_heads=theirs["num_attention_heads"],
        mlp_dim=theirs["intermediate_size"],
        activation=read_activation(theirs, "hidden_act"),
        norm_eps=theirs["layer_norm_eps"],
        norm_place="post",
        causal=False,
        num_token_types=theirs["type_vocab_size"],
        embed_norm=True,
        init_std=theirs.get("initializer_range", 0.02),
        **_read_head(theirs),
    )


def write_encoder(config, name: str, skip: int = 0) -> dict[str, Any]:
    """Return the fields of a config.json that every encoder has.

    Args:
      config: a ModelConfig.
      name: what their classes' names begin with.
      skip: see `encoder_tensors`.
    """
    labels = dict(id2label={str(number): label for number, label in enumerate(config.labels)},
                  label2id={label: number for number, label in enumerate(config.labels)})  # fmt: skip
    return dict(
        architectures=[name + _SUFFIXES[config.head]],
        vocab_size=config.vocab_size,
        max_position_embeddings=config.context_length + skip,
        num_hidden_layers=config.num_layers,
        hidden_size=config.embed_dim,
        num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_dim,
        hidden_act=THEIR_ACTIVATIONS[config.activation],
        layer_norm_eps=config.norm_eps,
        type_vocab_size=config.num_token_types,
        initializer_range=config.init_std,
        **(labels if config.labels else {}),
    )


# What the names of their classes end with.
_SUFFIXES = {
    "tokens": "Model",
    "masked": "ForMaskedLM",
    "text_labels": "ForSequenceClassification",
    "token_labels": "ForTokenClassification",
}


def _read_head(theirs) -> dict[str, Any]:
    names = [*theirs.get("architectures", []), "Model"]
    heads = [head for head, suffix in _SUFFIXES.items() if names[0].endswith(suffix)]
    head = heads[0] if heads else "masked" if names[0].endswith("ForPreTraining") else "tokens"
    if not head.endswith("_labels"):
        return dict(head=head)
    count = theirs.get("num_labels", 2)
    named = theirs.get("id2label", {str(number): f"LABEL_{number}" for number in range(count)})
    # Written with numbers as text; in a config in memory they are numbers.
    by_number = {int(number): label for number, label in named.items()}
    return dict(head=head, labels=tuple(by_number[number] for number in range(len(by_number))))


def check_encoder(theirs: Mapping[str, Any], source: str) -> None:
    """Check what every encoder's config.json may say beyond the types of its fields.

    Raises:
      UserError: names of labels that are malformed, or a field that asks for what is not supported.
    """
    names = theirs.get("architectures", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{source}: architectures is {brief(names)}; expected a list of names")
    named = theirs.get("id2label", {})
    good = isinstance(named, dict) and {str(key) for key in named} == set(map(str, range(len(named))))
    if not good or not all(isinstance(label, str) for label in named.values()):
        raise UserError(f"{source}: id2label is {brief(named)}; expected a name for each number from 0")
    plain_fields = dict(position_embedding_type="absolute", is_decoder=False, tie_word_embeddings=True)
    for name, plain in plain_fields.items():
        if theirs.get(name, plain) != plain:
            raise UserError(f"{source}: {name} is {brief(theirs[name])}, which is not supported")


ENCODER = dict(
    activation="gelu", norm_place="post", causal=False, embed_norm=True, context_length=512, head="masked",
)  # fmt: skip
REQUIRED = dict(
    vocab_size=Size, max_position_embeddings=Size, num_hidden_layers=Layers, hidden_size=Size,
    num_attention_heads=Size, intermediate_size=Size, hidden_act=str, layer_norm_eps=Positive,
    type_vocab_size=Size,
)  # fmt: skip
OPTIONAL = dict(tie_word_embeddings=bool, initializer_range=Positive, num_labels=Size)
_BERT = dict(**ENCODER, num_token_types=2, norm_eps=1e-12)



def _write(config):
    # A model with one kind of tokens is RoBERTa.
    types = dict(type_vocab_size=max(config.num_token_types, 2))
    return dict(model_type="bert") | write_encoder(config, "Bert") | types


BERT = Family(
    name="bert",
    title="BERT",
    tensors=encoder_tensors("bert")
    | dense("head/transform", "cls.predictions.transform.dense")
    | norm("head/norm", "cls.predictions.transform.LayerNorm")
    | {"head/bias": Tensor("cls.predictions.bias")}
    | {"head/kernel": Tensor("cls.predictions.decoder.weight", output_first=True)}
    | dense("head/pooler", "bert.pooler.dense")
    | dense("head/text_labels", "classifier")
    | dense("head/token_labels", "classifier"),
    required=REQUIRED,
    optional=OPTIONAL,
    read=read_encoder,
    write=_write,
    check=check_encoder,
    buffers={
        "embeddings.position_ids": position_ids,
        # What other heads of the same checkpoint read: of whole texts, of pairs of texts, of tokens.
        "bert.pooler.dense.weight": of_another_head, "bert.pooler.dense.bias": of_another_head,
        "cls.seq_relationship.weight": of_another_head, "cls.seq_relationship.bias": of_another_head,
        "cls.predictions.transform.dense.weight": of_another_head,
        "cls.predictions.transform.dense.bias": of_another_head,
        "cls.predictions.transform.LayerNorm.weight": of_another_head,
        "cls.predictions.transform.LayerNorm.bias": of_another_head,
        "cls.predictions.bias": of_another_head, "cls.predictions.decoder.bias": of_another_head,
    },
    spellings={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
    presets={
        "bert-base-uncased": model(12, 768, 12, vocab_size=30522, **_BERT),
        "bert-base-cased": model(12, 768, 12, vocab_size=28996, **_BERT),
        "bert-large-uncased": model(24, 1024, 16, vocab_size=30522, **_BERT),
        "all-minilm-l6-v2": model(6, 384, 12, vocab_size=30522, **(_BERT | dict(head="tokens"))),
        "bert-nano": model(2, 64, 4, **(_BERT | BYTES | dict(context_length=128))),
    },
)  # fmt: skip
