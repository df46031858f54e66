"""Adapters of peft: the same logits there and here, both ways; what does not fit is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import data, models
from jaxllm.adapt import Lora, LoraConfig, load_adapter, read_about, save_adapter
from jaxllm.adapt.peft import _scale
from jaxllm.errors import UserError
from jaxllm.pretrained import save_pretrained
from tests.models.random_params import random_params

MODEL = dict(num_layers=2, embed_dim=24, num_heads=3, mlp_dim=40, vocab_size=61, context_length=16,
             attention_implementation="xla")  # fmt: skip
CONFIGS = {
    "gpt2": models.get_preset("gpt2-nano", **MODEL),
    "gpt_neo": models.get_preset("gpt-neo-nano", **MODEL),
    "gpt_neox": models.get_preset("pythia-70m", **MODEL),
    "llama": models.get_preset("llama-nano", **MODEL | dict(num_kv_heads=1)),
    "mamba": models.get_preset("mamba-nano", num_layers=2, embed_dim=24, vocab_size=61),
}
TARGETS = {"mamba": "mamba_gate,mamba_select,mamba_delta,mamba_out"}


def random_adapter(lora, seed=3):
    draw = np.random.default_rng(seed)
    shapes = jax.eval_shape(lora.init, jax.random.key(2))
    return jax.tree.map(lambda x: jnp.float32(0.3 * draw.normal(size=x.shape)), shapes)


@pytest.mark.parametrize("rslora, family", [
    *((False, family) for family in CONFIGS if family != "gpt2"), (True, "gpt2"),
    pytest.param(False, "gpt2", marks=pytest.mark.slow),
    *(pytest.param(True, family, marks=pytest.mark.slow) for family in CONFIGS if family != "gpt2"),
])  # fmt: skip
def test_an_adapter_comes_back_as_it_was(family, rslora, tmp_path):
    targets = TARGETS.get(family, "key,query,out,mlp_in")
    lora = Lora(CONFIGS[family], LoraConfig(rank=3, targets=targets, alpha=5.0, rslora=rslora))
    adapter, base = random_adapter(lora), random_params(lora.model)
    tokenizer = data.load_tokenizer("bytes")
    save_adapter(tmp_path / "adapter", lora, adapter, about={"seen": 1}, tokenizer=tokenizer)
    assert data.load_tokenizer(tmp_path / "adapter") == tokenizer
    again, loaded = load_adapter(tmp_path / "adapter", lora.model)
    assert read_about(tmp_path / "adapter") == {"seen": 1} and read_about(tmp_path) is None
    a, b = lora.merge(adapter, base), again.merge(loaded, base)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)


@pytest.mark.torch
@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "llama"])
def test_peft_gives_the_same_logits_and_writes_what_we_read(family, tmp_path):
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    config = CONFIGS[family]
    base = random_params(config)
    save_pretrained(tmp_path / "base", config, base)
    tokens = np.random.default_rng(0).integers(0, 61, (2, 9))

    def ours(lora, adapter):
        with jax.default_matmul_precision("highest"):
            return models.apply(config, lora(adapter, base, None), jnp.asarray(tokens))

    for number, options in enumerate((dict(targets="query,value"), dict(targets="all", rslora=True))):
        lora = Lora(config, LoraConfig(rank=3, alpha=5.0, **options))
        adapter = random_adapter(lora)
        save_adapter(tmp_path / f"ours{number}", lora, adapter, base=str(tmp_path / "base"))
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        model = peft.PeftModel.from_pretrained(model, tmp_path / f"ours{number}").eval()
        with torch.no_grad():
            theirs = model(torch.tensor(tokens)).logits.numpy()
        np.testing.assert_allclose(ours(lora, adapter), theirs, atol=1e-4)

    names = {"gpt2": ["c_attn", "mlp.c_proj"], "gpt_neo": ["q_proj", "c_fc"],
             "gpt_neox": ["query_key_value", "dense_h_to_4h"], "llama": ["v_proj", "down_proj"]}  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    settings = peft.LoraConfig(r=4, lora_alpha=6, target_modules=names[family], init_lora_weights=False,
                               rank_pattern={names[family][0]: 2}, task_type="CAUSAL_LM")  # fmt: skip
    model = peft.get_peft_model(model, settings).eval()
    model.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    lora, adapter = load_adapter(tmp_path / "theirs", config)
    np.testing.assert_allclose(ours(lora, adapter), theirs, atol=1e-4)


def test_what_does_not_fit_is_refused(tmp_path):
    lora = Lora(CONFIGS["llama"], LoraConfig(rank=3))
    save_adapter(tmp_path / "one", lora, random_adapter(lora))
    other = models.get_preset("llama-nano", **MODEL | dict(num_kv_heads=3))
    with pytest.raises(UserError, match="is of another model: for 'model.layers.0.self_attn.v_proj'"):
        load_adapter(tmp_path / "one", other)
    with pytest.raises(UserError, match="is of another model: it changes 'model"):
        load_adapter(tmp_path / "one", dataclasses.replace(lora.model, num_layers=1))
    with pytest.raises(UserError, match="already exists"):
        save_adapter(tmp_path / "one", lora, random_adapter(lora))
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    save_adapter(tmp_path / "link", lora, random_adapter(lora))
    load_adapter(tmp_path / "disk", lora.model)
    with pytest.raises(UserError, match="no adapter in"):
        load_adapter(tmp_path, lora.model)
    path = tmp_path / "one" / "adapter_config.json"
    whole = json.loads(path.read_text())
    for change, said in (
        (dict(use_dora=True), "use_dora=True, which is not read here"),
        (dict(peft_type="IA3"), "of the kind 'IA3'"),
        (dict(r=0), "r=0; it must be a number above 0"),
    ):
        path.write_text(json.dumps(whole | change))
        with pytest.raises(UserError, match=said):
            load_adapter(tmp_path / "one", lora.model)


@pytest.mark.parametrize(
    "module, rslora, expected",
    [
        ("transformer.h.1.attn.c_attn", False, 4 / 2),  # both patterns fit: the first holds, as in peft
        ("transformer.h.0.attn.c_attn", False, 1 / 2),
        ("transformer.h.0.attn.xc_attn", False, 8 / 2),  # a pattern is of whole names
        ("transformer.h.0.mlp.c_fc", True, 8 / 2**0.5),
    ],
)
def test_alpha_may_be_a_pattern_s(module, rslora, expected):
    theirs = {"lora_alpha": 8, "alpha_pattern": {r"h\.1\.attn\.c_attn": 4, "c_attn": 1}, "use_rslora": rslora}
    assert _scale(theirs, module, rank=2) == pytest.approx(expected)
