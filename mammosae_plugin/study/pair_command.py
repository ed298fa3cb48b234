"""`mammosae pairs`: what the latents of a table answer to, as text, and as files."""

__all__ = ["PAIR_SCORES", "score_pairs"]

from pathlib import Path

from mammosae_plugin.analysis import pair_responses
from mammosae_plugin.datasets import read_pairs
from mammosae_plugin.files import write_json, write_text
from mammosae_plugin.study.retrieval import open_table, written_files

PAIR_SCORES = "pair_responses"
_SHOWN = ["attribute", "n_patients", "n_responding", "n_selective", "best_latent", "best_selectivity", "concept_score"]


def score_pairs(
    table: Path, pairs: Path, *, untrained: Path | None, statistic: str, seed: int, output: Path | None
) -> str:
    """Score a table by pairs of its images, as text for the terminal.

    Args:
        table: the latents table, or a study's folder with one.
        pairs: as for `read_pairs`.
        untrained: the table of the same images under an untrained SAE.
        statistic: "max" or "mean" over positions.
        seed: of resamples and exchanges.
        output: write pair_responses.csv (a row per attribute), pair_responses_latents.csv and .json to this folder.

    Raises:
        InputError: as `pair_responses`.
    """
    found = pair_responses(
        open_table(table),
        read_pairs(pairs),
        statistic=statistic,
        untrained=None if untrained is None else open_table(untrained),
        seed=seed,
    )
    beside = [("latents mixed at random", found.share_mixed), ("attributes exchanged", found.share_permuted)]
    beside += [] if untrained is None else [("the untrained SAE", found.share_untrained)]
    shown = [name for name in (*_SHOWN, "concept_score_untrained") if name in found.attributes]
    lines = [found.attributes[shown].to_string(index=False, float_format="{:.2f}".format), ""]
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
