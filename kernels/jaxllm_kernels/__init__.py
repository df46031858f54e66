"""Hot paths of GPT-class models, each with a readable reference and fast implementations."""
