"""Models that others trained, and ours for others: Hugging Face folders and GGUF files.

model = from_pretrained("HuggingFaceTB/SmolLM2-135M"); save_pretrained("out", *model).
"""

from jaxllm.pretrained.gemma3 import fetch_gemma3 as fetch_gemma3
from jaxllm.pretrained.load import Pretrained as Pretrained
from jaxllm.pretrained.load import from_pretrained as from_pretrained
from jaxllm.pretrained.load import is_pretrained as is_pretrained
from jaxllm.pretrained.minilm import fetch_minilm as fetch_minilm
from jaxllm.pretrained.save import save_pretrained as save_pretrained
from jaxllm.pretrained.smollm2 import fetch_smollm2 as fetch_smollm2
