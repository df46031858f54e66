import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from jaxllm import data
from jaxllm.atomic import new_folder
from jaxllm.data import corpus as corpus_module
from jaxllm.errors import UserError

STORIES = [f"story {i}: " + f"word{i % 7} and so on, été. " * (5 + i % 11) for i in range(60)]


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def texts_of(tokens, tokenizer) -> list[str]:
    """Decode every document, and check that eos ends each one and nothing else."""
    texts = []
    for i in range(tokens.num_documents):
        ids = tokens.document(i)
        assert ids[-1] == tokenizer.eos_id and tokenizer.eos_id not in ids[:-1]
        texts.append(tokenizer.decode(ids[:-1]))
    return texts


@pytest.mark.smoke
@pytest.mark.parametrize("spec", ["gpt2", "bytes", "char", "bpe:300"])
def test_every_document_is_in_one_split_whole(spec, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", STORIES)
    corpus = data.prepare(path, spec, seq_len=16)
    train = texts_of(corpus.train, corpus.tokenizer)
    valid = texts_of(corpus.valid, corpus.tokenizer)
    if spec != "char":  # Characters that only the validation split has are unknown to "char".
        assert sorted(train + valid) == sorted(STORIES)
        assert corpus.valid.num_bytes == sum(len(text.encode()) for text in valid)
    assert sum(t.num_bytes for t in (corpus.train, corpus.valid)) == sum(
        len(text.encode()) for text in STORIES
    )
    share = corpus.valid.num_bytes / (corpus.train.num_bytes + corpus.valid.num_bytes)
    assert 0.08 < share < 0.15
    assert isinstance(corpus.train.ids, np.memmap) and corpus.train.ids.dtype == np.uint16
    assert corpus.train.starts[0] == 0 and (np.diff(corpus.train.starts) > 0).all()


def test_the_split_does_not_depend_on_the_order_of_documents(tmp_path):
    splits = []
    for name, texts in {"a": STORIES, "b": STORIES[::-1]}.items():
        corpus = data.prepare(write_jsonl(tmp_path / f"{name}.jsonl", texts), "bytes", seq_len=16)
        splits.append(sorted(texts_of(corpus.valid, corpus.tokenizer)))
    assert splits[0] == splits[1]


def test_copies_of_a_document_fall_on_the_same_side(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", STORIES * 3)
    corpus = data.prepare(path, "bytes", seq_len=16)
    train = texts_of(corpus.train, corpus.tokenizer)
    valid = texts_of(corpus.valid, corpus.tokenizer)
    assert not set(train) & set(valid) and len(train) + len(valid) == 180
    for tokens, texts in ((corpus.train, train), (corpus.valid, valid)):
        assert tokens.copies == len(texts) - len(set(texts)) == 2 * len(set(texts))
    again = data.prepare(path, "bytes", seq_len=16)  # from the cache
    assert (again.train.copies, again.valid.copies) == (corpus.train.copies, corpus.valid.copies)


@pytest.mark.parametrize("spec", ["bytes", "bpe:300"])
def test_held_out_text_of_its_own_leaves_the_rest_to_train_on(spec, tmp_path):
    mine = write_jsonl(tmp_path / "mine.jsonl", STORIES[:40])
    held = write_jsonl(tmp_path / "held.jsonl", STORIES[40:])
    corpus = data.prepare(mine, spec, seq_len=16, valid_source=held)
    assert texts_of(corpus.train, corpus.tokenizer) == STORIES[:40]
    assert texts_of(corpus.valid, corpus.tokenizer) == STORIES[40:]
    split = data.prepare(mine, spec, seq_len=16)  # another cache, another trained tokenizer
    assert split.train.fingerprint != corpus.train.fingerprint
    assert data.fingerprint(mine, spec) != data.fingerprint(mine, spec, valid_source=held)


def test_held_out_text_of_its_own_is_of_the_same_kind_and_long_enough(tmp_path):
    mine = write_jsonl(tmp_path / "mine.jsonl", STORIES)
    (tmp_path / "short.txt").write_text("Too short.")
    with pytest.raises(UserError, match="validation part of .*short.txt' has 11 tokens, shorter than one"):
        data.prepare(mine, "bytes", seq_len=16, valid_source=tmp_path / "short.txt")
    with pytest.raises(UserError, match="other.jsonl' is to be held out and holds the same as .*mine.jsonl'"):
        data.prepare(mine, "bytes", seq_len=16, valid_source=write_jsonl(tmp_path / "other.jsonl", STORIES))
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n')
    with pytest.raises(UserError, match="holds text, and .*pairs.jsonl' to validate on holds prompt"):
        data.prepare(mine, "bytes", seq_len=16, valid_source=tmp_path / "pairs.jsonl")


@pytest.mark.parametrize("count", [2, 3])
def test_few_documents_still_fill_both_splits(count, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", STORIES[:count])
    for fraction in (0.001, 0.5, 0.999):
        corpus = data.prepare(path, "bytes", seq_len=16, valid_fraction=fraction)
        counts = corpus.train.num_documents, corpus.valid.num_documents
        assert sum(counts) == count and min(counts) >= 1


def test_one_document_is_split_by_position_as_in_nanogpt(tmp_path):
    text = "".join(STORIES)
    (tmp_path / "input.txt").write_text(text)
    for spec in ("bytes", "gpt2"):
        corpus = data.prepare(tmp_path / "input.txt", spec, seq_len=16)
        assert texts_of(corpus.train, corpus.tokenizer) == [text[: int(len(text) * 0.9)]]
        assert texts_of(corpus.valid, corpus.tokenizer) == [text[int(len(text) * 0.9) :]]


def test_the_position_split_is_the_same_however_the_text_is_cut(tmp_path, monkeypatch):
    (tmp_path / "input.txt").write_text("".join(STORIES))
    whole = data.prepare(tmp_path / "input.txt", "gpt2", seq_len=16)
    monkeypatch.setattr(data.sources, "_PIECE_CHARS", 100)
    cut = data.prepare(tmp_path / "input.txt", "gpt2", seq_len=16, cache_dir=tmp_path / "other")
    for a, b in ((whole.train, cut.train), (whole.valid, cut.valid)):
        assert a.ids.tolist() == b.ids.tolist() and a.starts.tolist() == b.starts.tolist()


def test_sotu_splits_by_address():
    corpus = data.prepare("sotu", "bytes", seq_len=256)
    batch = next(data.batches(corpus.train, batch_size=4, seq_len=256, seed=0))
    assert {type(array) for array in batch.values()} == {np.ndarray}  # Not memmaps of no file.
    assert corpus.train.num_documents + corpus.valid.num_documents == 233
    assert corpus.train.num_bytes + corpus.valid.num_bytes == 10_761_202


def test_trained_tokenizers_see_the_train_split_only(tmp_path):
    marked = [
        text + chr(0x4E00 + i) for i, text in enumerate(STORIES)
    ]  # One letter of its own each.
    corpus = data.prepare(write_jsonl(tmp_path / "a.jsonl", marked), "char", seq_len=16)
    train = data.prepare(tmp_path / "a.jsonl", "bytes", seq_len=16)
    seen = {text[-1] for text in texts_of(train.train, train.tokenizer)}
    assert {c for c in corpus.tokenizer.alphabet if c >= "\u4e00"} == seen
    assert corpus.tokenizer.unknown_id in corpus.valid.ids
    assert corpus.tokenizer.unknown_id not in corpus.train.ids


def test_a_second_call_reads_the_cache_and_changed_content_does_not(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", STORIES)
    for spec in ("gpt2", "bpe:300", "char"):
        first = data.prepare(path, spec, seq_len=16)
        with monkeypatch.context() as patch:
            patch.setattr(
                corpus_module, "split_documents", None
            )  # A pass over the text would fail.
            again = data.prepare(path, spec, seq_len=16)
        assert again.tokenizer.fingerprint == first.tokenizer.fingerprint
        assert again.train.ids.tolist() == first.train.ids.tolist()
        assert again.valid.num_bytes == first.valid.num_bytes
    write_jsonl(path, STORIES[:-1])
    changed = data.prepare(path, "gpt2", seq_len=16)
    assert changed.train.num_documents + changed.valid.num_documents == 59


def test_text_that_other_code_read_is_read_again(tmp_path, monkeypatch):
    """A reader that is corrected must not go on serving what the old one made of the same file."""
    path, cache = write_jsonl(tmp_path / "a.jsonl", STORIES), tmp_path / "cache"
    data.prepare(path, "bytes", seq_len=16, cache_dir=cache)
    monkeypatch.setattr(corpus_module, "_reading_code", lambda: "corrected readers")
    data.prepare(path, "bytes", seq_len=16, cache_dir=cache)
    assert len(list((cache / "tokens").iterdir())) == 2


def test_large_vocabularies_take_32_bits(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"</s>": 0, "<unk>": 1, "story": 70_000}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    path = write_jsonl(tmp_path / "a.jsonl", STORIES)
    corpus = data.prepare(path, tmp_path / "tokenizer.json", seq_len=16)
    assert corpus.train.ids.dtype == np.uint32 and corpus.train.ids.max() == 70_000


@pytest.mark.parametrize("damage", ["cut short", "lost", "not json"])
def test_a_damaged_cache_is_made_anew(damage, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", STORIES)
    first = data.prepare(path, "bytes", seq_len=16, cache_dir=tmp_path / "cache")
    expected = first.train.ids.tolist()
    (folder,) = (tmp_path / "cache" / "tokens").iterdir()
    if damage == "cut short":
        os.truncate(folder / "train.ids", 100)
    elif damage == "lost":
        (folder / "valid.starts").unlink()
    else:
        (folder / "meta.json").write_text("{")
    again = data.prepare(path, "bytes", seq_len=16, cache_dir=tmp_path / "cache")
    assert again.train.ids.tolist() == expected


PREPARE = """
    import sys, time
    from jaxllm import data
    time.sleep(max(0, float(sys.argv[3]) - time.time()))  # All start together.
    corpus = data.prepare(sys.argv[1], "bpe:300", seq_len=16, cache_dir=sys.argv[2])
    print(corpus.train.ids.astype(int).sum(), len(corpus.valid))
"""


def test_processes_that_prepare_at_once_agree_and_leave_one_cache(tmp_path):
    import time

    path = write_jsonl(tmp_path / "a.jsonl", STORIES * 5)
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(PREPARE),
        path,
        tmp_path / "c",
        str(time.time() + 1),
    ]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0] and len(printed) == 1
    assert [len(list((tmp_path / "c" / kind).iterdir())) for kind in ("tokens", "tokenizers")] == [
        1,
        1,
    ]


def test_the_first_of_two_equal_folders_stays(tmp_path):
    for content in ("first", "second"):
        with new_folder(tmp_path / "final", is_whole=Path.is_dir) as partial:
            (partial / "file").write_text(content)
    assert (tmp_path / "final" / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_a_folder_that_another_process_fills_meanwhile_is_kept_and_the_loser_told(tmp_path):
    final = tmp_path / "final"
    with pytest.raises(UserError, match="final' .Directory not empty"), new_folder(final) as ours:
        (ours / "file").write_text("ours")
        with new_folder(final) as theirs:
            (theirs / "file").write_text("theirs")
    assert (final / "file").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


MEMORY = """
    import sys
    from jaxllm import data
    # Not getrusage, whose maximum begins with that of the process that started this one.
    peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
    data.prepare(sys.argv[1], "gpt2", seq_len=16, cache_dir=sys.argv[3])
    before = peak()
    corpus = data.prepare(sys.argv[2], "bytes", seq_len=16, cache_dir=sys.argv[3])
    print(len(corpus.train), peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's own account of a process")
def test_a_file_larger_than_the_memory_allowed_streams(tmp_path):
    small = write_jsonl(tmp_path / "a.jsonl", STORIES)
    block = ("".join(STORIES) + "\n") * 60
    with open(tmp_path / "big.txt", "w") as stream:
        for _ in range(60_000_000 // len(block.encode()) + 1):
            stream.write(block)
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(MEMORY),
        small,
        tmp_path / "big.txt",
        tmp_path / "c",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    num_ids, growth = done.stdout.split()
    assert int(num_ids) > 50_000_000
    assert float(growth) < 40, f"peak memory grew by {growth} MB for a 60 MB file"


DISK_FULL = """
    import resource, sys
    from jaxllm import data
    from jaxllm.errors import UserError
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # Writing fails as on a full disk.
    try:
        data.prepare(sys.argv[1], sys.argv[3], seq_len=16, cache_dir=sys.argv[2])
    except UserError as error:
        print(error)
"""


@pytest.mark.parametrize("spec", ["bytes", "bpe:300"])
def test_a_full_disk_is_told_and_leaves_nothing(spec, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", STORIES)
    command = [sys.executable, "-c", textwrap.dedent(DISK_FULL), path, tmp_path / "cache", spec]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"cannot write in the folder '{tmp_path / 'cache'}" in printed and "free some space" in printed
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file() or ".partial" in p.name]


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", STORIES)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot write in the folder '.*file/cache/tokens'"):
        data.prepare(path, "bytes", seq_len=16, cache_dir=tmp_path / "file" / "cache")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write in read-only folders")
def test_a_read_only_cache_folder_serves_what_it_has(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", STORIES)
    first = data.prepare(path, "bytes", seq_len=16, cache_dir=tmp_path / "cache")
    (tmp_path / "cache" / "tokens").chmod(0o500)
    again = data.prepare(path, "bytes", seq_len=16, cache_dir=tmp_path / "cache")
    assert len(again.train) == len(first.train)
    with pytest.raises(UserError, match="cannot write in the folder .*Permission denied"):
        data.prepare(path, "gpt2", seq_len=16, cache_dir=tmp_path / "cache")


def test_an_interrupted_preparation_leaves_nothing(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", STORIES)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(corpus_module, "write_tokens", interrupt)
    with pytest.raises(KeyboardInterrupt):
        data.prepare(path, "bytes", seq_len=16, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache" / "tokens").iterdir())


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", STORIES)
    old, new = (tmp_path / "cache" / "tokens" / f".partial-{name}" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "train.ids").write_text("half")
    for left in (old / "train.ids", old):
        os.utime(left, (1, 1))
    data.prepare(path, "bytes", seq_len=16, cache_dir=tmp_path / "cache")
    assert new.exists() and not old.exists()


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (STORIES, {"seq_len": 0}, "seq_len is 0; expected at least 1"),
        (STORIES, {"valid_fraction": 0.0}, "valid_fraction is 0.0; expected a share"),
        (
            STORIES,
            {"seq_len": 10**6},
            r"training part of '.*' has \d+ tokens, shorter than one seq",
        ),
        (
            STORIES,
            {"seq_len": 2000},
            r"validation part of '.*' has \d+ tokens, shorter than one seq",
        ),
        (["same"] * 9, {}, "all 9 documents of '.*' are the same"),
        (["  ", "\n"], {}, "is empty: it holds only blank text"),
        (STORIES, {"tokenizer": "bpe:5000"}, "too small for the tokenizer 'bpe:5000'"),
    ],
)
def test_unusable_data_is_told_in_one_sentence(texts, options, message, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    with pytest.raises(UserError, match=message):
        data.prepare(
            path, **{"tokenizer": "bytes", "seq_len": 16, "cache_dir": tmp_path / "c", **options}
        )
    left = [p.name for p in (tmp_path / "c").rglob("*") if ".partial" in p.name]
    assert not left


def test_a_wrong_tokenizer_name_costs_no_reading(tmp_path):
    with pytest.raises(UserError, match="unknown tokenizer 'gpt3'"):
        data.prepare(tmp_path / "missing.txt", "gpt3", seq_len=16)
