"""Examples: prompt and completion, or messages; what of them is predicted, and how rows hold them whole."""

import itertools
import json

import numpy as np
import pytest

from jaxllm import data
from jaxllm.data.companions import Companions
from jaxllm.data.examples import Completion, Conversation
from jaxllm.data.packing import pack
from jaxllm.data.sources import open_source
from jaxllm.errors import UserError

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# With BOS, a mark of what the assistant says, a loop control, a filter, and no end of a turn but white space.
PLAIN = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'note' %}{% continue %}{% endif %}"
    "{{ m.role | upper }}: {% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}\n"
    "{% endgeneration %}{% else %}{{ m.content | tojson }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
TALK = [
    {"role": "user", "content": "Hi <é>"},
    {"role": "assistant", "content": "Yes? 日本"},
    {"role": "note", "content": "nothing"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Good bye."},
]


def chat_tokenizer(template=CHATML, choices="", **config):
    """Bytes as ids after four special tokens, and " A" if A is of `choices`; BOS is known, not asked for."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = [f"Ġ{letter}" for letter in choices]
    vocab = {t: i for i, t in enumerate([*special, *letters, *merged])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", letter) for letter in choices]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    config = {"eos_token": "<|im_end|>", "bos_token": "<s>", "chat_template": template} | config
    return data.bpe.from_json(backend.to_str(), "chat", Companions(config))


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def completions(count=12):
    return [{"prompt": f"{i}+{i}=", "completion": f" {2 * i}" + "!" * (i % 5)} for i in range(count)]


@pytest.mark.parametrize("template, ends", [(CHATML, ["<|im_end|>"]), (PLAIN, ["\n", "\n"])])
def test_the_assistants_turns_are_predicted_each_to_its_end(template, ends):
    tokenizer = chat_tokenizer(template)
    chat = Conversation(data.chat_template(tokenizer).render(TALK))
    ids, predicted = chat.encode(tokenizer)
    runs = [list(run) for yes, run in itertools.groupby(range(len(ids)), predicted.__getitem__) if yes]
    end = ends[0]
    said = [f"Yes? 日本{end}", f"Good bye.{end}" + ("<|endoftext|>" if template == PLAIN else "")]
    assert [tokenizer.decode(ids[run]) for run in runs] == said
    assert tokenizer.decode(ids) == chat.text + "<|endoftext|>"


@pytest.mark.parametrize("source, column", [("rows.jsonl", None), ("rows.csv", None), ("rows.tsv", None)])
def test_completions_follow_the_prompt_that_generation_would_read(source, column, tmp_path):
    rows = completions(3)
    if source.endswith("jsonl"):
        write_rows(tmp_path / source, rows)
    else:
        mark = "\t" if source.endswith("tsv") else ","
        lines = [["completion", "prompt"], *([row["completion"], row["prompt"]] for row in rows)]
        (tmp_path / source).write_text("".join(mark.join(line) + "\n" for line in lines))
    opened = open_source(tmp_path / source, column)
    assert opened.kind == "prompt and completion"
    pieces = list(opened.pieces())
    assert [piece.example for piece in pieces] == [Completion(**row) for row in rows]
    assert [piece.text for piece in pieces] == ["0+0= 0", "1+1= 2!", "2+2= 4!!"]
    if source.endswith("jsonl"):
        assert open_source(tmp_path / source, "prompt").kind == "text"


def test_a_json_file_is_rows_where_it_lists_objects_with_their_columns(tmp_path):
    path, rows = tmp_path / "rows.json", completions(3)
    path.write_text(json.dumps(rows, indent=2))
    assert [piece.example for piece in open_source(path).pieces()] == [Completion(**row) for row in rows]
    assert [piece.text for piece in open_source(path, "prompt").pieces()] == ["0+0=", "1+1=", "2+2="]
    path.write_text(json.dumps([{"text": "one"}, {"text": "two"}]))
    assert [piece.text for piece in open_source(path).pieces()] == ["one", "two"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))  # lines, as in .jsonl
    assert [piece.example for piece in open_source(path).pieces()] == [Completion(**row) for row in rows]
    for text in ('[{"name": "a"}]', '{"text": "one"}', "[1, 2]", "[]", "[{", '{"name": 1}\n{"name": 2}'):
        path.write_text(text)
        assert [piece.text for piece in open_source(path).pieces()] == [text]
    for text, said in (
        ('[{"text": "one"}, {"text"', "rows.json' is not JSON .*; expected one object a line"),
        ('[{"text": "one"}, 2]', "object 2 of .*rows.json' is a JSON int"),
        ('[{"prompt": "a", "completion": "b"}, {"prompt": "c"}]', "object 2 of .* has no 'completion'"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            list(open_source(path).pieces())


def test_broken_lines_of_jsonl_are_counted_and_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n{"text": \n\n{"text": "two"}\nthree\n{"text"}\n')
    with pytest.raises(UserError, match=r"line 2 of .*one object a line \(2 more broken: line 5, 6\)"):
        list(open_source(path).pieces())


def test_a_word_that_the_tokenizer_would_join_across_the_boundary_is_cut_there(tmp_path):
    tokenizer = data.load_tokenizer("gpt2")
    joined = Completion("12", "34 is a number").encode(tokenizer)
    assert tokenizer.decode(joined.ids_N[~joined.predicted_N]) == "12"
    assert tokenizer.decode(joined.ids_N[joined.predicted_N]) == "34 is a number<|endoftext|>"
    free = Completion("", "34").encode(tokenizer)
    assert free.ids_N[0] == tokenizer.eos_id and free.predicted_N.tolist() == [False, True, True]


@pytest.mark.parametrize("packed", [True, False])
def test_rows_hold_every_example_whole_and_count_what_is_predicted(packed, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", completions(40))
    corpus = data.prepare(path, "bytes", seq_len=20)
    tokens = corpus.train
    options = dict(batch_size=3, seq_len=20, packed=packed)
    seen = []
    for batch in data.eval_batches(tokens, **options):
        for ids, targets, segments, mask in zip(
            *(batch[name] for name in ("tokens", "targets", "segment_ids", "mask")), strict=True
        ):
            for segment in np.unique(segments[mask > 0]):
                inside = np.flatnonzero(segments == segment)
                whole = np.append(ids[inside], targets[inside[-1]])
                whole = whole[: np.flatnonzero(whole == 256)[0] + 1]  # a last row's end may lie past it
                said = targets[inside][mask[inside] > 0]
                prompt, completion = (bytes(x[x < 256].tolist()).decode() for x in (whole, said))
                seen.append((prompt.removesuffix(completion), completion))
                assert said[-1] == 256 and packed | (segment == 0)
    wanted = [(row["prompt"], row["completion"]) for row in completions(40)]
    kept = [bytes(tokens.document(i)[:-1].tolist()).decode() for i in range(tokens.num_documents)]
    assert sorted(seen) == sorted(pair for pair in wanted if "".join(pair) in kept)
    assert tokens.num_predicted == sum(len(c) + 1 for _, c in seen)
    assert tokens.num_bytes == sum(len(c) for _, c in seen)

    iterator = data.batches(tokens, seed=0, **options)
    first = [next(iterator) for _ in range(4)]
    again = data.batches(tokens, seed=0, **options)
    again.restore(dict(iterator.state(), step=3))
    for name, value in next(again).items():
        np.testing.assert_array_equal(value, first[3][name])


def test_packing_leaves_few_places_empty_and_splits_nothing():
    lengths = np.append(np.random.default_rng(0).integers(1, 35, 500), [50, 51, 70])
    packing = pack(lengths, room=50)
    fits = np.flatnonzero(lengths <= 50)
    assert sorted(packing.order.tolist()) == fits.tolist()
    used = [lengths[packing.row(r)].sum() for r in range(len(packing))]
    assert max(used) <= 50 and min(used) > 0
    assert len(packing) <= 1.03 * -(-lengths[fits].sum() // 50)
    assert [packing.row(r).size for r in (len(packing), len(packing) + 7)] == [0, 0]
    alone = pack(lengths, room=50, packed=False)
    assert alone.order.tolist() == fits.tolist() and len(alone) == len(fits)


def test_what_decides_the_ids_is_in_the_key_of_the_cache(tmp_path):
    path = write_rows(tmp_path / "talk.jsonl", [{"messages": TALK}, {"messages": TALK[:2]}])
    one, other = (data.prepare(path, chat_tokenizer(t), seq_len=200) for t in (CHATML, PLAIN))
    assert len(one.train) != len(other.train)
    again = data.prepare(path, chat_tokenizer(CHATML), seq_len=200)
    assert again.train.fingerprint == one.train.fingerprint
    flipped = data.Tokens(one.train.ids, one.train.starts, 1, predicted=~one.train.predicted)
    assert flipped.fingerprint != one.train.fingerprint


def test_examples_that_are_too_long_are_counted_and_can_be_left_out(tmp_path):
    rows = [*completions(30), {"prompt": "long " * 9, "completion": "yes"}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    said = "1 of 31 examples .* longer than seq_len 20 .the first is number 31, of 48 tokens.; raise"
    with pytest.raises(UserError, match=said):
        data.prepare(path, "bytes", seq_len=20)
    corpus = data.prepare(path, "bytes", seq_len=20, long_examples="skip")
    splits = corpus.train, corpus.valid
    batches = [b for s in splits for b in data.eval_batches(s, batch_size=1, seq_len=20)]
    assert not any(b"long" in bytes(row[row < 256].tolist()) for b in batches for row in b["tokens"])
    with pytest.raises(UserError, match="all .* examples are longer than seq_len 2"):
        next(data.batches(corpus.train, batch_size=1, seq_len=2, seed=0))


def messages(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


BAD = {
    "empty completion": ([{"prompt": "a", "completion": " "}], "line 1 of .* has an empty completion"),
    "number": ([{"prompt": "a", "completion": 7}], "has 7 in the column 'completion'; expected a string"),
    "no answer": ([messages(("user", "a"))], "line 1 of .* has no turn of the assistant"),
    "human": ([messages(("human", "a"), ("gpt", "b"))], "line 1 of .* role 'human', .* call it 'user'"),
    "bot": ([messages(("user", "a"), ("Bot", "b"))], "the role 'Bot', .* call it 'assistant'"),
    "capital": ([messages(("user", "a"), ("Assistant", "b"))], "'Assistant', .* call it 'assistant'"),
    "empty answer": ([messages(("user", "a"), ("assistant", ""))], "has an empty turn of the assistant"),
    "no messages": ([{"messages": "Hi"}], "has 'Hi' in the column 'messages'; expected a list of objects"),
    "no role": ([{"messages": [{"content": "a"}]}], "expected a list of objects with the texts 'role'"),
    "other rows": ([messages(("user", "a"), ("assistant", "b")), {"text": "a"}], "line 2 .* no column 'm"),
    "no completion": (
        [*completions(8), {"prompt": "a"}], "line 9 of .* has no 'completion', .* needs both 'prompt' and"),
    "not prompts": ([*completions(8), {"text": "a"}], "line 9 of .* has no 'prompt'"),
    "one example": ([{"prompt": "a", "completion": "b"}], "holds one example, and one is kept"),
    "near": ([{"prompt": "a", "response": "b"}], "examples: the columns prompt and completion, or messages"),
    "refused": ([messages(("bad", "a"), ("assistant", "b"))] * 2, "line 1 of .*: the chat template.*No"),
    "rewritten": ([messages(("odd", "a"), ("assistant", "b"), ("user", "c"))] * 2, "writes turn 2 of a conv"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_examples_are_told_in_one_sentence(case, tmp_path):
    rows, said = BAD[case]
    template = (
        "{% if messages[0].role == 'bad' %}{{ raise_exception('No such role') }}{% endif %}"
        "{% if messages[0].role == 'odd' %}{{ messages | length }}{% endif %}" + CHATML
    )
    with pytest.raises(UserError, match=said) as caught:
        data.prepare(write_rows(tmp_path / "a.jsonl", rows), chat_tokenizer(template), seq_len=8)
    assert "\n" not in str(caught.value)


def test_messages_need_a_template_and_files_of_one_kind(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"messages": TALK}] * 2)
    for tokenizer in ("bytes", "bpe:300", chat_tokenizer(None)):
        with pytest.raises(UserError, match="a.jsonl' holds messages, and the tokenizer.* no chat template"):
            data.prepare(path, tokenizer, seq_len=8)
    (tmp_path / "b.txt").write_text("text")
    with pytest.raises(UserError, match="holds messages .in .*a.jsonl.. and text .in .*b.txt"):
        open_source(tmp_path)


def test_a_damaged_or_hostile_template_is_one_sentence():
    for source, said in (
        ("{% if %}", "cannot write"),
        ("{{ x.y.z }}", "undefined"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for i in range(999999999) %}{% endfor %}", "Range"),
    ):
        with pytest.raises(UserError, match=said):
            data.ChatTemplate(source).prompt(TALK)


def test_a_local_dataset_is_read_through_the_datasets_library(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    (tmp_path / "set").mkdir()
    for split, count in (("train", 12), ("test", 5)):
        write_rows(tmp_path / "set" / f"{split}.jsonl", completions(count))
    folder = f"hf:{tmp_path / 'set'}"
    for spec, count in ((folder, 12), (f"{folder}/test", 5)):
        opened = open_source(spec)
        pieces = [piece.example for piece in opened.pieces()]
        assert opened.kind == "prompt and completion"
        assert pieces == [Completion(**row) for row in completions(count)]
    assert [p.text for p in open_source(folder, "prompt").pieces()] == [f"{i}+{i}=" for i in range(12)]
    saved = datasets.Dataset.from_list([{"messages": TALK}, {"messages": TALK[:2]}])
    saved.save_to_disk(tmp_path / "saved")
    corpus = data.prepare(f"hf:{tmp_path / 'saved'}", chat_tokenizer(), seq_len=200)
    assert corpus.kind == "messages" and corpus.train.num_documents == corpus.valid.num_documents == 1
    for spec, said in (
        (f"{folder}/valid", "cannot open .* the datasets library says"),
        (f"hf:{tmp_path / 'saved'}/test", "unknown split"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            open_source(spec)
        assert "\n" not in str(caught.value)


@pytest.mark.torch
@pytest.mark.parametrize("template", [CHATML, PLAIN])
def test_templates_write_what_transformers_write(template):
    transformers = pytest.importorskip("transformers")
    tokenizer = chat_tokenizer(template)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend, eos_token="<|im_end|>", bos_token="<s>", chat_template=template
    )
    ours = data.chat_template(tokenizer)
    assert ours.render(TALK).text == theirs.apply_chat_template(TALK, tokenize=False)
    prompt = theirs.apply_chat_template(TALK[:1], tokenize=False, add_generation_prompt=True)
    assert ours.prompt(TALK[:1]) == prompt
    ids, predicted = Conversation(ours.render(TALK)).encode(tokenizer)
    is_marked = "{% generation" in template
    marked = theirs.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=is_marked)
    assert ids[:-1].tolist() == marked["input_ids"]
    if is_marked:
        assert predicted[:-1].astype(int).tolist() == marked["assistant_masks"]
