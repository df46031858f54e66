"""One module or folder a paper, `python -m experiments.NAME`; benchmarks in `experiments.benchmarks`.

A folder's experiment is its `__init__.py`, with the question, the commands and the result in its docstring;
the files beside it are its parts. `shared` holds what several experiments use, `grid` runs variants by seeds.
"""

from jaxllm.quiet_start import quiet_start

quiet_start()
