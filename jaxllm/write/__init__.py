"""Suggestions while somebody writes: the rest of a word, a few more, or nothing.

Start with `Writer`. What everybody writes and what one user does are counted as it comes; a language model,
if there is one, is asked beside them:

    shared = Lexicon()
    for line in lines:
        shared.learn(line)
    writer = Writer(shared, store.load("anna"))           # UserStore(folder): users apart, exported, erased
    writer.suggest("Please send the inv", count=3)        # [Suggestion("oice ", chance=0.6, ...)]

    source = ModelSource(Decoder(config, params), tokenizer)
    session = source.session()                            # of one text: cache and logits stay while it grows
    writer.suggest(text, proposals=session.propose(text, deadline=time.perf_counter() + 0.05))

`accepted`, `rejected` and `learn` tell a writer what became of it; `replay` says how many keys an ideal user
would have saved on given texts. `Service` answers many users at once; `jaxllm demo MODEL` is its page.
"""

from jaxllm.write.isotonic import IDENTITY, Isotonic, fit_isotonic, threshold
from jaxllm.write.lexicon import Lexicon
from jaxllm.write.model_source import ModelSession, ModelSource
from jaxllm.write.ngrams import NGrams
from jaxllm.write.replay import Replayed, accepted_words, replay
from jaxllm.write.service import Service, ServiceConfig
from jaxllm.write.user_store import User, UserStore
from jaxllm.write.writer import Proposal, Suggestion, Writer, WriterConfig

__all__ = [
    "IDENTITY",
    "Isotonic",
    "Lexicon",
    "ModelSession",
    "ModelSource",
    "NGrams",
    "Proposal",
    "Replayed",
    "Service",
    "ServiceConfig",
    "Suggestion",
    "User",
    "UserStore",
    "Writer",
    "WriterConfig",
    "accepted_words",
    "fit_isotonic",
    "replay",
    "threshold",
]
