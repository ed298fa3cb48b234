"""SAEs of a grid in order: SAIL's two rules from its published files, and ours."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mammosae_plugin.analysis import LatentScores, Recovery, SaeScores, rank_saes
from mammosae_plugin.errors import InputError

SAIL = Path(__file__).parent / "data" / "sail"
RULES = {
    "6A_committed_summaries": ("released", False),
    "6A_complete_files": ("released", True),
    "6B_published": ("published", False),
    "6B_complete_files": ("published", True),
}


@pytest.fixture(scope="module")
def published():
    curves = pd.read_parquet(SAIL / "ranking_curves.parquet").astype({"model": str, "name": str, "label": str})
    return curves, pd.read_parquet(SAIL / "ranking_expected.parquet")


def grid(published, model, *, complete=True):
    curves, expected = published
    best = expected[expected["model"] == model].drop_duplicates("name").set_index("name")
    own = curves[(curves["model"] == model) & (curves["listed"] | complete)]
    values = {name: {10: best.at[name, "best_10"], 50: best.at[name, "best_50"]} for name in best.index}
    return [SaeScores(name, values[name], rows.drop(columns="listed")) for name, rows in own.groupby("name")]


@pytest.mark.parametrize("model", ["dinov3", "biomedparse_random"])
@pytest.mark.parametrize("variant", RULES)
def test_sails_rules_give_sails_rankings(published, model, variant):
    rule, complete = RULES[variant]
    expected = published[1].query("rule == @variant and model == @model").set_index("name")
    found = rank_saes(grid(published, model, complete=complete), rule=rule, same_targets=complete).set_index("name")
    expected = expected.loc[found.index]
    for column in ("n_targets", "rank_mono", "rank_perf", "rank_combined", "final_rank"):
        np.testing.assert_array_equal(found[column], expected[column], err_msg=column)
    np.testing.assert_allclose(found["recovery"], expected["recovery"], rtol=0, atol=1e-12)


def test_the_published_winner_owes_its_place_to_targets_that_others_lack(published):
    told, rebuilt = (
        rank_saes(grid(published, "dinov3", complete=complete), rule="published", same_targets=False)["name"].tolist()
        for complete in (False, True)
    )
    assert told[0] == "D_128_512_2048_8192_K_5_10_20_40"
    assert rebuilt[:2] == ["D_128_512_2048_8192_K_10_20_40_80", told[0]]
    with pytest.raises(InputError, match=r"lacks \d+ of the \d+ targets of .*: score every SAE on the same targets"):
        rank_saes(grid(published, "dinov3", complete=False), rule="published")


def curves(auroc=0.8, **columns):
    frame = pd.DataFrame({"label": ["a", "a", "b", "b"], "k": [1, 5, 1, 5], "auroc": auroc, "dense_auroc": 0.9})
    return frame.assign(**{"split": "test", "rows": "digest", "n_rows": 100, "n_positive": 30, **columns})


def test_the_corrected_rule_takes_shares_above_chance_and_means_over_seeds():
    saes = [
        SaeScores(f"{name}{seed}", {10: mono + 0.01 * seed, 50: 0.1}, curves(auroc + 0.001 * seed), 0.9, l0, name)
        for name, mono, auroc, l0 in (("large", 0.5, 0.85, 20), ("small", 0.3, 0.8, 10), ("worse", 0.3, 0.7, 10))
        for seed in (-1, 0, 1)
    ]
    found = rank_saes(saes).set_index("name")
    assert found.index.tolist() == ["large", "small", "worse"]
    np.testing.assert_allclose(found["recovery"], [0.875, 0.75, 0.5])
    np.testing.assert_allclose(found["monosemanticity_sd"], 0.01)
    assert found["rank_mono"].tolist() == [1, 2, 2] and found["n_seeds"].tolist() == [3, 3, 3]
    assert found["on_front"].tolist() == [True, True, False]  # "small" has the fewest active latents
    assert pd.isna(found["separates"].iloc[0]) and found["separates"].iloc[1:].tolist() == [True, True]
    alone = rank_saes(saes[::3])
    assert alone["separates"].isna().all() and alone["monosemanticity_sd"].isna().all()


def test_an_sae_that_never_recovers_a_target_is_not_favoured():
    """SAIL's code counts what is never reached as one more than the most that the SAE needs of another target: 2."""
    half = SaeScores("half", {10: 0.2}, curves([0.9, 0.9, 0.5, 0.5]))
    good = SaeScores("good", {10: 0.2}, curves([0.8, 0.9, 0.8, 0.9]))
    assert rank_saes([good, half], rule="released")["name"].tolist() == ["half", "good"]
    assert rank_saes([good, half])["name"].tolist() == ["good", "half"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label": ["a", "a", "c", "c"]}, "'two' lacks 1 of the 2 targets of 'one' (first 'b')"),
        ({"split": "training"}, "the target 'a' has split test in 'one', but training in 'two'"),
        ({"n_positive": 31}, "the target 'a' has n_positive 30 in 'one', but 31 in 'two'"),
        ({"rows": "other"}, "the target 'a' has images or labels digest in 'one', but other in 'two'"),
        ({"dense_auroc": 0.95}, "the target 'a' has dense AUROC 0.9000 in 'one', but 0.9500 in 'two'"),
    ],
)
def test_saes_that_were_asked_different_things_are_refused(changed, message):
    saes = [SaeScores("one", {10: 0.1}, curves()), SaeScores("two", {10: 0.1}, curves(**changed))]
    for rule in ("corrected", "released"):
        with pytest.raises(InputError) as error:
            rank_saes(saes, rule=rule)
        assert message in str(error.value)


def test_ranking_refuses_what_cannot_be_ranked():
    one = SaeScores("one", {10: 0.1}, curves())
    for saes, settings, message in (
        ([], {}, "give at least one"),
        ([one, one], {}, "two SAEs are named 'one'"),
        ([one], {"rule": "best"}, "rule is 'best'"),
        ([one], {"rule": "published"}, "'one' has no monosemanticity of its 50 best latents"),
        ([one], {"same_targets": False}, "compares SAEs on the same targets"),
        ([one, SaeScores("two", {50: 0.1}, curves())], {}, "of no one number of best latents"),
        ([SaeScores("low", {10: 0.1}, curves(dense_auroc=0.5))], {}, "nothing to rank by"),
    ):
        with pytest.raises(InputError, match=message):
            rank_saes(saes, **settings)
    with pytest.raises(InputError, match="the curves of 'x' have no dense_auroc"):
        SaeScores("x", {10: 0.1}, curves().drop(columns="dense_auroc"))
    with pytest.raises(InputError, match="'x' has no monosemanticity"):
        SaeScores("x", {}, curves())


def test_scores_of_an_sae_are_made_of_its_results():
    summary = pd.DataFrame(
        {"measure": ["best10_10", "mean_10", "best50_10", "best10_50"], "value": [0.3, 0.1, 0.2, 0.0]}
    )
    scores = SaeScores.of("x", LatentScores(summary, summary, summary), Recovery(curves(), curves(), curves()), l0=20)
    assert scores.monosemanticity == {10: 0.3, 50: 0.2} and scores.l0 == 20 and len(scores.curves) == 4
