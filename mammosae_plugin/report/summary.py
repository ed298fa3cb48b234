"""What a study found, in numbers and in sentences made from those numbers."""

__all__ = [
    "baselines_summary",
    "Finding",
    "findings",
    "Group",
    "layers_summary",
    "lesions_summary",
    "RESTORED",
    "summary",
    "warnings",
]

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mammosae_plugin.measures.units import EvaluationUnit
from mammosae_plugin.schema.names import MINUS, ends, readable
from mammosae_plugin.schema.results import (
    NEAR_ZERO,
    WEAK,
    Results,
    Row,
    best_row,
    layer_names,
    n_best,
    number,
    pairs,
    reconstruction_row,
    recovered,
    run_patients,
    sae_flaw,
    sweep_reference,
)
from mammosae_plugin.visualization.lesions import best_of
from mammosae_plugin.visualization.tables import Estimate, estimate

RESTORED = 0.95  # share of the AUROC above chance at which a group counts as restoring the model

_EXPLAINS_LESS = "so the choice of latents explains less there."
_Known = dict[tuple[str, str], dict[str, Row]]  # rows of `layers` by (model, concept) and layer


@dataclass(frozen=True)
class Group:
    """One row of a sweep: AUROC with a group of latents kept or silenced, beside random groups.

    Attributes:
        k: latents per class.
        n_latents: latents in the group (the union over classes).
        auroc: with its interval over patients.
        random: AUROC of random groups of as many live latents: mean, smallest, largest.
        mass: AUROC of random groups of the same activation: mean, smallest, largest.
    """

    k: int
    n_latents: int
    auroc: Estimate
    random: Estimate
    mass: Estimate


@dataclass(frozen=True)
class Finding:
    """The main numbers of one model and concept; NaN or None where the study has none.

    Attributes:
        model: the model's name.
        concept: the concept.
        without: AUROC of the unmodified model.
        with_sae: AUROC with the SAE spliced in.
        difference: with minus without, paired interval.
        recovered_by_best: share of the AUROC above chance left when only the best latents per class are kept, as many
            as the study looks at (`analysis.top`).
        restoring: the kept group of the smallest k > 0 that restores the model, None when no group does.
        kept: the kept group of the k nearest to that number.
        off: the silenced group of the same k.
        best: the localization row of the latent with the highest average precision above 0.
    """

    model: str
    concept: str
    without: Estimate
    with_sae: Estimate
    difference: Estimate
    recovered_by_best: Estimate
    restoring: Group | None
    kept: Group | None
    off: Group | None
    best: Row | None

    @property
    def name(self) -> str:
        """The model and the concept, for sentences."""
        return f"{self.model}, {readable(self.concept)}"


def findings(results: Results) -> list[Finding]:
    """One `Finding` per model and concept, in the study's order; sweeps without the error term, as in the paper."""
    found, top = [], n_best(results)
    for model, concept in pairs(results):
        reference = sweep_reference(results, model, concept)
        groups: dict[str, list[Group]] = {"activate": [], "deactivate": []}
        for row in results["interventions"]:
            if (row["model"], row["concept"]) == (model, concept) and not row["error_term"] and row["k"] > 0:
                groups[row["mode"]].append(_group(row))
        shares = {group.k: recovered(group.auroc.value, reference) for group in groups["activate"]}
        restoring = [group for group in groups["activate"] if shares[group.k] >= RESTORED]
        boxes = [row for row in results["localization"] if (row["model"], row["concept"]) == (model, concept)]
        kept, off = (
            min(groups[mode], key=lambda group: (abs(group.k - top), group.k), default=None)
            for mode in ("activate", "deactivate")
        )
        found.append(
            Finding(
                model=model,
                concept=concept,
                without=estimate(reconstruction_row(results, model, concept, "without_sae"), "auroc"),
                with_sae=estimate(reconstruction_row(results, model, concept, "with_sae"), "auroc"),
                difference=estimate(reconstruction_row(results, model, concept, "difference"), "auroc", signed=True),
                recovered_by_best=Estimate(shares.get(top, math.nan)),
                restoring=min(restoring, key=lambda group: group.k, default=None),
                kept=kept,
                off=off,
                best=best_row(boxes),
            )
        )
    return found


def _group(row: Row) -> Group:
    def control(kind: str) -> Estimate:
        mean, low, high = (number(row.get(f"{kind}_auroc_{name}")) for name in ("mean", "low", "high"))
        return Estimate(mean, low, high)

    return Group(row["k"], row["n_latents"], estimate(row, "auroc"), control("random"), control("mass"))


def summary(results: Results) -> list[str]:
    """The study in a paragraph: what the SAE costs, how few latents restore the models, controls, localization."""
    found = findings(results)
    n = len(found)
    sentences = [
        f"{_count(n, 'classifier')} {'was' if n == 1 else 'were'} examined through one sparse autoencoder (SAE) with "
        f"{results['sae']['d_sae']:,} latents."
    ]
    sentences += _counted(results) + warnings(results, found)
    n_controls = results.get("n_controls", 0)
    sentences += _cost(found) + _restoring(found)
    sentences += _controls(found, n_controls) + _switched_off(found, n_controls) + _localization(found, results)
    return sentences


def _counted(results: Results) -> list[str]:
    """What is counted, where that is not images."""
    unit = EvaluationUnit.named(results["data"]["unit"])
    if not unit.has_several_images:
        return []
    return [f"{unit.plural.capitalize()} are counted: each has the {unit.scores} over its images as its score."]


def warnings(results: Results, found: list[Finding]) -> list[str]:
    """What must be known before all else: a poor SAE, inverted classifiers, interventions on a sample of patients."""
    return _flawed_sae(results) + _inverted(found) + _sampled(results)


def _sampled(results: Results) -> list[str]:
    """Of how many patients interventions are, where they are not of all."""
    if (patients := run_patients(results)) is None:
        return []
    return [
        f"Latents were kept and silenced on the images of {patients[0]:,} of the {patients[1]:,} test patients, drawn "
        "so that each finding is about as frequent in them: numbers and intervals of interventions, ablations and "
        "effects are of these patients, all others of all."
    ]


def _flawed_sae(results: Results) -> list[str]:
    """A warning when the SAE does not copy the features of a model, or when hardly any of its latents are in use."""
    flaws: dict[str, list[str]] = {}
    for row in results["sae_quality"]:
        if flaw := sae_flaw(row, results["sae"].get("trained_l0")):
            name = f"{row['model']}, {readable(row['concept'])}"
            flaws.setdefault(name, []).append(f"{row['split']} split: {flaw}")
    if not flaws:
        return []
    listed = "; ".join(f"“{name}”, {', '.join(flaw)}" for name, flaw in flaws.items())
    return [
        f"Warning: the SAE does poorly on the features of {len(flaws)} of {len(pairs(results))} classifiers "
        f"({listed}), so claims about its latents mean little there."
    ]


def _inverted(found: list[Finding]) -> list[str]:
    """A warning for every classifier that does worse than guessing: its answer speaks against its concept."""
    sentences = []
    for f in found:
        if f.without.value < 0.5:
            chance = "" if f.without.high < 0.5 else ", or it only guesses, since the interval does not exclude 0.5"
            sentences.append(
                f"Warning: the classifier “{f.name}” is inverted: its AUROC on test images is {f.without}, so a higher "
                f"score speaks against the finding{chance}."
            )
    return sentences


def baselines_summary(results: Results) -> list[str]:
    """How often latents mark boxes better than raw channels and than Grad-CAM: what the SAE adds, or does not."""
    sentences = []
    for method, words in (("channel", "a raw channel"), ("grad_cam", "Grad-CAM")):
        theirs = [row for row in results.get("baselines", []) if row["method"] == method]
        compared = [
            (f"{model}, {readable(concept)}", _best_ap(results["localization"], model, concept), other)
            for model, concept in pairs(results)
            if math.isfinite(other := _best_ap(theirs, model, concept))
        ]
        if compared:
            sentences.append(_compared(compared, words))
    return sentences


def lesions_summary(rows: list[Row]) -> list[str]:
    """Of one concept: what the best latent of each model finds beyond chance, and whether the sum finds more."""
    sentences = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        best, group = best_of(own, "latent"), best_of(own, "group")
        if best is None:
            continue
        low, high, chance = (number(best[name]) for name in ("all_cpm_low", "all_cpm_high", "all_cpm_chance"))
        interval = f" [{' to '.join(ends(low, high))}]" if math.isfinite(low) else ""
        beside = f" beside {chance:.3f} by chance" if math.isfinite(chance) else ""
        p = number(best["p_adjusted"])
        beyond = math.isfinite(low) and low > chance and p <= 0.05
        verdict = "more than chance" if beyond else "no more than chance would, as far as can be told"
        n = sum(row["method"] == "latent" for row in own)
        sentences.append(
            f"{model}: latent {best['latent']} has the highest CPM of the {n} best, "
            f"{number(best['all_cpm']):.3f}{interval}{beside}: it finds {verdict}."
        )
        if group is not None and math.isfinite(gain := number(group["gain"])):
            low, high = number(group["gain_low"]), number(group["gain_high"])
            interval = f" [{' to '.join(ends(low, high))}]" if math.isfinite(low) else ", without an interval"
            says = "more than" if low > 0 else "less than" if high < 0 else "neither surely more nor less than"
            sentences[-1] += (
                f" Their sum, weighted by what each adds to the logit, finds {says} the best of them: CPM "
                f"{number(group['all_cpm']):.3f}, a difference of {gain:+.3f}{interval}.".replace("-", MINUS)
            )
    return sentences


def _best_ap(rows: list[Row], model: str, concept: str) -> float:
    """The best average precision of one model and concept; NaN without rows."""
    own = [row for row in rows if (row["model"], row["concept"]) == (model, concept)]
    best = best_row(own)
    return number(best["average_precision"]) if best else 0.0 if own else math.nan


def _compared(compared: list[tuple[str, float, float]], words: str) -> str:
    n = len(compared)
    if max(max(own, other) for _, own, other in compared) < NEAR_ZERO:
        highest = max(max(own, other) for _, own, other in compared)
        return f"Neither a latent nor {words} marks the boxes: no average precision is above {highest:.3f}."
    ours, theirs = sum(own for _, own, _ in compared) / n, sum(other for _, _, other in compared) / n
    figures = f"{ours:.3f} against {theirs:.3f}" + (", means over the classifiers" if n > 1 else "")
    higher = sum(own > other for _, own, other in compared)
    whom = f"for {higher or 'none'} of {n} classifiers" if n > 1 else "" if higher else "not"
    return (
        f"The highest average precision of a latent is {whom} above that of {words} ({figures}); neither has an "
        "interval here, so a difference may be chance."
    ).replace("  ", " ")


def layers_summary(results: Results) -> list[str]:
    """Which layer separates best and which localizes best, by the mean over classifiers, and how sure that is."""
    names, sentences = layer_names(results), []
    flaws: dict[str, list[str]] = {}
    for row in results.get("layers", []):
        if flaw := sae_flaw(row):
            flaws.setdefault(row["layer"], []).append(f"“{row['model']}, {readable(row['concept'])}”: {flaw}")
    for name, listed in flaws.items():
        sentences.append(
            f"{name} cannot be compared with the others, because its SAE does poorly on the features "
            f"({'; '.join(listed)})."
        )
    usable = [name for name in names if name not in flaws]
    if len(usable) > 1:
        return [*sentences, *_separating_layer(results, usable), *_localizing_layer(results, usable)]
    if flaws:
        sentences.append(f"Only {usable[0]} is left, so no layer is best." if usable else "So no layer is best.")
    return sentences


def _separating_layer(results: Results, names: list[str]) -> list[str]:
    known = _known_at_all(results, names, "single_latent_auroc")
    if not known:
        return ["The AUROC of a single latent is not defined, so the layers cannot be compared by separation."]
    clear = _leads_clearly(known, names)
    leaders, text = _leaders(known, names, "single_latent_auroc", "test AUROC", clear=clear)
    highest = _mean(known, leaders[0], "single_latent_auroc")
    if highest < WEAK:
        text += (
            f" That is {'no' if highest <= 0.5 else 'little'} better than guessing (0.5), so the order of the layers "
            "says little."
        )
    others = [name for name in names if name not in leaders]
    if len(leaders) > 1 or not others:
        return [text]
    second = max(others, key=lambda name: _mean(known, name, "single_latent_auroc"))
    return [text + _overlap(known, leaders[0], second) + _clearly_better(known, leaders[0], others)]


def _localizing_layer(results: Results, names: list[str]) -> list[str]:
    known = _known_at_all(results, names, "best_latent_ap")
    if not known:
        return ["There were no annotated boxes to compare with, so the layers cannot be compared by localization."]
    if not any(number(row["best_latent_ap"]) > 0 for layers in known.values() for row in layers.values()):
        return ["No layer's latents mark the annotated boxes: every average precision is 0."]
    leaders, text = _leaders(known, names, "best_latent_ap", "average precision")
    if _mean(known, leaders[0], "best_latent_ap") < NEAR_ZERO:
        text = f"No layer's latents mark the annotated boxes to speak of. {text}"
    boxes: dict[str, int] = {}
    for row in results["localization"]:
        if (row["model"], row["concept"]) in known and row.get("n_boxes"):
            boxes[row["concept"]] = max(row["n_boxes"], boxes.get(row["concept"], 0))
    each = " of a concept" if len(boxes) > 1 else ""
    rests = f" It rests on {_span(boxes.values())} annotated boxes{each}." if boxes else ""
    return [f"{text} The average precision has no interval here, so no layer is best.{rests}"]


def _known_at_all(results: Results, names: list[str], column: str) -> _Known:
    """The rows of `layers` by classifier and layer, of the classifiers that have the value at all of `names`."""
    by_pair: _Known = {}
    for row in results.get("layers", []):
        if row["layer"] in names and math.isfinite(number(row[column])):
            by_pair.setdefault((row["model"], row["concept"]), {})[row["layer"]] = row
    return {pair: layers for pair, layers in by_pair.items() if len(layers) == len(names)}


def _mean(known: _Known, name: str, column: str) -> float:
    return round(sum(number(layers[name][column]) for layers in known.values()) / len(known), 3)


def _leads_clearly(known: _Known, names: list[str]) -> bool:
    """Whether one layer's latent separates best: above guessing, and for every classifier by its whole interval."""
    first = max(names, key=lambda name: _mean(known, name, "single_latent_auroc"))
    return _mean(known, first, "single_latent_auroc") >= WEAK and all(
        _interval(layers[first])[0] > _interval(layers[name])[1]
        for layers in known.values()
        for name in names
        if name != first
    )


def _leaders(known: _Known, names: list[str], column: str, what: str, *, clear: bool = False) -> tuple[list[str], str]:
    """The layers of the highest mean, and a sentence on them; values that print alike count as equal.

    Args:
        known: the values.
        names: the layers.
        column: which value.
        what: its name.
        clear: whether the layer of the highest mean may be called the best.
    """
    n = len(known)
    mean = {name: _mean(known, name, column) for name in names}
    highest = max(mean.values())
    leaders = [name for name in names if mean[name] == highest]
    others = sorted((name for name in names if name not in leaders), key=lambda name: -mean[name])
    means = f" ({', '.join(f'{mean[name]:.3f} at {name}' for name in others)})" if others else ""
    average = f", the mean over {n} classifiers," if n > 1 else ""
    if len(leaders) > 1:
        tied = f"{', '.join(leaders[:-1])} and {leaders[-1]}"
        tie = f"the {what} of a latent{average} is {highest:.3f} at each{means}"
        return leaders, f"No layer is best, because {tied} tie: {tie}."
    (first,) = leaders
    if clear:
        value = f"its {what}{average} is {highest:.3f} there{means}"
        return leaders, f"A single latent separates the classes best at {first}: {value}."
    text = f"The {what} of a latent{average} is highest at {first}: {highest:.3f} there{means}."
    leading = sum(
        all(round(number(layers[first][column]), 3) > round(number(layers[name][column]), 3) for name in others)
        for layers in known.values()
    )
    if n > 1 and leading < n:
        text += f" That layer leads for {leading or 'none'} of the {n} classifiers."
    return leaders, text


def _interval(row: Row) -> tuple[float, float]:
    return number(row["single_latent_auroc_low"]), number(row["single_latent_auroc_high"])


def _overlap(known: _Known, first: str, second: str) -> str:
    """Says for how many classifiers the intervals of two layers overlap, where there are intervals."""
    overlaps = []
    for layers in known.values():
        (low, high), (other_low, other_high) = _interval(layers[first]), _interval(layers[second])
        if all(map(math.isfinite, (low, high, other_low, other_high))):
            overlaps.append(max(low, other_low) <= min(high, other_high))
    if not any(overlaps):
        return ""
    whom = f"{sum(overlaps)} of {len(overlaps)} classifiers" if len(overlaps) > 1 else "the classifier"
    return f" Its 95 % interval overlaps that of {second} for {whom}, so neither is best there."


def _clearly_better(known: _Known, first: str, others: list[str]) -> str:
    """Names the classifiers for which another layer's whole interval lies above that of `first`."""
    text = ""
    for name in others:
        better = [
            f"{model}, {readable(concept)}"
            for (model, concept), layers in known.items()
            if _interval(layers[name])[0] > _interval(layers[first])[1]
        ]
        if better:
            text += f" For {_list(better)} {name} is clearly better: its interval lies above that of {first}."
    return text


def _cost(found: list[Finding]) -> list[str]:
    known = [f for f in found if math.isfinite(f.difference.value)]
    if not known:
        return []
    worst = min(known, key=lambda f: f.difference.value)
    whom = "any of them" if len(known) > 1 else "it"
    if worst.difference.value > -0.0005:
        return [f"Passing the image features through the SAE does not lower the AUROC of {whom}."]
    interval = f", 95 % interval of the difference {worst.difference.interval}" if worst.difference.interval else ""
    return [
        f"Passing the image features through the SAE costs {'at most ' if len(known) > 1 else ''}"
        f"{-worst.difference.value:.3f} of AUROC ({worst.name}: {worst.without.point} to "
        f"{worst.with_sae.point}{interval})."
    ]


def _restoring(found: list[Finding]) -> list[str]:
    if not any(f.off or f.restoring for f in found):
        return []  # no sweep
    able = [f for f in found if f.without.value > 0.5]
    if not able:
        return ["The unmodified models do no better than chance on the test split, so there is nothing to restore."]
    ks = [f.restoring.k for f in able if f.restoring]
    failing = [f for f in able if not f.restoring]
    if not ks:
        return ["No group of latents in the sweep restores 95 % of the AUROC above chance.", *_sae_is_why(failing)]
    whom = f"{len(ks)} of {len(found)} classifiers" if len(ks) < len(found) else "all of them" if len(ks) > 1 else "it"
    but = f"; for {_list([f.name for f in failing])} no group of the sweep does" if failing else ""
    which = (
        f"the {_span(ks)} best latents per class restore" if max(ks) > 1 else "the best latent of each class restores"
    )
    return [
        f"With all other latents set to zero, {which} at least 95 % of the AUROC above chance for {whom}{but}.",
        *_sae_is_why(failing),
    ]


def _sae_is_why(failing: list[Finding]) -> list[str]:
    """Names the classifiers, of those that no group restores, that even the whole SAE does not restore."""
    lost = [f for f in failing if recovered(f.with_sae.value, f.without.value) < RESTORED]
    if not lost:
        return []
    aurocs = _span((f.with_sae.value for f in lost), _three_digits)
    return [
        f"The SAE itself is the reason for {_list([f.name for f in lost])}: even with all its latents the AUROC is "
        f"{aurocs}, which keeps less than 95 % of what is above chance."
    ]


def _controls(found: list[Finding], n_controls: int) -> list[str]:
    known = [(f.name, f.restoring) for f in found if f.restoring and math.isfinite(f.restoring.random.high)]
    if not known:
        return []
    means = _span((group.random.value for _, group in known), _three_digits)
    matched = [name for name, group in known if group.auroc.value <= group.random.high]
    if n_controls == 1:
        beside = " beside each" if len(known) > 1 else ""
        text = f"The one random group of equally many live latents{beside} has an AUROC of {means}"
        if matched:
            return [f"{text}; for {_list(matched)} it does as well as the chosen one, {_EXPLAINS_LESS}"]
        return [f"{text}, below that of the chosen latents; one group is a weak control."]
    groups = f"{n_controls} random groups" if n_controls else "random groups"
    if not matched:
        return [
            f"None of the {groups} of equally many live latents reaches the chosen latents' AUROC; their mean AUROC is "
            f"{means}."
        ]
    return [
        f"{groups[:1].upper()}{groups[1:]} of equally many live latents have a mean AUROC of {means}; for "
        f"{_list(matched)} at least one of them does as well as the chosen one, {_EXPLAINS_LESS}"
    ]


def _switched_off(found: list[Finding], n_controls: int) -> list[str]:
    known = [(f.name, f.off) for f in found if f.off and math.isfinite(f.off.random.value)]
    if not known:
        return []
    chosen = _span((group.auroc.value for _, group in known), _three_digits)
    random = _span((group.random.value for _, group in known), _three_digits)
    harmless = [name for name, group in known if group.auroc.value >= group.random.value]
    average = {0: " on average", 1: " (one random group)"}.get(n_controls, f" (mean of {n_controls} random groups)")
    text = (
        f"Switching off the {_span(group.k for _, group in known)} best latents per class leaves an AUROC of {chosen}; "
        f"switching off as many random live latents leaves {random}{average}"
    )
    return [
        f"{text}, so for {_list(harmless)} the chosen latents matter no more than others." if harmless else f"{text}."
    ]


def _localization(found: list[Finding], results: Results) -> list[str]:
    known = [(number(f.best["average_precision"]), f.name, f.best) for f in found if f.best]
    if not known:
        if any(math.isfinite(number(row["average_precision"])) for row in results["localization"]):
            return ["No latent's map marks the annotated boxes: every average precision is 0."]
        return [
            "Whether latents fire where a finding is cannot be told, because no annotated boxes were there to compare "
            "with. What is told of latents is with which class they go, and what the classifier does without them."
        ]
    precision, name, best = max(known, key=lambda item: item[0])
    where = f"latent {best['latent']} ({name}, rank {best['rank']}), at IoU {best['iou_threshold']:g}"
    if precision < NEAR_ZERO:
        return [
            "No latent's map marks the annotated boxes to speak of: the highest average precision is "
            f"{precision:.3f}, of {where}."
        ]
    return [
        f"The highest average precision on annotated boxes is {precision:.3f}, of {where}; the highest of many on the "
        "test images themselves, without an interval."
    ]


def _three_digits(value: float) -> str:
    return f"{value:.3f}"


def _count(n: int, noun: str) -> str:
    words = {
        1: "One",
        2: "Two",
        3: "Three",
        4: "Four",
        5: "Five",
        6: "Six",
        7: "Seven",
        8: "Eight",
        9: "Nine",
        10: "Ten",
    }
    return f"{words.get(n, n)} {noun}{'' if n == 1 else 's'}"


def _span(values: Iterable[float], text: Callable[[float], str] = lambda value: f"{value:,}") -> str:
    ordered = sorted(values)
    low, high = text(ordered[0]), text(ordered[-1])
    return low if low == high else f"{low} to {high}"


def _list(names: list[str]) -> str:
    quoted = [f"“{name}”" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
