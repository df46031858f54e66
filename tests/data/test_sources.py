import csv
import json
import os
import random

import pytest

from jaxllm.data import load_tokenizer, rows, sources
from jaxllm.data.sources import open_source
from jaxllm.errors import UserError


def documents(source) -> list[str]:
    """Put the pieces of each document together."""
    texts, parts = [], []
    for text, ends_document, _ in source.pieces():
        parts.append(text)
        if ends_document:
            texts.append("".join(parts))
            parts = []
    assert not parts, "the last document does not end"
    return texts


def prose(seed: int, num_chars: int) -> str:
    """Return words, runs of spaces, newlines and punctuation, with two- and three-byte letters."""
    rng = random.Random(seed)
    words = [
        "the",
        "Congress,",
        "of",
        "1862",
        "été",
        "don't",
        "世界",
        "--",
        "(x)",
        "\n\n",
        "  ",
        "\t.",
    ]
    text = ""
    while len(text) < num_chars:
        text += " ".join(rng.choices(words, k=1000))
    return text[:num_chars]


def test_sotu_is_embedded():
    assert len(documents(open_source("sotu"))) == 233


@pytest.mark.smoke
def test_a_long_file_comes_in_pieces_that_put_together_are_the_file(tmp_path):
    text = prose(0, 400_000)
    (tmp_path / "a.txt").write_text(text)
    pieces = list(open_source(tmp_path / "a.txt").pieces())
    assert "".join(piece.text for piece in pieces) == text
    assert max(len(piece.text) for piece in pieces) <= 2 * sources._PIECE_CHARS
    assert [piece.ends_document for piece in pieces] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize("spec", ["gpt2", "bytes", "bpe:300"])
def test_ids_do_not_depend_on_where_a_text_is_cut(spec, monkeypatch):
    text = prose(1, 30_000)
    tokenizer = load_tokenizer(spec, documents=[text])
    whole = tokenizer.encode(text).tolist()
    monkeypatch.setattr(sources, "_PIECE_CHARS", 200)
    pieces = list(sources._cut(text, keep=0))
    assert len(pieces) > 100
    assert [i for ids in tokenizer.encode_batch(pieces) for i in ids.tolist()] == whole


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_end_of_text_marks_separate_the_documents_of_a_file(block, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_READ_BYTES", block)
    monkeypatch.setattr(sources, "_PIECE_CHARS", 40)
    # Without spaces a text is cut anywhere, so all lengths up to a piece's are tried.
    stories = ["\nOnce upon a time. " * 12, "The é end.", *("x" * n for n in range(80, 121))]
    text = "\n<|endoftext|>\n\n".join([*stories[:2], "  ", *stories[2:]]) + "\n<|endoftext|>\n"
    (tmp_path / "a.txt").write_text(text)
    assert documents(open_source(tmp_path / "a.txt")) == stories


def test_a_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert documents(open_source(tmp_path / "a.txt")) == ["hello"]


def test_a_folder_is_read_in_order_by_suffix_without_hidden_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_text("second")
    (tmp_path / "a.jsonl").write_text('{"text": "first"}\n')
    (tmp_path / "z.md").write_text("third")
    (tmp_path / ".hidden").write_text("no")
    (tmp_path / "blank.txt").write_text(" \n")
    assert documents(open_source(tmp_path)) == ["first", "second", "third"]


ROWS = [
    "plain",
    'with "quotes", commas\nand a newline',
    "tab\there",
    "é世\U0001f600",
    "x" * 200_000,
]


def write_rows(path, column):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"id": 1, column: row}) + "\n" for row in ROWS))
        return
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerow(["id", column])
        writer.writerows([i, row] for i, row in enumerate(ROWS))


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv"])
@pytest.mark.parametrize("column", ["text", "body"])
def test_rows_are_documents(suffix, column, tmp_path):
    path = tmp_path / f"rows.{suffix}"
    write_rows(path, column)
    chosen = None if column == "text" else column
    assert documents(open_source(path, chosen)) == ROWS


QUOTES = {
    "the mark of inches": (['5" nails', 'a "word" more', 'ends"'], None),
    "a quote left open": (['"open', "next", 'closed"'], None),
    "whole fields": (['"Go!" she said', '"Go!"', "plain"], None),
    "csv's own, for line breaks": (["two\nlines", 'with "quotes"'], csv.QUOTE_MINIMAL),
    "csv's own, for quotes": (['"Go!" she said', "plain"], csv.QUOTE_MINIMAL),
    "csv's own, everywhere": (['"Go!"', "plain", ""], csv.QUOTE_ALL),
}


@pytest.mark.parametrize("name", QUOTES)
def test_quotes_in_a_tsv_are_text_unless_a_writer_put_them(name, tmp_path):
    texts, quoting = QUOTES[name]
    with open(tmp_path / "a.tsv", "w", newline="") as stream:
        if quoting is None:
            stream.write("id\ttext\n" + "".join(f"{i}\t{row}\n" for i, row in enumerate(texts)))
        else:
            writer = csv.writer(stream, delimiter="\t", quoting=quoting)
            writer.writerows([["id", "text"], *enumerate(texts)])
    assert documents(open_source(tmp_path / "a.tsv")) == [row for row in texts if row]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-be"])
@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv", "tsv"])
@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
def test_every_reader_knows_byte_order_marks_and_line_ends(suffix, encoding, end, tmp_path):
    texts = ["né 世界", "\U0001f600 b"]
    lines = {
        "txt": [texts[0], "<|endoftext|>", texts[1], ""],
        "jsonl": [*(json.dumps({"text": text}, ensure_ascii=False) for text in texts), ""],
        "csv": ["text", *texts, ""],
        "tsv": ["text", *texts, ""],
    }[suffix]
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    write(tmp_path / f"a.{suffix}", (mark + end.join(lines)).encode(encoding))
    ends = end if suffix == "txt" else ""  # A file's last line end is its own.
    assert documents(open_source(tmp_path)) == [texts[0], texts[1] + ends]


def test_a_binary_in_a_folder_is_skipped_counted_and_named(tmp_path):
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b.csv").write_text("text\nsecond\n")
    whole = open_source(tmp_path).fingerprint
    write(tmp_path / "photo.png", b"\x89PNG\xff")
    write(tmp_path / "late.txt", b"text " * 300_000 + b"\xff")
    os.mkfifo(tmp_path / "pipe")  # Opening it would wait for ever.
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.warns(UserWarning, match="skipped 4 of 6 files") as caught:
        source = open_source(tmp_path)
    assert documents(source) == ["first", "second"]
    assert source.fingerprint == whole
    for told in ("photo.png' is not UTF-8", "late.txt' is not", "pipe' is not a file", "gone' is a broken"):
        assert told in str(caught[0].message)


def test_links_are_followed_and_a_folder_is_read_once(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.txt").write_text("second")
    root = tmp_path / "data"
    root.mkdir()
    (root / "a.txt").write_text("first")
    (root / "folder").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(tmp_path / "elsewhere")
    (root / "round").symlink_to(root)
    assert sorted(documents(open_source(root))) == ["first", "second"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match="cannot read the folder '.*closed' .Permission denied"):
        open_source(tmp_path)


def test_patterns_and_the_home_folder(tmp_path, monkeypatch):
    (tmp_path / "books" / "old").mkdir(parents=True)
    for name in ("books/a.txt", "books/b.md", "books/old/c.txt", "[x].txt"):
        (tmp_path / name).write_text(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert documents(open_source("~/books/*.txt")) == ["books/a.txt"]
    assert documents(open_source("~/books/**/*.txt")) == ["books/a.txt", "books/old/c.txt"]
    assert documents(open_source("~/b*")) == ["books/a.txt", "books/b.md", "books/old/c.txt"]
    assert documents(open_source("~/[x].txt")) == ["[x].txt"]  # A file of that name is no pattern.
    assert open_source("~/books/*").fingerprint == open_source("~/books").fingerprint


def test_a_row_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "_MAX_ROW", 1000)
    for suffix, content in (("jsonl", b"x" * 5000), ("csv", b'text\n"' + b"word\n" * 999)):
        write(tmp_path / f"a.{suffix}", content)
        with pytest.raises(UserError, match="more than 1,000|field larger than field limit"):
            documents(open_source(tmp_path / f"a.{suffix}"))


def test_half_a_surrogate_pair_in_json_is_replaced(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud83d b \\ud83d\\ude00"}\n')
    assert documents(open_source(tmp_path / "a.jsonl")) == ["a\ufffd b \U0001f600"]


def test_the_fingerprint_follows_content_column_and_place(tmp_path):
    write_rows(tmp_path / "a.jsonl", "text")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "other.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    first = open_source(tmp_path / "a.jsonl").fingerprint
    assert open_source(tmp_path / "copy" / "other.jsonl").fingerprint == first
    assert open_source(tmp_path / "a.jsonl", "id").fingerprint != first
    for name in ("b.jsonl", "b.txt"):  # A suffix decides how a file is read.
        (tmp_path / name).write_bytes((tmp_path / "a.jsonl").read_bytes())
    assert open_source(tmp_path / "b.jsonl").fingerprint == first
    assert open_source(tmp_path / "b.txt").fingerprint != first
    folder = open_source(tmp_path / "copy").fingerprint
    (tmp_path / "copy" / "other.jsonl").rename(tmp_path / "copy" / "other.txt")
    assert open_source(tmp_path / "copy").fingerprint != folder
    (tmp_path / "a.jsonl").write_text('{"text": "changed"}\n')
    assert open_source(tmp_path / "a.jsonl").fingerprint != first


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "gone.txt", "no data at '.*gone.txt'; expected a file or folder"),
        (lambda p: "sout", "unknown data source 'sout'; did you mean 'sotu'"),
        (lambda p: write(p / "a.txt", b""), "the data file '.*a.txt' is empty"),
        (lambda p: p, "the data folder '.*' is empty"),
        (lambda p: write(p / "a.txt", b"\x89PNG\xff"), "a.txt' is not UTF-8 .*byte 0x89"),
        (lambda p: write(p / "a.txt", b"cut \xe4\xb8"), "a.txt' is not UTF-8"),
        (lambda p: write(p / "a.jsonl", b'{"text": "a"}\n{"te'), "line 2 of '.*' is not JSON"),
        (lambda p: write(p / "a.jsonl", b'["text"]\n'), "line 1 of '.*' is a JSON list"),
        (
            lambda p: write(p / "a.jsonl", b'{"text": 7}'),
            "has 7 in the column 'text'; expected a string",
        ),
        (
            lambda p: write(p / "a.jsonl", b'{"txt": "a"}'),
            "did you mean 'txt'.*name one with text_column",
        ),
        (
            lambda p: write(p / "a.csv", b"id,body\n1,hello\n"),
            "unknown text column 'text'.*Known: id, body",
        ),
        (lambda p: write(p / "a.csv", b"id,text\n1\n"), "line 2 of '.*' has 1 columns; expected 2"),
        (lambda p: write(p / "a.csv", b"id,text\n1,one, two\n"), "line 2 of '.*' has 3 columns; expected 2"),
        (
            lambda p: write(p / "a.csv", b'id,text\n1,ok\n2,"open\n3,lost\n'),
            "row that begins in line 3 of '.*' cannot be parsed",
        ),
        (
            lambda p: write(p / "a.csv", b'id,text\n1,ok\n2,"open\n3,"lost"\n'),
            "row that begins in line 3 of '.*' cannot be parsed",
        ),
        (lambda p: write(p / "a.tsv", b"id\ttext\n1\tone\ttwo\n"), "line 2 of '.*' has 3 columns"),
        (
            lambda p: write(p / "a.jsonl", b'{"text": "a"}\n' + b"[" * 100_000 + b"\n"),
            "line 2 of '.*' is nested too deeply",
        ),
        (
            lambda p: write(p / "a.jsonl", b'{"text": "a", "id": ' + b"1" * 5000 + b"}"),
            "line 1 of '.*' is not JSON .Exceeds the limit",
        ),
        (lambda p: write(p / "a.txt", "no mark".encode("utf-16-le")), "is not text .it holds zero bytes"),
        (lambda p: write(p / "a.bin", bytes(range(256))).parent / "*.bin", "no text in .*a.bin' is not text"),
        (lambda p: p / "*.txt", "no data matches"),
        (lambda p: "/dev/null", "is a pipe or a device"),
    ],
)
def test_bad_data_is_told_in_one_sentence(make, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        documents(open_source(make(tmp_path)))
    assert "\n" not in str(caught.value)
