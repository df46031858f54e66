"""Training speeds that others measured and published: what was run, the figure in their words, and where.

Every row names a file or an issue of a public repository and quotes the figure. Model shapes come from
the same repositories. Where a run's way of saving memory has no equal here, `remat` is the nearest one
and `note` says so.
"""

from typing import NamedTuple

from jaxllm.models import ModelConfig
from jaxllm.models.presets import PRESETS


class PublishedStep(NamedTuple):
    """One measured run."""

    name: str
    target: str
    model: ModelConfig
    batch_size: int  # sequences a step, over all devices
    seq_len: int
    source: str
    quote: str
    seconds: float | None = None  # a step; or one of the next two
    tflops: float | None = None  # model TFLOP a second and device, as the source counts them
    tokens: float | None = None  # a second and device
    causal_flops: bool = False  # the source counts attention at half the square of scores
    fsdp: int = 1
    tensor: int = 1
    accumulate: int = 1
    precision: str = "mixed_o1"
    remat: str = "none"
    note: str = ""


_LLAMA = dict(
    activation="silu", gated_mlp=True, norm="rmsnorm", position="rotary", tie_embeddings=False,
    qkv_bias=False, out_bias=False, mlp_bias=False,
)  # fmt: skip


def _llama(layers, width, heads, mlp, kv_heads=None, vocab=32000, head_dim=128, **rest) -> ModelConfig:
    return ModelConfig(
        num_layers=layers, embed_dim=width, num_heads=heads, num_kv_heads=kv_heads, mlp_dim=mlp,
        vocab_size=vocab, head_dim=head_dim, **(_LLAMA | rest),
    )  # fmt: skip


def _maxtext(scale: int) -> ModelConfig:
    """MaxText's base model with global_parameter_scale=scale (get_individual_scales in configs/types.py)."""
    thirds, rest = divmod(scale.bit_length() - 1, 3)
    layers, heads, width = 2**thirds, 2 ** (thirds + (rest > 0)), 2 ** (thirds + (rest > 1))
    return _llama(16 * layers, 2048 * width, 16 * heads, 7168 * heads)


def _mpt(layers: int, width: int, heads: int) -> ModelConfig:
    # ALiBi instead of positions, no biases: neither multiplies anything.
    return ModelConfig(
        num_layers=layers, embed_dim=width, num_heads=heads, vocab_size=50368, position="none",
        norm_bias=False, qkv_bias=False, out_bias=False, mlp_bias=False,
    )  # fmt: skip


LLAMA2_7B = _llama(32, 4096, 32, 11008)
_LLAMA2_70B = _llama(80, 8192, 64, 28672, kv_heads=8)
_LLAMA31_8B = _llama(32, 4096, 32, 14336, kv_heads=8, vocab=128256, rope_theta=5e5)
_LLAMA31_70B = _llama(80, 8192, 64, 28672, kv_heads=8, vocab=128256, rope_theta=5e5)
_LLAMA31_405B = _llama(126, 16384, 128, 53248, kv_heads=8, vocab=128256, rope_theta=5e5)
_MISTRAL_7B = _llama(32, 4096, 32, 14336, kv_heads=8)  # MaxText counts it without its window

_TPU_DOCS = "AI-Hypercomputer/maxtext@e591f30 src/maxtext/configs/tpu"
_RECIPES = "AI-Hypercomputer/tpu-recipes@c8cfe2f training"
_MPT_TABLE = "mosaicml/llm-foundry@8c8dd48 scripts/train/benchmarking/README.md"
_OFFLOAD = "theirs keeps layer inputs and projections in the host's memory; full is nearest"


def _v5e(scale, batch_a_chip, tflops, utilisation, **rest):
    return PublishedStep(
        f"MaxText {scale}B", "v5e-256", _maxtext(scale), 256 * batch_a_chip, 2048,
        f"{_TPU_DOCS}/v5e/README.md, {scale}b.sh", f"1x v5e-256 | {tflops} | {utilisation}",
        tflops=tflops, causal_flops=True, **({"fsdp": 256, "remat": "full"} | rest),
    )  # fmt: skip


def _v5p(scale, slice_, chips, batch_a_chip, tensor, tflops, utilisation, remat="dots"):
    note = "theirs is `minimal`, which also keeps products; dots is nearest" if remat == "dots" else ""
    return PublishedStep(
        f"MaxText {scale}B", slice_, _maxtext(scale), int(chips * batch_a_chip), 2048,
        f"{_TPU_DOCS}/v5p/README.md, {scale}b.sh", f"1x {slice_} | {tflops} | {utilisation}",
        tflops=tflops, causal_flops=True, fsdp=chips // tensor, tensor=tensor, remat=remat, note=note,
    )  # fmt: skip


def _v6e(name, chips, model, batch_a_chip, seq_len, seconds, folder, quote, note=""):
    return PublishedStep(
        name, f"v6e-{chips}", model, chips * batch_a_chip, seq_len, f"{_RECIPES}/trillium/{folder}/README.md",
        quote, seconds=seconds, fsdp=chips, remat="full", note=note + _OFFLOAD,
    )  # fmt: skip


def _mpt_row(name, target, model, micro_batch, accumulate, tokens, throughput, seq_len=2048, **rest):
    return PublishedStep(
        f"MPT {name}, T={seq_len}", target, model, 8 * micro_batch * accumulate, seq_len, _MPT_TABLE,
        f"{name} | {seq_len} | 8 | ... Throughput (T/s) {throughput} | (T/s/GPU) {tokens}", tokens=tokens,
        fsdp=8, accumulate=accumulate, **rest,
    )  # fmt: skip


PUBLISHED = [
    _v5e(16, 6, 120, "61.10%"),
    _v5e(32, 4, 132, "66.86%"),
    _v5e(64, 2, 118, "59.90%"),
    _v5e(128, 1, 110, "56.06%", fsdp=16, tensor=16,
         note="theirs keeps q, k, v in the host's memory; full is nearest"),
    _v5p(32, "v5p-128", 64, 6, 4, 328, "71.47%"),
    _v5p(64, "v5p-128", 64, 3, 4, 323, "70.31%"),
    _v5p(128, "v5p-256", 128, 1, 8, 315, "68.68%"),
    _v5p(256, "v5p-1024", 512, 1, 8, 308, "67.09%"),
    _v5p(512, "v5p-1024", 512, 2, 8, 294, "63.99%", remat="full"),
    _v5p(1024, "v5p-2048", 1024, 2, 16, 254, "55.35%", remat="full"),
    PublishedStep(
        "MaxText 22B", "v4-128", _llama(48, 6144, 24, 24576), 64 * 13, 2048,
        f"{_TPU_DOCS}/v4/README.md, 22b.sh", "1x v4-128 | 156 | 56.7%",
        tflops=156, causal_flops=True, fsdp=64, remat="full"),
    PublishedStep(
        "MaxText 52B", "v4-384", _llama(32, 12288, 32, 49152), 192 * 7, 2048,
        f"{_TPU_DOCS}/v4/README.md, 52b.sh", "1x v4-384 | 154 | 56.0%",
        tflops=154, causal_flops=True, fsdp=192, remat="full"),
    _v6e("Llama 3.1 8B", 8, _LLAMA31_8B, 3, 8192, 3.443, "Llama3.1-8B-MaxText/v6e-8",
         "completed step: 14, seconds: 3.443, TFLOP/s/device: 413.433"),
    _v6e("Llama 3.1 8B", 256, _LLAMA31_8B, 4, 8192, 4.546, "Llama3.1-8B-MaxText/v6e-256",
         "completed step: 14, seconds: 4.546, TFLOP/s/device: 417.397"),
    _v6e("Mistral 7B", 8, _MISTRAL_7B, 6, 8192, 6.320, "Mistral-7B-MaxText",
         "completed step: 6, seconds: 6.320, TFLOP/s/device: 431.981"),
    _v6e("Llama 2 70B", 256, _LLAMA2_70B, 2, 4096, 9.052, "Llama2-70B-MaxText",
         "completed step: 16, seconds: 9.052, TFLOP/s/device: 402.274, Tokens/s/device: 905.021",
         "the log's tokens make a batch of 2 a chip, the listing beside it says 3; "),
    _v6e("Llama 3.1 70B", 32, _LLAMA31_70B, 2, 8192, 17.790, "Llama3.1-70B-MaxText/v6e-32",
         "completed step: 34, seconds: 17.790, TFLOP/s/device: 443.385"),
    PublishedStep(
        "Llama 3.1 70B", "tpu7x-128", _LLAMA31_70B, 256, 8192, f"{_RECIPES}/ironwood/README.md",
        "llama3.1-70b | 64 | 256 | 8192 | bf16 | 12.20 | 1,207.05", seconds=12.20, fsdp=128, remat="full",
        note=_OFFLOAD),
    PublishedStep(
        "Llama 3.1 405B", "tpu7x-512", _LLAMA31_405B, 1536, 8192, f"{_RECIPES}/ironwood/README.md",
        "llama3.1-405b | 256 | 1536 | 8192 | bf16 | 98.34 | 1,261.40", seconds=98.34, fsdp=512, remat="full",
        note=_OFFLOAD),
    PublishedStep(
        "MaxText Llama 2 7B", "h100x8", LLAMA2_7B, 8 * 4, 4096,
        "AI-Hypercomputer/maxtext@e591f30 src/maxtext/configs/gpu/a3/llama_2_7b/README.md, 1vm.sh, "
        "src/maxtext/configs/gpu/models/llama2_7b.yml",
        "1x A3 (h100-80gb-8) | 492", tflops=492, causal_flops=True, fsdp=8, remat="dots",
        note="theirs is `minimal_with_context`, which also keeps attention's result; dots is nearest"),
    PublishedStep(
        "llm.c GPT-2 1558M", "h100x8", PRESETS["gpt2-xl"], 1024, 1024,
        "karpathy/llm.c@f1e2ace scripts/run_gpt2_1558M.sh",
        "on 8X H100 80GB SXM ($28/hr) steps in 2.80s/iter",
        seconds=2.80, accumulate=8, precision="mixed_o2",
        note="bf16 weights with float32 masters; theirs computes gelu again"),
    _mpt_row("1b", "h100x8", _mpt(24, 2048, 16), 14, 1, 45455, 363645),
    _mpt_row("7b", "h100x8", _mpt(32, 4096, 32), 6, 1, 10643, 85144),
    _mpt_row("3b", "h100x8", _mpt(32, 2560, 20), 20, 6, 27046, 216369, seq_len=1024),
    _mpt_row("760m", "h100x8", _mpt(24, 1536, 12), 24, 2, 63147, 505177),
    PublishedStep(
        "llm.c GPT-2 124M", "a100-80gbx8", PRESETS["gpt2"], 512, 1024,
        "karpathy/llm.c@f1e2ace scripts/run_gpt2_124M.sh",
        "on 8X A100 80GB SXM ($14/hr) steps in ~300ms/iter",
        seconds=0.300, precision="mixed_o2"),
    PublishedStep(
        "llm.c GPT-2 350M", "a100-80gbx8", PRESETS["gpt2-medium"], 512, 1024,
        "karpathy/llm.c@f1e2ace scripts/run_gpt2_350M.sh",
        "on 8X A100 80GB SXM ($14/hr) steps in ~820ms/iter",
        seconds=0.820, precision="mixed_o2"),
    _mpt_row("125m", "a100-80gbx8", _mpt(12, 768, 12), 32, 2, 141737, 1133901),
    _mpt_row("1b", "a100-80gbx8", _mpt(24, 2048, 16), 14, 4, 20513, 164109),
    _mpt_row("3b", "a100-80gbx8", _mpt(32, 2560, 20), 10, 2, 10811, 86491),
    _mpt_row("7b", "a100-80gbx8", _mpt(32, 4096, 32), 6, 2, 4641, 37130),
    PublishedStep(
        "nanoGPT GPT-2 124M", "a100-40gbx8", PRESETS["gpt2"], 480, 1024,
        "karpathy/nanoGPT issue 110", "iter 1631: loss 4.0863, time 561.94ms", seconds=0.562, accumulate=5,
        note="the issue does not say how large its A100s are; nanoGPT's README names the 40 GB ones"),
    _mpt_row("760m", "a100-40gbx8", _mpt(24, 1536, 12), 12, 4, 30173, 241389, precision="bfloat16"),
    _mpt_row("1b", "a100-40gbx8", _mpt(24, 2048, 16), 8, 8, 19271, 154171, precision="bfloat16"),
    _mpt_row("3b", "a100-40gbx8", _mpt(32, 2560, 20), 5, 8, 10065, 80520, precision="bfloat16"),
    _mpt_row("7b", "a100-40gbx8", _mpt(32, 4096, 32), 12, 4, 3679, 29436, precision="bfloat16", remat="full"),
]  # fmt: skip
