"""The tokenizer that a GGUF file carries: vocabulary, merges and the kind of pre-tokenizer."""

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxllm.data import bpe
from jaxllm.data.companions import Companions
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.errors import UserError, bare, brief, unknown
from jaxllm.pretrained.gguf_file import GgufFile

if TYPE_CHECKING:
    import tokenizers

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What llama.cpp applies, one after another, where no pre-tokenizer is named.
_DEFAULT_SPLITS = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)
# tokenizer.ggml.pre, which names how text is cut before the merges.
_PRE = {
    "default": "default", "gpt-2": "gpt2", "smollm": "digits",
    "llama-bpe": "llama3", "llama-v3": "llama3", "llama3": "llama3",
}  # fmt: skip
_WHOLE, _NUMBERS = "an array of whole numbers", "an array of numbers"
_LONGEST = 4096  # characters; every way to cut a token in two is tried
_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6  # values of tokenizer.ggml.token_type


def gguf_tokenizer(file: GgufFile) -> Tokenizer | None:
    """Return the file's tokenizer, or None if it carries none.

    Raises:
      UserError: a kind that is not byte-level BPE ("gpt2") or SentencePiece BPE ("llama"), or a
        vocabulary and merges that contradict each other.
    """
    kind = _get(file, "model", str, None)
    if kind is None:
        return None
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in builders:
        raise UserError(f"{file.path}: {unknown('tokenizer model', bare(kind), builders)}")
    tokens = _get(file, "tokens", list)
    if max(map(len, tokens), default=0) > _LONGEST:
        raise UserError(f"{file.path}: a token of more than {_LONGEST} characters; the file is damaged")
    if len(set(tokens)) != len(tokens) or not tokens:
        raise UserError(f"{file.path}: the vocabulary is empty or holds the same token twice")
    kinds = [int(one) for one in _get(file, "token_type", _WHOLE, [])]
    backend = builders[kind](file, tokens, kinds)
    backend.add_special_tokens(_added(tokens, kinds, _CONTROL, special=True))
    backend.add_tokens(_added(tokens, kinds, _USER_DEFINED, special=False))
    return bpe.from_json(backend.to_str(), str(file.path), _companions(file, kind, tokens))


def _companions(file: GgufFile, kind: str, tokens: list[str]) -> Companions:
    """Return what the header says of special tokens, as a Hugging Face folder says it."""
    bos = 1 if kind == "llama" else None  # what llama.cpp takes where nothing is said
    ids = {
        "bos_token": _get(file, "bos_token_id", int, bos),
        "eos_token": _get(file, "eos_token_id", int, None),
        "pad_token": _get(file, "padding_token_id", int, None),
    }
    ids = {name: i for name, i in ids.items() if i is not None and 0 <= i < len(tokens)}
    config = {name: tokens[i] for name, i in ids.items()}
    begins = kind == "llama" or _PRE.get(_get(file, "pre", str, "")) == "llama3"
    config["add_bos_token"] = _get(file, "add_bos_token", bool, begins) and "bos_token" in ids
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    ends = [_get(file, name, int, None) for name in ("eos_token_id", "eot_token_id", "eom_token_id")]
    ends = sorted({end for end in ends if end is not None})
    generation = {f"{name}_id": i for name, i in ids.items()}
    return Companions(config, generation | ({"eos_token_id": ends} if len(ends) > 1 else {}))


def _byte_level(file: GgufFile, tokens: list[str], kinds: list[int]) -> "tokenizers.Tokenizer":
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    pre = _get(file, "pre", str, None)
    if pre is None:
        pre = "default"
        warnings.warn(
            f"'{file.path}' does not say how its tokenizer cuts text (tokenizer.ggml.pre): it is cut as "
            "llama.cpp does in that case, and token ids may differ from those that the model was trained on; "
            "convert the model again with a newer llama.cpp",
            stacklevel=2,
        )
    if pre not in _PRE:
        raise UserError(f"{file.path}: {unknown('pre-tokenizer', bare(pre), _PRE)}")
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ", 1)) for merge in _get(file, "merges", list)]
    # llama.cpp looks whole words up before merging for Llama 3's vocabulary, as its authors do.
    model = _bpe(file, models, vocab, merges, ignore_merges=_PRE[pre] == "llama3")
    backend = Tokenizer(model)
    steps = {
        "default": [
            *(pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in _DEFAULT_SPLITS),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ],
        "gpt2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "digits": [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ],
        "llama3": [
            pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ],
    }
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps[_PRE[pre]])
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(file: GgufFile, tokens: list[str], kinds: list[int]) -> "tokenizers.Tokenizer":
    """SentencePiece's BPE keeps scores, not merges: the best score merges first."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocab = {token: i for i, token in enumerate(tokens)}
    scores = _get(file, "scores", _NUMBERS)
    if len(scores) != len(tokens):
        raise UserError(f"{file.path}: {len(scores)} scores for {len(tokens)} tokens")
    pairs = []
    for token, i in vocab.items():
        if i < len(kinds) and kinds[i] in (_CONTROL, _BYTE):
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                pairs.append((-float(scores[i]), vocab[left], vocab[right], left, right))
    merges = [pair[3:] for pair in sorted(pairs)]
    unknown_id = _get(file, "unknown_token_id", int, 0)
    if not 0 <= unknown_id < len(tokens):
        raise UserError(f"{file.path}: unknown_token_id={unknown_id} is outside the vocabulary")
    options = dict(byte_fallback=True, fuse_unk=True, unk_token=tokens[unknown_id])
    backend = Tokenizer(_bpe(file, models, vocab, merges, **options))
    prefix = [normalizers.Prepend("▁")] if _get(file, "add_space_prefix", bool, True) else []
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend


def _bpe(file: GgufFile, models, vocab: dict[str, int], merges: list[tuple], **options):
    for merge in merges:
        if len(merge) != 2 or any(part not in vocab for part in (*merge, "".join(merge))):
            raise UserError(
                f"{file.path}: the merge {brief(' '.join(merge))} of its tokenizer does not join two tokens "
                "into a third one of the vocabulary"
            )
    return models.BPE(vocab=vocab, merges=merges, **options)


def _added(tokens: list[str], kinds: list[int], kind: int, *, special: bool) -> list:
    from tokenizers import AddedToken

    return [
        AddedToken(token, normalized=False, special=special)
        for token, one in zip(tokens, kinds, strict=False)
        if one == kind and token
    ]


def _get(file: GgufFile, name: str, kind: type | str, *default: Any) -> Any:
    """Return a value of the tokenizer; `kind` is a type, or _WHOLE or _NUMBERS for an array of such."""
    key = f"tokenizer.ggml.{name}"
    if key not in file.metadata:
        if default:
            return default[0]
        raise UserError(f"'{file.path}' has no value '{key}' in its header")
    value = file.metadata[key]
    if kind in (_WHOLE, _NUMBERS):
        good = isinstance(value, np.ndarray) and value.dtype.kind in ("iu" if kind is _WHOLE else "iuf")
        good = good and bool(np.isfinite(value).all())
    else:
        good = type(value) is kind
    if not good:
        expected = kind if isinstance(kind, str) else kind.__name__
        raise UserError(f"{file.path}: {key} is {brief(value)}; expected {expected}")
    return value
