"""What of a pretrained model is trained: an adapter beside its matrices, or some of its parameters.

Each is a view `(trained, frozen, key) -> parameters`; the frozen rest has no gradient and no moments.
"""

from jaxllm.adapt.lora import Lora as Lora
from jaxllm.adapt.lora import LoraConfig as LoraConfig
from jaxllm.adapt.names import layer_matrices as layer_matrices
from jaxllm.adapt.peft import load_adapter as load_adapter
from jaxllm.adapt.peft import read_about as read_about
from jaxllm.adapt.peft import save_adapter as save_adapter
from jaxllm.adapt.train_only import TrainOnly as TrainOnly
