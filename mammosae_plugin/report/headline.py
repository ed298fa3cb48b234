"""The five sentences of a report's first page, each with its number, its interval and what chance gives."""

__all__ = ["headline"]

import math

from mammosae_plugin.report.summary import Finding, Group, findings
from mammosae_plugin.report.views import names_of_pair
from mammosae_plugin.schema.names import counted, readable
from mammosae_plugin.schema.names_of_latents import told_score
from mammosae_plugin.schema.results import Results, Row, has_boxes, number
from mammosae_plugin.visualization.example import leading_pair
from mammosae_plugin.visualization.lesions import best_of
from mammosae_plugin.visualization.tables import Estimate, estimate


def headline(results: Results, n_test: str) -> list[str]:
    """Five sentences on the classifier that tells its finding best: how well, through the SAE, by few latents alone,
    without them, and whether a latent fires where the finding is.

    Args:
        results: what was found at a layer.
        n_test: how much stands behind the numbers, in words.

    Returns:
        The sentences; none where no classifier has an AUROC.
    """
    pair = leading_pair(results)
    found = findings(results)
    leading = next((f for f in found if (f.model, f.concept) == pair), None)
    if leading is None:
        return []
    return [
        _classifier(leading, len(found), n_test),
        _through_the_sae(leading),
        _kept(leading.kept, results.get("n_controls") == 1),
        _without(leading.off, results.get("n_controls") == 1),
        _where(results, leading),
    ]


def _classifier(found: Finding, n: int, n_test: str) -> str:
    which = f", the highest of {n} classifiers and chosen by that" if n > 1 else ""
    low = found.without.low
    chance = "0.5 is guessing" if low > 0.5 else "not surely better than guessing, 0.5"
    return (
        f"The classifier “{found.name}” tells who has the finding with an AUROC of {_said(found.without)} "
        f"({chance}){which}; {n_test}."
    )


def _through_the_sae(found: Finding) -> str:
    change = found.difference
    if not math.isfinite(change.value):
        return "What the SAE costs it was not measured."
    if not math.isfinite(change.low):
        verdict = "no interval says whether that is more than chance"
    elif change.low <= 0 <= change.high:
        verdict = "an interval that holds 0: no cost can be told"
    else:
        verdict = "it does worse" if change.value < 0 else "it does no worse"
    return f"Seen through the SAE its AUROC is {found.with_sae.point}, a change of {_said(change)}: {verdict}."


def _kept(group: Group | None, one_control: bool) -> str:
    if group is None:
        return "How few latents are enough was not measured."
    beaten = group.auroc.value > group.random.high
    return (
        f"With the {counted(group.k, 'best latent')} of each class alone ({group.n_latents} in all) its AUROC is "
        f"{_said(group.auroc)}, with as many random ones {_random(group.random)}: "
        f"{_verdict(group, beaten, 'more than', one_control)}."
    )


def _without(group: Group | None, one_control: bool) -> str:
    if group is None:
        return "What it is without them was not measured."
    beaten = group.auroc.value < group.random.low
    return (
        f"Without the {counted(group.k, 'best latent')} of each class it is {_said(group.auroc)}, without as many "
        f"random ones {_random(group.random)}: {_verdict(group, beaten, 'lower than without', one_control)}."
    )


def _verdict(group: Group, beaten: bool, words: str, one_control: bool) -> str:
    if not math.isfinite(group.random.low):
        return "no random group stands beside it, so nothing follows for these latents"
    if not beaten:
        which = "the one random group is" if one_control else "random groups are"
        return f"{which} not beaten, so nothing follows for these latents"
    return f"{words} {'the one random group, a weak control' if one_control else 'any random group'}"


def _where(results: Results, found: Finding) -> str:
    own = [r for r in results.get("lesions", []) if (r["model"], r["concept"]) == (found.model, found.concept)]
    best = best_of(own, "latent")
    if best is not None:
        return _lesions(results, found, own, best)
    if found.best is not None:
        precision = number(found.best["average_precision"])
        return (
            f"{_named(results, found, int(found.best['latent']))} marks the annotated boxes best of those that were "
            f"looked at, with an average precision of {precision:.3f}; it was chosen on the same "
            f"{found.best['n_images']:,} images and has no interval, so nothing is claimed of it."
        )
    if has_boxes(results):
        return "No latent’s map marks an annotated box, or none was compared: where latents fire is not told."
    return "No test image has a box around the finding: where latents fire cannot be told."


def _lesions(results: Results, found: Finding, own: list[Row], best: Row) -> str:
    cpm = estimate(best, "all_cpm")
    chance, p = number(best["all_cpm_chance"]), number(best["p_adjusted"])
    n = sum(row["method"] == "latent" for row in own)
    sure = math.isfinite(cpm.low) and cpm.low > chance and p <= 0.05
    verdict = "more than chance, if flattered by the choice" if sure else "no more than chance, as far as can be told"
    return (
        f"{_named(results, found, int(best['latent']))} finds most of the {best['n_lesions']:,} lesions among {n}: "
        f"a mean sensitivity (CPM) of {_said(cpm)}, {chance:.3f} by chance: {verdict}."
    )


def _named(results: Results, found: Finding, latent: int) -> str:
    name = names_of_pair(results, found.model, found.concept).get(latent)
    return f"Latent {latent}" + (f" (“{readable(str(name['name']))}”, {told_score(name)})" if name else "")


def _random(groups: Estimate) -> str:
    if not math.isfinite(groups.low):
        return "not known"
    spread = f" ({groups.low:.3f} to {groups.high:.3f})" if groups.low < groups.high else ""
    return f"{groups.value:.3f}{spread}"


def _said(told: Estimate) -> str:
    return str(told) if told.interval else f"{told.point} (no interval)"
