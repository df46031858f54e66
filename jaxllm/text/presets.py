"""Training runs by name: every model preset, and published recipes."""

from functools import partial

from jaxllm import models
from jaxllm.optim import OptimConfig
from jaxllm.text.config import TrainConfig


def _preset(name: str) -> TrainConfig:
    """Return a sensible run for a model preset; what a recipe fixes, `_RECIPES` says."""
    small = models.get_preset(name).embed_dim <= 384
    model = models.get_preset(name, vocab_size=None) if small else models.get_preset(name)
    large = "gpt2" if model.start_id is None else f"bpe:{model.vocab_size}"  # T5's has fewer ids than GPT-2's
    return TrainConfig(
        model=model,
        tokenizer="bpe:1024" if small else large,
        seq_len=min(model.context_length, 256 if small else 1024),
        precision="float32" if small else "mixed_o1",
        optim=OptimConfig(learning_rate=2e-3 if small else 6e-4),
        out=f"runs/{name}",
    )


def _shakespeare_char() -> TrainConfig:
    """nanoGPT's recipe for a CPU; its README reports a validation loss of 1.88."""
    return TrainConfig(
        model=models.get_preset(
            "gpt2-micro", vocab_size=None, context_length=64,
            norm_bias=False, qkv_bias=False, out_bias=False, mlp_bias=False,
        ),
        tokenizer="char", isolate_documents=False, seq_len=64, batch_size=12, steps=2000,
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=100, beta2=0.99),
        eval_batches=20, out="runs/shakespeare-char",
    )  # fmt: skip


TRAIN_PRESETS = {name: partial(_preset, name) for name in models.PRESETS}
TRAIN_PRESETS["shakespeare-char"] = _shakespeare_char
