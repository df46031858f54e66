"""Text to batches: tokenizers, corpora cached on disk, packed and restorable batches.

Start with `prepare`, which tokenises once and maps the result from disk, and `batches`.

Examples:
  A whole run's data, from the embedded State of the Union addresses::

    from jaxllm import data

    corpus = data.prepare("sotu", "bpe:1024", seq_len=256)
    train = data.batches(corpus.train, batch_size=32, seq_len=256, seed=0)
    batch = next(train)     # tokens, targets, segment_ids, mask: each [32, 256]
    saved = train.state()   # a small dict; train.restore(saved) gives the next batch again

  `source` may also be a file or folder of text, jsonl, csv or tsv, "tfds:NAME" or "hf:NAME". Rows with the
  columns prompt and completion, or messages, are examples: the mask counts what the model is to say.
"""

from jaxllm.data.baselines import bigram_bits_per_byte, unigram_bits_per_byte
from jaxllm.data.batches import Batches, batches, count_eval_batches, eval_batches
from jaxllm.data.chat import ChatTemplate, chat_template
from jaxllm.data.corpus import Corpus, fingerprint, prepare
from jaxllm.data.labelled import Labelled, read_labelled
from jaxllm.data.padded import encode_padded
from jaxllm.data.pairs import pair_lengths
from jaxllm.data.sources import open_source, read_documents
from jaxllm.data.tokenizer import Tokenizer, is_trained, load_tokenizer, single_token, start_id
from jaxllm.data.tokens import Tokens

__all__ = [
    "Batches",
    "ChatTemplate",
    "Corpus",
    "Labelled",
    "Tokenizer",
    "Tokens",
    "batches",
    "bigram_bits_per_byte",
    "chat_template",
    "encode_padded",
    "count_eval_batches",
    "eval_batches",
    "fingerprint",
    "is_trained",
    "load_tokenizer",
    "open_source",
    "pair_lengths",
    "prepare",
    "read_documents",
    "read_labelled",
    "single_token",
    "start_id",
    "unigram_bits_per_byte",
]
