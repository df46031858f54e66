"""CommunityLM's released generations: two parties' GPT-2s, their stances, and the survey they are judged by.

Jiang et al., COLING 2022: 30 targets, 4 prompts, 5 runs of each party's model. JAXLLM_DATA holds the survey's
means, the authors' stances from 1,000 lines a cell, and the first 60 of those lines. The lines are
machine-made statements about real people: nothing here prints them.
"""

import csv
import lzma
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.shared.real_data import data_folder
from jaxllm.errors import UserError
from jaxllm.measures import benjamini_hochberg, refit_test, sample_test

PARTIES = "dem", "repub"
RUNS, PROMPTS = 5, 4
_POINTS = np.array([0.0, 50.0, 100.0])  # of a negative, neutral and positive line
_LINES = 1000  # behind each of the authors' stances


@dataclass(frozen=True, eq=False)
class Community:
    """Gold, the authors' stances and the lines that are here."""

    targets: list[str]  # K ids
    gold_PK: np.ndarray  # mean feeling of each party's respondents, 0 to 100
    authors_PRQK: np.ndarray  # stance by party, run, prompt and target, 0 to 100
    lines_PRQK: list[list[list[list[list[str]]]]]  # texts of each cell
    prompts_QK: list[list[str]]

    @property
    def republican_leads_K(self) -> np.ndarray:
        """Whether Republicans feel warmer."""
        return self.gold_PK[1] > self.gold_PK[0]


def load_communitylm(lines: int) -> Community:
    """Read the released files.

    Args:
      lines: texts of each cell, 60 at most.
    """
    folder = data_folder("opinion_mining", "communitylm")
    with open(folder / "anes2020_pilot_prompt_probing.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    targets = [row["pid"] for row in rows]
    place = {target: k for k, target in enumerate(targets)}
    authors = np.full((2, RUNS, PROMPTS, len(targets)), np.nan)
    for p, party in enumerate(PARTIES):
        with open(folder / f"finetuned_gpt2_2019_{party}.stance.csv", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                at = int(row["run"][-1]) - 1, int(row["prompt_format"][-1]) - 1, place[row["question"]]
                authors[(p, *at)] = float(row["group_sentiment"])
    texts = [[[[[] for _ in targets] for _ in range(PROMPTS)] for _ in range(RUNS)] for _ in PARTIES]
    with lzma.open(folder / "generations_60.tsv.xz", "rt", encoding="utf-8") as stream:
        next(stream)
        for row in stream:
            party, run, prompt, target, text = row.rstrip("\n").split("\t", 4)
            cell = texts[PARTIES.index(party)][int(run) - 1][int(prompt) - 1][place[target]]
            if len(cell) < lines:
                cell.append(text)
    if np.isnan(authors).any():
        raise UserError(f"{folder} lacks stances of some run, prompt or target; take the files whole")
    gold = np.array([[float(row[name]) for row in rows] for name in ("Democrat", "Republican")])
    prompts = [[row[f"Prompt{q + 1}"] for row in rows] for q in range(PROMPTS)]
    return Community(targets, gold, authors, texts, prompts)


def stances(
    community: Community, classify: Callable[[Sequence[str]], np.ndarray], *, whole_line: bool = True
) -> np.ndarray:
    """Return our stance of each cell, 0 to 100, [2, RUNS, PROMPTS, K].

    Args:
      community: the lines.
      classify: texts to classes 0 (negative), 1, 2, [N].
      whole_line: score prompt and continuation, as the authors do; False: the continuation alone.
    """
    texts, cells = [], []
    for p, q, r, k in np.ndindex(2, PROMPTS, RUNS, len(community.targets)):
        prompt = community.prompts_QK[q][k]
        for line in community.lines_PRQK[p][r][q][k]:
            texts.append(line if whole_line else line.removeprefix(prompt))
            cells.append((p, r, q, k))
    classes = np.asarray(classify(texts))
    total, count = np.zeros((2, *community.authors_PRQK.shape))
    at = tuple(np.array(cells).T)
    np.add.at(total, at, _POINTS[classes])
    np.add.at(count, at, 1)
    if (count == 0).any():
        raise UserError("a cell of CommunityLM has no line; take the files whole")
    return total / count


def party_accuracy(community: Community, stance_PRQK: np.ndarray) -> np.ndarray:
    """Return the share of targets whose warmer party is right, [RUNS, PROMPTS]."""
    said = stance_PRQK[1] > stance_PRQK[0]
    return (said == community.republican_leads_K).mean(axis=-1)


def leads(community: Community, stance_PRQK: np.ndarray, prompt: int, level: float) -> dict[str, float]:
    """Return how many leads of a party two tests report, and which share of those the survey confirms.

    Models as replicates, five a party with other seeds on one corpus, which says that these models differ,
    not that the parties do; and lines as replicates.
    """
    share_PRK = stance_PRQK[:, :, prompt] / 100
    found = {}
    gold = np.where(community.republican_leads_K, 1, -1)
    for name in ("models", "lines"):
        tests = []
        for k in range(len(community.targets)):
            one, other = share_PRK[1, :, k], share_PRK[0, :, k]
            if name == "models":
                tests.append(refit_test(one, other, bootstrap=False))
            else:
                counts = [int(round(x.sum() * _LINES)) for x in (one, other)]
                tests.append(sample_test(counts, (RUNS * _LINES,) * 2))
        reported = benjamini_hochberg([test.p_value for test in tests]) < level
        right = np.sign([test.h for test in tests]) == gold
        found[f"{name}/reported"] = int(reported.sum())
        found[f"{name}/right"] = float(right[reported].mean()) if reported.any() else float("nan")
    return found
