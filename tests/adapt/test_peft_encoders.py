"""Adapters of encoders and encoder-decoders: peft loads them onto the right class, to the same numbers."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.adapt import Lora, LoraConfig, load_adapter, save_adapter
from jaxllm.adapt.names import flat
from jaxllm.errors import UserError
from jaxllm.pretrained import save_pretrained
from tests.adapt.test_peft import random_adapter
from tests.models.random_params import random_params

SIZES = dict(num_layers=2, embed_dim=24, num_heads=3, mlp_dim=40, vocab_size=61, context_length=16)
LABELS = ("no", "yes", "maybe")
BERT = models.get_preset("bert-nano", **SIZES)
ROBERTA = models.get_preset("roberta-base", **SIZES)
T5 = models.EncoderDecoderConfig(
    vocab_size=61, num_layers=2, num_encoder_layers=3, embed_dim=24, num_heads=3, head_dim=8, mlp_dim=40
)
CASES = {  # the model, task_type, their class, the adapter
    "bert": (dataclasses.replace(BERT, head="tokens"), "FEATURE_EXTRACTION", "AutoModel",
             dict(targets="all")),
    "bert-masked": (BERT, None, "AutoModelForMaskedLM", dict(targets="key,mlp_out")),
    "bert-text": (dataclasses.replace(BERT, head="text_labels", labels=LABELS), "SEQ_CLS",
                  "AutoModelForSequenceClassification", dict(targets="query,value", also="head")),
    "bert-words": (dataclasses.replace(BERT, head="token_labels", labels=LABELS), "TOKEN_CLS",
                   "AutoModelForTokenClassification", dict(targets="out", also="head,embed", rslora=True)),
    "roberta-text": (dataclasses.replace(ROBERTA, head="text_labels", labels=LABELS), "SEQ_CLS",
                     "AutoModelForSequenceClassification", dict(targets="query,value", also="head")),
    "t5": (T5, "SEQ_2_SEQ_LM", "AutoModelForSeq2SeqLM", dict(targets="all")),
    "t5-decoder": (T5, "SEQ_2_SEQ_LM", "AutoModelForSeq2SeqLM", dict(targets="query,cross_value")),
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(2, 61, (2, 9))


def ours(config, params):
    """Return hidden states, or logits where the model has a head."""
    with jax.default_matmul_precision("highest"):
        if isinstance(config, models.EncoderDecoderConfig):
            context = models.encode(config, params, jnp.asarray(TOKENS))
            return models.apply(config, params, jnp.asarray(TOKENS[:, :5]), context=context)
        if config.head == "tokens":
            return models.trunk(config, params, jnp.asarray(TOKENS))
        return models.apply(config, params, jnp.asarray(TOKENS))


@pytest.mark.parametrize("case", ["bert-text", "bert-words", "t5-decoder"])
def test_an_adapter_and_what_is_trained_whole_come_back(case, tmp_path):
    config, task_type, _, options = CASES[case]
    lora = Lora(config, LoraConfig(rank=3, alpha=5.0, **options))
    adapter, base = random_adapter(lora), random_params(config)
    save_adapter(tmp_path / "adapter", lora, adapter)
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["task_type"] == task_type
    again, loaded = load_adapter(tmp_path / "adapter", config)
    assert again.whole == lora.whole
    a, b = lora.merge(adapter, base), again.merge(loaded, base)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)
    for path, x in flat(a).items():  # what is named, and nothing else, is other than the base's
        changed = path in lora.whole or path in {place for place, _ in lora.matrices.values()}
        assert changed == (not np.array_equal(x, flat(base)[path])), path


def test_a_part_of_a_module_and_a_parameter_of_nobody_are_refused(tmp_path):
    lora = Lora(BERT, LoraConfig(rank=2, targets="value", also="query_bias"))
    with pytest.raises(UserError, match="trains only a part of 'bert.encoder.layer.0.attention.self.query'"):
        save_adapter(tmp_path / "half", lora, random_adapter(lora))
    config, _, _, options = CASES["bert-text"]
    lora = Lora(config, LoraConfig(rank=2, **options))
    save_adapter(tmp_path / "text", lora, random_adapter(lora))
    with pytest.raises(UserError, match="of another model: it replaces '"):
        load_adapter(tmp_path / "text", BERT)


@pytest.mark.torch
@pytest.mark.parametrize("case", CASES)
def test_peft_gives_the_same_numbers_and_writes_what_we_read(case, tmp_path):
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    import transformers

    config, task_type, name, options = CASES[case]
    base = random_params(config)
    save_pretrained(tmp_path / "base", config, base)
    lora = Lora(config, LoraConfig(rank=3, alpha=5.0, **options))
    adapter = random_adapter(lora)
    save_adapter(tmp_path / "ours", lora, adapter, base=str(tmp_path / "base"))

    def theirs(model):
        given = dict(input_ids=torch.tensor(TOKENS))
        if case.startswith("t5"):
            given["decoder_input_ids"] = torch.tensor(TOKENS[:, :5])
        with torch.no_grad():
            return model.eval()(**given)[0].numpy()

    model = getattr(transformers, name).from_pretrained(tmp_path / "base")
    model = peft.PeftModel.from_pretrained(model, tmp_path / "ours")
    kinds = {"SEQ_CLS": "PeftModelForSequenceClassification", "TOKEN_CLS": "PeftModelForTokenClassification",
             "FEATURE_EXTRACTION": "PeftModelForFeatureExtraction", "SEQ_2_SEQ_LM": "PeftModelForSeq2SeqLM",
             None: "PeftModel"}  # fmt: skip
    assert type(model).__name__ == kinds[task_type]
    adapted = {n for n, _ in model.named_parameters() if "lora_A" in n}
    stacks = [len(x) for path, x in flat(adapter).items() if path[-1] == "A"]
    assert len(adapted) == sum(stacks)  # no module of theirs beside those of ours
    np.testing.assert_allclose(ours(config, lora(adapter, base, None)), theirs(model), atol=1e-4)
    # Trained there, read here.
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name or "modules_to_save" in parameter_name:
                parameter.add_(0.1)
    model.save_pretrained(tmp_path / "theirs")
    again, loaded = load_adapter(tmp_path / "theirs", config)
    np.testing.assert_allclose(ours(config, again(loaded, base, None)), theirs(model), atol=2e-4)
