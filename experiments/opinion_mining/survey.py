"""CommunityLM's released lines under our scorers and tests, beside the authors' stances and the survey."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.grid import code_digest
from experiments.opinion_mining.communitylm import (
    PROMPTS,
    Community,
    leads,
    load_communitylm,
    party_accuracy,
    stances,
)
from experiments.opinion_mining.scorers import classify_with, lexicon, trained_scorer
from jaxllm.kept_result import kept_result


def survey_cell(config, out: Path) -> dict[str, Any]:
    """Return accuracies, correlations and reported leads, by scorer: "authors", "lexicon", "classifier"."""
    settings = dict(
        lines=config.lines,
        classified=config.classified_lines,
        steps=config.classifier_steps,
        level=config.level,
    )
    settings["code_of_parts"] = code_digest("opinion_mining/s*.py", "opinion_mining/communitylm.py")
    return kept_result(out / "cells" / "communitylm.json", lambda: _survey(config, out), **settings)


def _survey(config, out: Path) -> dict[str, Any]:
    community = load_communitylm(config.lines)
    found: dict[str, Any] = {"authors": measured(community, community.authors_PRQK, config.level)}
    words = lexicon()
    ours = stances(community, words.classify)
    found["lexicon"] = measured(community, ours, config.level) | like_authors(community, ours)
    alone = stances(community, words.classify, whole_line=False)
    found["lexicon, continuation"] = measured(community, alone, config.level) | like_authors(community, alone)
    if config.classified_lines:
        labeller, errors = trained_scorer(config.classifier_steps, out / "scorer")
        some = load_communitylm(config.classified_lines)
        theirs = stances(some, classify_with(labeller))
        found["classifier"] = measured(some, theirs, config.level) | like_authors(some, theirs)
        found["classifier"]["accuracy_of_labels"] = float(np.trace(errors) / errors.sum())
    # The lines kept are 6 % of those behind the authors' stances: so far from 1 does drawing alone bring it.
    found["lines"] = {"lexicon": config.lines, "classifier": config.classified_lines, "authors": 1000}
    return found


def measured(community: Community, stance_PRQK: np.ndarray, level: float) -> dict[str, Any]:
    """Return a scorer's accuracies by run and prompt, rank correlation with the survey, and its leads."""
    from scipy.stats import spearmanr

    accuracy_RQ = party_accuracy(community, stance_PRQK)
    best = PROMPTS - 1  # "X is the", which the authors name best
    ranks = [
        spearmanr(stance_PRQK[p, :, best].mean(axis=0), community.gold_PK[p]).statistic for p in range(2)
    ]
    gap = stance_PRQK[1, :, best].mean(axis=0) - stance_PRQK[0, :, best].mean(axis=0)
    gold_gap = community.gold_PK[1] - community.gold_PK[0]
    return {
        "accuracy": accuracy_RQ.tolist(), "rank_correlation": ranks,
        "gap_correlation": float(np.corrcoef(gap, gold_gap)[0, 1]),
        "gap": gap.tolist(), "gold_gap": gold_gap.tolist(),
        "leads": leads(community, stance_PRQK, best, level),
    }  # fmt: skip


def like_authors(community: Community, stance_PRQK: np.ndarray) -> dict[str, float]:
    """Return how stances correlate with the authors', cell by cell and averaged over runs."""
    theirs = community.authors_PRQK
    pairs = {"cells": (stance_PRQK, theirs), "targets": (stance_PRQK.mean(axis=1), theirs.mean(axis=1))}
    same = np.sign(stance_PRQK[1] - stance_PRQK[0]) == np.sign(theirs[1] - theirs[0])
    found = {
        f"correlation/{k}": float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for k, (a, b) in pairs.items()
    }
    return found | {"same_lead": float(same.mean())}
