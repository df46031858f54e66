"""What opinion mining came to: metrics, claims, tables."""

from typing import Any

import numpy as np

from experiments.grid import mean_interval
from experiments.opinion_mining.measures import WAYS, exact_interval
from jaxllm.report import Claim, decide, markdown_table

_PAPER, _SPEC = "arXiv 2307.13173, abstract", "control"
_LEADS = ("authors", "lexicon", "lexicon, continuation", "classifier")


def summary(found: dict[str, Any]) -> dict[str, float]:
    """Return the figures of every part by name."""
    metrics: dict[str, float] = {}
    if "learning" in found:
        for arm, one in found["learning"].items():
            if arm == "untuned":
                metrics["untuned/no_opinion"] = float(np.mean(one["no_opinion"]))
                continue
            metrics[f"{arm}/stop"] = one["stop"]
            for name, values in one["stopped"].items():
                if not name.endswith("rho"):
                    metrics[f"{arm}/{name}"] = float(np.mean(values))
        for setting, one in found["decoding"].items():
            if setting == "samples":
                metrics["sampling/largest_difference_from_exact"] = one["largest_difference"]
            else:
                metrics[f"decoding/{setting}/slope"] = float(np.mean(one["seen/slope"]))
        for way, errors in found["counting"]["errors"].items():
            for name, at in (("frequent", 0), ("rare", -4), ("unseen", -1)):
                metrics[f"counting/{way}/{name}_mae"] = float(np.mean(errors, axis=0)[at])
        for name, values in found["scorer_error"].items():
            metrics[f"scorer/{name}_bias"] = float(np.mean(values))
    for name in ("pairs", "null_pairs"):
        metrics |= {f"{name}/{key}": value for key, value in found.get(name, {}).items()}
    for scorer, one in found.get("communitylm", {}).items():
        if scorer == "lines":
            continue
        for prompt, accuracy in enumerate(np.mean(one["accuracy"], axis=0), start=1):
            metrics[f"communitylm/{scorer}/accuracy_prompt_{prompt}"] = float(accuracy)
        metrics |= {f"communitylm/{scorer}/{k}": v for k, v in one.items() if isinstance(v, float)}
        metrics |= {f"communitylm/{scorer}/leads/{k}": v for k, v in one["leads"].items()}
    for corpus in ("reviews", "addresses"):
        for label in ("populations", "halves"):
            one = found.get(corpus, {}).get(label)
            if one:
                metrics |= {f"{corpus}/{label}/reported_by/{k}": v for k, v in one["reported"].items()}
                metrics[f"{corpus}/{label}/reported_by/counting"] = one["counted"]["reported"]
        if corpus in found:
            metrics[f"{corpus}/untuned/positive_share"] = found[corpus]["untuned_rho"]
        for name, share in found.get(corpus, {}).get("neutral", {}).items():
            metrics[f"{corpus}/{name}/without_opinion"] = share
        for name, rate in found.get(corpus, {}).get("copy_rate", {}).items():
            metrics[f"{corpus}/{name}/copy_rate"] = rate
    return metrics


def judge(config, found: dict[str, Any]) -> list[Claim]:
    """Return the claims of the parts that were run."""
    claims: list[Claim] = []
    if "learning" in found:
        claims += _learned(found["learning"]) + _decoded(found["decoding"]) + _counted(found)
    if "pairs" in found:
        claims += _discoveries(config, found)
    if "communitylm" in found:
        claims += _survey(found["communitylm"])
    for corpus in ("reviews", "addresses"):
        if corpus in found:
            claims += _real(corpus, found[corpus])
    return claims


def _mean_claim(text, source, values, **bounds) -> Claim:
    mean, interval = mean_interval(values)
    return Claim(text, source, measured=mean, interval=interval, holds=decide(interval, **bounds))


def _learned(learning) -> list[Claim]:
    tuned, scratch, adapter = (learning[arm]["stopped"] for arm in ("pretrained", "scratch", "adapter"))
    lost = np.subtract(scratch["held_out/mae"], tuned["held_out/mae"])
    return [
        _mean_claim(
            "opinions are learnt: mean error of the share on members spoken of is below 0.1",
            _PAPER,
            tuned["seen/mae"],
            below=0.1,
        ),
        _mean_claim(
            "they are carried over to members of the class that nobody spoke of: error below 0.1",
            _PAPER,
            tuned["held_out/mae"],
            below=0.1,
        ),
        _mean_claim(
            "the proportion is kept: slope of the share read on the share written, seen, 0.9 to 1.1",
            _PAPER,
            tuned["seen/slope"],
            at_least=0.9,
            at_most=1.1,
        ),
        _mean_claim(
            "the same of members held out", _PAPER, tuned["held_out/slope"], at_least=0.9, at_most=1.1
        ),
        _mean_claim(
            "without pretraining the error on held-out members is larger by more than 0.1",
            _SPEC,
            lost,
            above=0.1,
        ),
        _mean_claim(
            "without pretraining members spoken of are still learnt: error below 0.1",
            _SPEC,
            scratch["seen/mae"],
            below=0.1,
        ),
        _mean_claim(
            "an adapter and the words' table learn them: error on members spoken of below 0.1",
            "design",
            adapter["seen/mae"],
            below=0.1,
        ),
        _mean_claim(
            "an adapter and the words' table carry them over less: held-out error above all weights', by",
            "design",
            np.subtract(adapter["held_out/mae"], tuned["held_out/mae"]),
            above=0,
        ),
    ]


def _decoded(decoding) -> list[Claim]:
    base = np.array(decoding["1, 1"]["seen/slope"]) if "1, 1" in decoding else None
    claims = []
    for setting, said in (
        ("0.7, 1", "temperature 0.7"),
        ("0.5, 1", "temperature 0.5"),
        ("1, 0.8", "top-p 0.8"),
        ("0, 1", "greedy decoding"),
    ):
        if setting in decoding and base is not None:
            more = np.array(decoding[setting]["seen/slope"]) - base
            claims.append(_mean_claim(f"{said} sharpens: the slope rises, by", _SPEC, more, above=0))
    return claims


def _counted(found) -> list[Claim]:
    errors = {way: np.array(values) for way, values in found["counting"]["errors"].items()}
    unseen = errors["counting"][:, -1] - errors["generator"][:, -1]
    rare = errors["counting"][:, -4] - errors["generator"][:, -4]
    known = errors["counting by class"][:, -1] - errors["generator"][:, -1]
    scorer = np.subtract(found["scorer_error"]["raw"], found["scorer_error"]["corrected"])
    return [
        _mean_claim(
            "of unseen targets the generator's error is below counting's, by", _SPEC, unseen, above=0
        ),
        _mean_claim(
            "of the rarest seen target the generator's error is below counting's, by", _SPEC, rare, above=0
        ),
        _mean_claim(
            "of unseen targets it is below that of counting by known classes, by", _SPEC, known, above=0
        ),
        _mean_claim(
            "a confusion matrix estimated from annotated texts takes off the scorer's bias, by",
            _SPEC,
            scorer,
            above=0,
        ),
    ]


def _discoveries(config, found) -> list[Claim]:
    claims, count = [], config.null_pairs
    for way, bounds in (
        ("bootstrapped refits", dict(at_most=config.level)),
        ("samples", dict(above=config.level)),
        ("refits as independent", dict(above=config.level)),
    ):
        wrong = found["null_pairs"][f"seen/{way}/any_false"]
        interval = exact_interval(wrong, count)
        said = "at most" if "at_most" in bounds else "more than"
        claims.append(
            Claim(
                f"of pairs without any difference {said} {config.level:g} report one, replicates: {way}",
                _SPEC,
                measured=wrong / count,
                interval=interval,
                holds=decide(interval, **bounds),
            )
        )
    recall = found["pairs"]["seen/bootstrapped refits/recall"]
    total = config.pairs * config.differing
    interval = exact_interval(round(recall * total), total)
    claims.append(
        Claim(
            "of classes that differ by 0.3, bootstrapped refits report more than half",
            "design",
            measured=recall,
            interval=interval,
            holds=decide(interval, above=0.5),
        )
    )
    return claims


def _survey(found) -> list[Claim]:
    claims = []
    for scorer in _LEADS:
        if scorer not in found:
            continue
        by_run = np.array(found[scorer]["accuracy"])[:, -1]
        # By chance, and what is known without a model: one party for all.
        claims.append(
            _mean_claim(
                f"CommunityLM: {scorer}'s stances name the warmer party, 'X is the', in more than 0.7",
                "Jiang et al. 2022",
                by_run,
                above=0.7,
            )
        )
        if "correlation/targets" in found[scorer]:
            value, K = found[scorer]["correlation/targets"], 240
            half = 1.96 / np.sqrt(K - 3)
            interval = tuple(float(x) for x in np.tanh([np.arctanh(value) - half, np.arctanh(value) + half]))
            claims.append(
                Claim(
                    f"CommunityLM: {scorer}'s stances correlate with the authors' above 0.7, runs averaged",
                    "Jiang et al. 2022",
                    measured=value,
                    interval=interval,
                    holds=decide(interval, above=0.7),
                )
            )
    return claims


def _real(corpus, found) -> list[Claim]:
    claims = []
    rows, counted = found["populations"]["rows"], found["populations"]["counted"]["rows"]
    both = [
        (r["h"], c["h"]) for r, c in zip(rows, counted, strict=True) if min(n for _, n in c["counts"]) >= 10
    ]
    if both:
        same = sum(np.sign(a) == np.sign(b) for a, b in both)
        interval = exact_interval(same, len(both))
        claims.append(
            Claim(
                f"{corpus}: generated opinions lean as counted ones do, in more than half of the classes",
                "arXiv 2307.13173, in kind",
                measured=same / len(both),
                interval=interval,
                holds=decide(interval, above=0.5),
            )
        )
    if "halves" in found:
        reported = found["halves"]["reported"]
        for way, least in (("bootstrapped refits", False), ("samples", True)):
            wrong, total = reported[way], len(found["halves"]["rows"])
            interval = exact_interval(wrong, total)
            said = "more than a tenth" if least else "at most a tenth"
            claims.append(
                Claim(
                    f"{corpus}: of random halves' classes {said} are reported, replicates: {way}",
                    _SPEC,
                    measured=wrong / total,
                    interval=interval,
                    holds=decide(interval, **(dict(above=0.1) if least else dict(at_most=0.1))),
                )
            )
    return claims


def sections(found: dict[str, Any]) -> dict[str, str]:
    """Return the tables that a person reads."""
    made = {}
    if "learning" in found:
        rows = [
            (
                arm,
                step,
                *(
                    f"{np.mean(one[key]):.3f}"
                    for key in ("seen/mae", "held_out/mae", "seen/slope", "held_out/slope")
                ),
                " ".join(f"{x:.2f}" for x in one["held_out/rho"]),
            )
            for arm, each in found["learning"].items()
            if arm != "untuned"
            for step, one in zip(found["steps"], each["curve"], strict=True)
        ]
        head = (
            "arm",
            "steps",
            "seen MAE",
            "held-out MAE",
            "seen slope",
            "held-out slope",
            "held-out share by class",
        )
        made["Learning (classes are .9 .7 .3 .1)"] = markdown_table(head, rows)
        rows = [
            (name, *(f"{np.mean(one[k]):.3f}" for k in ("seen/slope", "seen/mae", "held_out/slope")))
            for name, one in found["decoding"].items()
            if name != "samples"
        ]
        made["Decoding"] = markdown_table(("temperature, top-p", "slope", "MAE", "held-out slope"), rows)
    if "pairs" in found:
        rows = [
            (
                part,
                way,
                f"{found['pairs'][f'{part}/{way}/recall']:.2f}",
                f"{found['pairs'][f'{part}/{way}/false_share']:.2f}",
                f"{found['null_pairs'][f'{part}/{way}/any_false']}",
            )
            for part in ("seen", "held_out")
            for way in WAYS
        ]
        head = "members", "replicates", "recall", "false share", "null pairs with a false insight"
        made["Two populations"] = markdown_table(head, rows)
    if "communitylm" in found:
        rows = [
            (
                scorer,
                *(f"{x:.3f}" for x in np.mean(one["accuracy"], axis=0)),
                *(f"{x:.2f}" for x in one["rank_correlation"]),
                f"{one.get('correlation/cells', 1):.2f}",
                f"{one['leads']['models/reported']} ({one['leads']['models/right']:.2f})",
                f"{one['leads']['lines/reported']} ({one['leads']['lines/right']:.2f})",
            )
            for scorer, one in found["communitylm"].items()
            if scorer != "lines"
        ]
        head = (
            "scorer",
            "X",
            "X is",
            "X is a",
            "X is the",
            "rank, Democrats",
            "rank, Republicans",
            "with authors' cells",
            "leads by models (right)",
            "leads by lines (right)",
        )
        made["CommunityLM: party accuracy by prompt"] = markdown_table(head, rows)
    for corpus in ("reviews", "addresses"):
        if corpus in found:
            made[f"Insights: {corpus}"] = _insights(found[corpus])
    return made


def _insights(found) -> str:
    counted = {row["class"]: row for row in found["populations"]["counted"]["rows"]}
    lines = [
        f"Base {found['base']}, {found['refits']} refits of a population; generated text is machine-made."
    ]
    for one in found["insights"]:
        of_counts = " and ".join(f"{a} of {n}" for a, n in counted[one["class"]]["counts"])
        low, high = one["interval"]
        lines.append(
            f"- **{one['leads']}** speak more favourably of *{one['class']}*: {one['rho'][0]:.0%} and "
            f"{one['rho'][1]:.0%} "
            f"positive, h = {one['h']:.2f} ({low:.2f} to {high:.2f}), q = {one['q']:.2f}; counted: "
            f"{of_counts}."
        )
        lines += [f"  - generated: {text.strip()}" for text in one["generated"]]
        lines += [f"  - real: {text.strip()}" for text in one["retrieved"]]
    return "\n".join(lines)
