"""What of a pretrained model is trained: an adapter beside its matrices, or some of its parameters.

Each is a view `(trained, frozen, key) -> parameters`; the frozen rest has no gradient and no moments.
"""

from jaxllm.adapt.lora import Lora, LoraConfig
from jaxllm.adapt.names import layer_matrices
from jaxllm.adapt.peft import load_adapter, read_about, save_adapter
from jaxllm.adapt.train_only import TrainOnly

__all__ = [
    "Lora",
    "LoraConfig",
    "TrainOnly",
    "layer_matrices",
    "load_adapter",
    "read_about",
    "save_adapter",
]
