"""Families of published models, each one file: tensors, config.json, buffers, models by known names."""

from jaxllm.models.families.bert import BERT
from jaxllm.models.families.deberta_v2 import DEBERTA_V2
from jaxllm.models.families.gemma3 import GEMMA3
from jaxllm.models.families.gpt2 import GPT2
from jaxllm.models.families.gpt_neo import GPT_NEO
from jaxllm.models.families.gpt_neox import GPT_NEOX
from jaxllm.models.families.llama import LLAMA
from jaxllm.models.families.mamba import MAMBA
from jaxllm.models.families.record import Buffer as Buffer
from jaxllm.models.families.record import Family as Family
from jaxllm.models.families.record import Gguf as Gguf
from jaxllm.models.families.record import Tensor as Tensor
from jaxllm.models.families.roberta import ROBERTA
from jaxllm.models.families.t5 import T5

# By the model_type of a config.json. A model is saved as the first that can express it.
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (GPT2, GPT_NEO, GPT_NEOX, LLAMA, GEMMA3, MAMBA, BERT, ROBERTA, DEBERTA_V2, T5)
}


def titles(word: str) -> str:
    """Return the families' names in a sentence.

    Examples:
      >>> titles("or").startswith("GPT-2, GPT-Neo")
      True
    """
    *rest, last = (family.title for family in FAMILIES.values())
    return f"{', '.join(rest)} {word} {last}"
