"""Marks for text that has none, such as what speech recognition writes.

Start with `train_punctuator`, on any marked text:

    marks = Marks(",.?")
    talks = [marks.read(text) for text in texts]           # (words, labels) of each
    config = LabelConfig(start="pypi:minilm", out="runs/marks")
    punctuator, run = train_punctuator(config, talks[10:], talks[:10], marks)
    punctuator.punctuate("so what now he said 3.5 or 1,000")

`Punctuator.load("runs/marks")` reads it again; `label` says each word's mark with its probability, `stream`
as words come, with some words of look-ahead. `TaggerReward` says what generated text is worth to a tagger.
`jaxllm punctuate FILE` is the command.
"""

from jaxllm.punctuate.marks import NONE, Marks, Word, plain
from jaxllm.punctuate.rewards import TaggerReward
from jaxllm.punctuate.tagger import Marked, Punctuator
from jaxllm.punctuate.training import Document, cut_documents, train_punctuator

__all__ = [
    "NONE",
    "Document",
    "Marked",
    "Marks",
    "Punctuator",
    "TaggerReward",
    "Word",
    "cut_documents",
    "plain",
    "train_punctuator",
]
