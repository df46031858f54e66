"""Train, adapt and study GPT-class language models in JAX.

Start with a model, `jaxllm.pretrained.from_pretrained("OWNER/NAME")` or `jaxllm.models.get_preset("gpt2")`;
a run, `jaxllm.text.train(jaxllm.text.TrainConfig(data="my.txt"))`; or the command line, `jaxllm --help`.
`help(jaxllm.train)`, and that of each other package, shows what it offers.

    models       families: a frozen config, and pure functions over a dict of arrays
    pretrained   Hugging Face and GGUF models in and out
    generate     text from a model            score       what a model says of given texts
    text         train on text, load a run    train       train anything else: a task, a loop, checkpoints
    adapt        LoRA and its kin             optim       links of optax.chain
    data         text to batches              vocabulary  heads of token groups
    subnetwork   random parts that grow       quantize    integer grids
    interpret    what goes on inside          parallel    meshes, shardings, the host's memory
    retrieve     vectors and neighbours       in_context  labels from examples, untrained
    reward       rollouts, policy gradients   punctuate   marks for text that has none
    write        completions as one types     measures    what sets of texts are like; tests
    synthetic    problems drawn by rule       integrals   formulas from numbers alone
    targets      compile and plan for a machine that is not here
    tiles        training as scheduled tile tasks
    report       the report that every experiment writes
"""

import importlib
import importlib.util

__version__ = "0.1.0"


def __getattr__(name: str):
    """Import a package of the library where it is first used: `import jaxllm; jaxllm.models.init`."""
    if name.startswith("_") or importlib.util.find_spec(f"jaxllm.{name}") is None:
        raise AttributeError(f"module 'jaxllm' has no attribute '{name}'")
    return importlib.import_module(f"jaxllm.{name}")
