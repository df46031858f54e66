"""`python -m jaxllm`, where the `jaxllm` script is not on the path."""

from jaxllm.cli import main

main()
