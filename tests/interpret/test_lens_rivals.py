"""The lens and the attribution of heads, MLPs and rows, against TransformerLens and against plain torch."""

import copy

import numpy as np
import pytest

from jaxllm import models
from jaxllm.interpret import component_scores
from jaxllm.models.huggingface import params_from_state_dict
from jaxllm.pretrained.config_file import read_config

pytestmark = pytest.mark.torch
B, T = 4, 11
TOKEN, OTHER = np.array([5, 6, 7, 8]), np.array([9, 5, 11, 12])


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A tiny random GPT-2 of transformers, the same weights as ours, and texts."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=97, n_positions=32, n_embd=48, n_layer=3, n_head=4)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for weight in theirs.parameters():  # biases and gains that count
            weight.add_(0.1 * torch.randn_like(weight))
    folder = tmp_path_factory.mktemp("gpt2")
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(folder)
    ours, family = read_config(folder / "config.json", dtype="float32", param_dtype="float32")
    tensors = {name: tensor.numpy() for name, tensor in theirs.transformer.state_dict().items()}
    params = params_from_state_dict(ours, family, tensors)
    return theirs, ours, params, np.random.default_rng(0).integers(0, 97, (B, T))


def plain_torch(theirs, tokens, norm):
    """Return the scores from what hooks on transformers' modules saw, every vector written out."""
    import torch

    seen, hooks = {}, []
    for layer, block in enumerate(theirs.transformer.h):
        for name, module in (("z", block.attn.c_proj), ("k", block.mlp.c_proj)):
            hook = lambda module, inputs, key=(name, layer): seen.update({key: inputs[0][:, -1]})
            hooks.append(module.register_forward_pre_hook(hook))
    hook = lambda module, inputs: seen.update(final=inputs[0][:, -1])
    hooks.append(theirs.transformer.ln_f.register_forward_pre_hook(hook))
    with torch.no_grad():
        theirs(torch.from_numpy(tokens))
    for hook in hooks:
        hook.remove()

    final, matrix = theirs.transformer.ln_f, theirs.lm_head.weight
    read = matrix[TOKEN] - matrix[OTHER]  # [B, D]
    size = seen["final"].var(-1, unbiased=False).add(final.eps).sqrt()

    def score(z_BXD):
        if norm == "own":
            return torch.einsum("bxd,bd->bx", final(z_BXD), read)
        z = (z_BXD - z_BXD.mean(-1, keepdim=True)) * final.weight
        return torch.einsum("bxd,bd->bx", z, read) / size[:, None]

    heads, mlps, rows = [], [], []
    with torch.no_grad():
        for layer, block in enumerate(theirs.transformer.h):
            z, k = seen["z", layer].reshape(B, 4, 12), seen["k", layer]
            heads.append(score(torch.einsum("bhk,hkd->bhd", z, block.attn.c_proj.weight.reshape(4, 12, 48))))
            mlps.append(score(block.mlp.c_proj(k)[:, None])[:, 0])
            written = k[..., None] * block.mlp.c_proj.weight
            rows.append(score(written + block.mlp.c_proj.bias if norm == "own" else written))
    return {"heads_LBH": heads, "mlp_LB": mlps, "rows_LBF": rows}


@pytest.mark.parametrize("norm", ["own", "final"])
def test_scores_are_plain_torchs(gpt2, norm):
    theirs, config, params, tokens = gpt2
    found = component_scores(config, params, tokens, TOKEN, OTHER, norm=norm)
    for name, value in plain_torch(theirs, tokens, norm).items():
        np.testing.assert_allclose(getattr(found, name), np.stack(value), atol=1e-4, err_msg=name)


@pytest.mark.parametrize("folded", [True, False])
def test_scores_are_transformer_lenss(gpt2, folded):
    """Extra: parity. Its cache divides by the final scale; its own final norm, by a component's."""
    lens = pytest.importorskip("transformer_lens")
    import torch
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    theirs, config, params, tokens = gpt2
    words = WordLevel({"<unk>": 0, "<|endoftext|>": 1}, unk_token="<unk>")  # it asks for a tokenizer
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), eos_token="<|endoftext|>"
    )
    bridge = lens.TransformerBridge.boot_transformers(
        "gpt2", hf_model=copy.deepcopy(theirs), tokenizer=tokenizer, device="cpu"
    )
    bridge.enable_compatibility_mode(
        disable_warnings=True, fold_ln=folded, center_writing_weights=folded, center_unembed=folded,
        fold_value_biases=False,  # of heads into their layer: what a head writes would change by a constant
    )  # fmt: skip
    with torch.no_grad():
        cache = bridge.run_with_cache(torch.from_numpy(tokens))[1]
        heads = cache.stack_head_results(pos_slice=-1)  # [L * H, B, D]
        rows = cache.stack_neuron_results(-1, pos_slice=-1)
        mlps = torch.stack([cache[f"blocks.{layer}.hook_mlp_out"][:, -1] for layer in range(3)])
        bias = torch.stack([block.mlp.b_out for block in bridge.blocks])[:, None, None]

        def by_final(x_XBD):
            x_XBD = cache.apply_ln_to_stack(x_XBD, layer=-1, pos_slice=-1)
            if not folded:
                x_XBD = x_XBD * bridge.ln_final.w
            read = bridge.W_U[:, TOKEN] - bridge.W_U[:, OTHER]
            return torch.einsum("xbd,db->xb", x_XBD, read)

        def by_own(x_XBD):
            logits = bridge.unembed(bridge.ln_final(x_XBD))
            pick = lambda ids: torch.gather(
                logits, -1, torch.from_numpy(ids).expand(len(logits), B)[..., None]
            )
            return (pick(TOKEN) - pick(OTHER))[..., 0]

        with_bias = (rows.reshape(3, -1, B, 48) + bias).reshape(-1, B, 48)
        expected = {
            "final": [by_final(heads), by_final(mlps), by_final(rows)],
            "own": [by_own(heads), by_own(mlps), by_own(with_bias)],
        }
    for norm, values in expected.items():
        found = component_scores(config, params, tokens, TOKEN, OTHER, norm=norm)
        ours = [np.swapaxes(found.heads_LBH, 1, 2), found.mlp_LB, np.swapaxes(found.rows_LBF, 1, 2)]
        for one, value in zip(ours, values, strict=True):
            np.testing.assert_allclose(np.asarray(one).reshape(-1, B), value, atol=1e-4)


def test_our_reading_of_the_weights_is_theirs(gpt2):
    import torch

    theirs, config, params, tokens = gpt2
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits
    np.testing.assert_allclose(models.apply(config, params, tokens), expected, atol=1e-4)
