"""Models that others trained, and ours for others: Hugging Face folders and GGUF files.

model = from_pretrained("HuggingFaceTB/SmolLM2-135M"); save_pretrained("out", *model).
"""

from jaxllm.pretrained.gemma3 import fetch_gemma3
from jaxllm.pretrained.load import Pretrained, from_pretrained, is_pretrained
from jaxllm.pretrained.minilm import fetch_minilm
from jaxllm.pretrained.save import save_pretrained
from jaxllm.pretrained.smollm2 import fetch_smollm2

__all__ = [
    "Pretrained",
    "fetch_gemma3",
    "fetch_minilm",
    "fetch_smollm2",
    "from_pretrained",
    "is_pretrained",
    "save_pretrained",
]
