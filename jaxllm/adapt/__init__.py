"""What of a pretrained model is trained: an adapter beside its matrices, or some of its parameters.

Start with `Lora(model, config)`: a view `(trained, frozen, key) -> parameters`, whose `init(key)` gives
what is trained; the frozen rest has no gradient and no moments. A run takes it as `--lora.rank 8`.

    lora = Lora(model, LoraConfig(rank=8, targets="query,value"))
    trained = lora.init(jax.random.key(0))
    params = lora(trained, base_params, None)       # for models.apply; lora.merge(trained, base) for good

`TrainOnly` trains parameters by name, `LastLayers` the last layers; `add_tokens` adds tags to a vocabulary,
`add_sink` a key without a value to every head; `GumbelMixture` draws a hybrid's mixture, to search it.
`save_adapter` and `load_adapter` write and read peft's folders. `score_adapted_texts` trains a copy for each
text on its neighbours, scores it and forgets it.
"""

from jaxllm.adapt.gumbel_mixture import GumbelMixture
from jaxllm.adapt.last_layers import LastLayers
from jaxllm.adapt.lora import Lora, LoraConfig
from jaxllm.adapt.names import layer_matrices
from jaxllm.adapt.new_tokens import add_tokens
from jaxllm.adapt.peft import load_adapter, read_about, save_adapter
from jaxllm.adapt.per_document import (
    Adapted,
    PerDocumentConfig,
    adapt_and_score,
    score_adapted_texts,
    split_document,
)
from jaxllm.adapt.sink import add_sink
from jaxllm.adapt.train_only import TrainOnly

__all__ = [
    "Adapted",
    "GumbelMixture",
    "LastLayers",
    "Lora",
    "LoraConfig",
    "PerDocumentConfig",
    "TrainOnly",
    "adapt_and_score",
    "add_sink",
    "add_tokens",
    "layer_matrices",
    "load_adapter",
    "read_about",
    "save_adapter",
    "score_adapted_texts",
    "split_document",
]
