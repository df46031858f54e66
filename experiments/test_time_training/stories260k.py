"""stories260K, a Llama of 260,032 parameters trained on TinyStories, out of llama2.c's binary files."""

import lzma
import re
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tokenizers
from tokenizers import decoders, normalizers, processors
from tokenizers import models as backends

from experiments.shared.real_data import data_folder
from jaxllm import models
from jaxllm.data.bpe import HuggingFaceTokenizer
from jaxllm.models.huggingface import params_from_state_dict
from jaxllm.pretrained.load import Pretrained

_FOLDER = "pretrained", "stories260k"


def load_stories260k() -> Pretrained:
    """Return the model of JAXLLM_DATA/pretrained/stories260k.

    Raises:
      UserError: there is none.
    """
    folder = data_folder(*_FOLDER)
    content = (folder / "stories260K.bin").read_bytes()
    width, mlp, layers, heads, kv_heads, vocab, longest = struct.unpack("<7i", content[:28])
    numbers, at = np.frombuffer(content[28:], "<f4"), 0

    def take(*shape):
        nonlocal at
        at += int(np.prod(shape))
        return numbers[at - int(np.prod(shape)) : at].reshape(shape)

    def halves(weights_LKD, count):
        """From pairs (even, odd), which llama2.c rotates, to halves."""
        shape = (layers, count, width // heads // 2, 2, width)
        return weights_LKD.reshape(shape).swapaxes(2, 3).reshape(weights_LKD.shape)

    kv = width // heads * kv_heads
    tensors = {"model.embed_tokens.weight": take(vocab, width)}
    stacks = {
        "input_layernorm": take(layers, width),
        "self_attn.q_proj": halves(take(layers, width, width), heads),
        "self_attn.k_proj": halves(take(layers, kv, width), kv_heads),
        "self_attn.v_proj": take(layers, kv, width),
        "self_attn.o_proj": take(layers, width, width),
        "post_attention_layernorm": take(layers, width),
        "mlp.gate_proj": take(layers, mlp, width),
        "mlp.down_proj": take(layers, width, mlp),
        "mlp.up_proj": take(layers, mlp, width),
    }
    for name, stack in stacks.items():
        for layer in range(layers):
            tensors[f"model.layers.{layer}.{name}.weight"] = stack[layer]
    tensors["model.norm.weight"] = take(width)
    config = models.get_preset(
        "llama-nano", vocab_size=vocab, context_length=longest, num_layers=layers, embed_dim=width,
        num_heads=heads, num_kv_heads=kv_heads, mlp_dim=mlp, tie_embeddings=True, norm_eps=1e-5,
        rope_theta=10000.0,
    )  # fmt: skip
    params = _arrays(params_from_state_dict(config, "llama", tensors))
    return Pretrained(config, params, _tokenizer(folder / "tok512.bin", vocab))


def tiny_stories() -> list[str]:
    """Return stories of the kind that the model was trained on."""
    text = lzma.decompress(data_folder(*_FOLDER, "tinystories_sample.txt.xz").read_bytes()).decode()
    stories: list[str] = []
    for paragraph in text.split("\n\n"):  # nothing else stands between two stories
        if not stories or re.match(r"Once upon a time|One day, (a|an|there) ", paragraph):
            stories.append(paragraph)
        else:
            stories[-1] += "\n\n" + paragraph
    return [story for story in stories if 300 < len(story) < 3000]


def _arrays(tree):
    return {name: _arrays(x) if isinstance(x, dict) else jnp.asarray(x) for name, x in tree.items()}


def _tokenizer(path: Path, count: int) -> HuggingFaceTokenizer:
    content, at, pieces, scores = path.read_bytes(), 4, [], []
    for number in range(count):
        score, size = struct.unpack_from("<fi", content, at)
        piece = content[at + 8 : at + 8 + size].decode("utf-8", "replace").replace(" ", "▁")
        pieces.append(("<unk>", "<s>", "</s>")[number] if number < 3 else piece)
        scores.append(score)
        at += 8 + size
    vocab = {piece: number for number, piece in enumerate(pieces)}
    pairs = []
    for piece, number in vocab.items():
        for cut in range(1, len(piece)) if number > 258 else ():
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                pairs.append((-scores[number], vocab[left], vocab[right], left, right))
    merges = [pair[3:] for pair in sorted(pairs)]
    backend = tokenizers.Tokenizer(
        backends.BPE(vocab, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [tokenizers.AddedToken(name, special=True) for name in ("<unk>", "<s>", "</s>")]
    backend.add_special_tokens(special)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return HuggingFaceTokenizer(backend, eos_id=2)
