"""Texts to vectors, a store of vectors, and its exact nearest neighbours on one device or a mesh.

Start with `Encoder`, which turns texts into vectors, and `search`, which finds the nearest:

    encoder = Encoder(*from_pretrained("pypi:minilm"), longest=256)
    store = build_store("runs/index", encoder, texts)        # memory-mapped, kept under its content
    index = load_index(store)                                # load_index(store, mesh): rows over devices
    found = search(index, encoder.embed(["a query"]), k=10)  # .distances, .ids, .certain
    texts[store.documents[found.ids[0, 0]]]

`search_on_disk` reads a store that no memory holds, `search_shards` asks several searches and names those
that did not answer, `choose_informative` picks neighbours that do not repeat each other, `find_leaks` says
which of them hold the query itself.
"""

from jaxllm.retrieve.choose import choose_informative, within_distance
from jaxllm.retrieve.embed import Encoder
from jaxllm.retrieve.leaks import Leaks, find_leaks, shared_part
from jaxllm.retrieve.search import Index, Neighbours, load_index, recall, search, search_on_disk
from jaxllm.retrieve.search_shards import FoundInShards, search_shards
from jaxllm.retrieve.store import VectorStore, build_store, open_store

__all__ = [
    "Encoder",
    "FoundInShards",
    "Index",
    "Leaks",
    "Neighbours",
    "VectorStore",
    "build_store",
    "choose_informative",
    "find_leaks",
    "load_index",
    "open_store",
    "recall",
    "search",
    "search_on_disk",
    "search_shards",
    "shared_part",
    "within_distance",
]
