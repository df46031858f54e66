"""Train, adapt and study GPT-class language models in JAX."""

__version__ = "0.1.0"
