"""Tokens that may come, against a search of the whole vocabulary."""

import numpy as np
import pytest

from jaxllm.data import load_tokenizer
from jaxllm.write.token_trie import TokenTrie, token_bytes


@pytest.mark.parametrize("name", ["gpt2", "bytes", "char"])
def test_what_tokens_write_is_what_the_tokenizer_decodes(name):
    tokenizer = load_tokenizer(name, documents=["a naïve word"] if name == "char" else None)
    written = token_bytes(tokenizer)
    assert len(written) == tokenizer.vocab_size and written[tokenizer.eos_id] is None
    ids = tokenizer.encode("a naïve word")
    assert b"".join(written[i] for i in ids) == "a naïve word".encode()


@pytest.fixture(scope="module")
def vocabulary():
    written = token_bytes(load_tokenizer("gpt2"))
    return written, TokenTrie(written)


@pytest.mark.parametrize("need", [b" unfath", b" ", b"", b" \xc3\xa9", b" zzzzqqq"])
def test_allowed_tokens_are_those_a_search_finds(need, vocabulary):
    written, trie = vocabulary
    brute = {i for i, p in enumerate(written) if p and (p.startswith(need) or (need and need.startswith(p)))}
    found = trie.allowed(need).tolist()
    assert set(found) == brute and len(found) == len(brute)
    assert trie.ends_word_V[trie.starting(b" ")].all() and not trie.ends_word_V[trie.starting(b"x")].any()
    whole = [i for i in sorted(brute) if written[i].startswith(need)]
    assert np.array_equal(np.sort(trie.starting(need)), whole)
