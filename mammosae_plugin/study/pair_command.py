"""`mammosae pairs`: what the latents of a table answer to, as text, and as files."""

__all__ = ["PAIR_SCORES", "score_pairs"]

from collections.abc import Sequence
from pathlib import Path

from mammosae_plugin.analysis import pair_responses
from mammosae_plugin.datasets import read_pairs
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import write_json, write_text
from mammosae_plugin.study.retrieval import open_table, written_files

PAIR_SCORES = "pair_responses"
_SHOWN = ["attribute", "n_patients", "n_responding", "n_selective", "best_latent", "best_selectivity", "concept_score"]


def score_pairs(
    table: Path,
    pairs: Path,
    *,
    untrained: Sequence[Path],
    statistic: str,
    min_patients: int,
    seed: int,
    output: Path | None,
) -> str:
    """Score a table by pairs of its images, as text for the terminal.

    Args:
        table: the latents table, or a study's folder with one.
        pairs: as for `read_pairs`.
        untrained: tables of the same images under untrained SAEs.
        statistic: "max" or "mean" over positions.
        min_patients: of an attribute, below which nothing is told of it.
        seed: of resamples and exchanges.
        output: write pair_responses.csv (a row per attribute), pair_responses_latents.csv and .json to this folder.

    Raises:
        InputError: as `pair_responses`, or no attribute has as many patients.
    """
    found = pair_responses(
        open_table(table),
        read_pairs(pairs),
        statistic=statistic,
        untrained=[open_table(one) for one in untrained],
        min_patients=min_patients,
        seed=seed,
    )
    most = found.attributes.sort_values("n_patients").iloc[-1]
    if most["n_patients"] < min_patients:
        raise InputError(
            f"{pairs} has pairs of {most['n_patients']} patients for {most['attribute']}, and of no more for another "
            f"attribute, but an interval takes {min_patients}: give more pairs, or lower --min-patients"
        )
    beside = [("latents mixed at random", found.share_mixed), ("attributes exchanged", found.share_permuted)]
    beside += [("untrained SAEs", found.share_untrained)] if untrained else []
    shown = [name for name in (*_SHOWN, "concept_score_untrained") if name in found.attributes]
    lines = [found.attributes[shown].to_string(index=False, float_format="{:.2f}".format), ""]
    if len(found.attributes) < 2:
        lines += ["one attribute alone: nothing says whether anything else moves a latent; give pairs of another too"]
    else:
        lines += [f"attributes with a selective latent: {found.share:.0%}"]
        lines += [f"  {name}: {share:.0%}" for name, share in beside]
    if output is not None:
        with written_files(output, PAIR_SCORES) as staged:
            write_text(staged / f"{PAIR_SCORES}.csv", found.attributes.to_csv(index=False))
            write_text(staged / f"{PAIR_SCORES}_latents.csv", found.latents.to_csv(index=False))
            shares = {"share": found.share, **{name.replace(" ", "_"): share for name, share in beside}}
            write_json(staged / f"{PAIR_SCORES}.json", {"statistic": statistic, "seed": seed, **shares})
        lines.append(f"written to {output}")
    return "\n".join(lines)
