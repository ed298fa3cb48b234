"""Scores of names: an oracle scores 1, chance scores chance, shuffled names too, and names of random latents fall."""

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from helpers_adapters import DATA
from scipy.sparse import csr_array
from scipy.stats import binom, hypergeom

from mammosae_plugin.analysis.codes import as_codes, as_groups, strongest_rows
from mammosae_plugin.errors import InputError
from mammosae_plugin.interpretation import LabelJudge, LatentNames, TextJudge, judge_names, told_scores
from mammosae_plugin.interpretation.judges import FAILED
from mammosae_plugin.interpretation.judging import CHANCE
from mammosae_plugin.interpretation.judging_plan import plan_judging
from mammosae_plugin.interpretation.names import COLUMNS
from mammosae_plugin.interpretation.shown_images import distractors, diverse, plain_text, shown_images, spread
from mammosae_plugin.measures.shares import (
    balanced_accuracy,
    balanced_interval,
    mean_interval,
    p_of_telling_apart,
    wilson,
)

N_PATIENTS, N_KINDS, N_LATENTS, N_RANDOM = 400, 12, 24, 60
KINDS = [f"finding {letter}" for letter in "abcdefghijkl"]


def a_table(seed: int = 0) -> SimpleNamespace:
    """Two images of each patient, findings that go with nothing else, and latents that fire where one is, then random
    ones; dense vectors are the findings with noise."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(N_PATIENTS), 2)
    has = rng.random((len(patients), N_KINDS)) < 0.2
    frame = pd.DataFrame(has.astype(float), columns=KINDS).assign(
        patient_id=patients, split=np.where(patients < 150, "training", "test"), image_id=[f"{i}.png" for i in patients]
    )
    codes = np.concatenate(
        [has[:, np.arange(N_LATENTS) % N_KINDS], rng.random((len(patients), N_RANDOM)) < 0.2], axis=1
    )
    codes = codes * rng.uniform(0.1, 3, codes.shape)
    vectors = (has + rng.normal(0, 0.2, has.shape)).astype(np.float32)
    return SimpleNamespace(
        images=frame, splits=("training", "test"), folder=Path("TABLE"), d_sae=codes.shape[1], is_of_rows=False,
        mean_latents=csr_array(codes), max_latents=csr_array(codes), mean_channels=vectors,
    )  # fmt: skip


def called(names: dict[int, str], **columns: object) -> LatentNames:
    """Names by hand, as a method gives them that scores them itself."""
    latents = pd.DataFrame({"latent": list(names), "name": list(names.values())}).assign(
        method="by hand", score=0.9, low=0.8, high=1.0, chance=0.5, p=0.001, q=0.01, n=20, abstained=False, reason=""
    )
    latents = latents[list(COLUMNS)].assign(**columns)
    listed = pd.DataFrame({"latent": list(names), "rank": 1, "name": list(names.values())})
    return LatentNames("by hand", latents, listed, {"split": "training"})


TRUE = {latent: KINDS[latent % N_KINDS] for latent in range(N_LATENTS)}
OF_RANDOM = {latent: KINDS[latent % N_KINDS] for latent in range(N_LATENTS, N_LATENTS + N_RANDOM)}


class RandomJudge:
    """Answers at random."""

    name = "random"

    def __init__(self, seed: int = 0, fail: float = 0.0) -> None:
        self.rng, self.fail = np.random.default_rng(seed), fail

    def unread(self, name: str) -> str:  # noqa: ARG002
        return ""

    def answer(self, tasks):
        found = {}
        for key, task in tasks.items():
            if self.rng.random() < self.fail:
                found[key] = None
            elif task.kind == "detection":
                found[key] = tuple(self.rng.integers(0, 2, len(task.rows)).tolist())
            elif task.kind == "intruder":
                found[key] = (int(self.rng.integers(len(task.rows))),)
            else:
                found[key] = tuple(self.rng.permutation(len(task.names)).tolist())
        return found


@pytest.fixture(scope="module")
def table():
    return a_table()


@pytest.fixture(scope="module")
def labels(table):
    return LabelJudge(table.images[KINDS])


def scores(names: LatentNames) -> dict[str, dict[str, float]]:
    return {one["score"]: one for one in names.about["judging"]["scores"]}


def test_an_oracle_scores_1_and_shuffled_names_score_chance(table, labels):
    found = judge_names(called(TRUE), table, None, labels)
    assert found.n_named == N_LATENTS and (found.latents["name"] == list(TRUE.values())).all()
    for name, one in scores(found).items():
        assert one["mean"] == 1 and one["low"] > 0.8 and one["n_latents"] == N_LATENTS
        assert one["shuffled_low"] <= one["chance"] == CHANCE[name] <= one["shuffled_high"], name
    frame = found.latents
    assert (frame["score"] == 0.9).all() and (frame["judge"] == "labels").all() and (frame["n_failed"] == 0).all()
    assert ((frame["detection"] == 1) & (frame["detection_low"] > 0.75) & (frame["detection_high"] == 1)).all()
    told = told_scores(found)
    assert told[0] == "judged by labels in split test: 24 of 24 names hold up"
    assert told[1].startswith("detection (balanced accuracy): 1.00 (0.86 to 1.00 over 24 latents), shuffled names 0.5")
    json.dumps(found.about, allow_nan=False)


def test_names_that_the_judging_split_has_chosen_are_told(table, labels):
    made = called({0: KINDS[0], 1: KINDS[1]})
    checked = replace(made, about={**made.about, "check": "test"})
    told = [told_scores(judge_names(one, table, None, labels)) for one in (made, checked)]
    assert [sum("names were checked in split test before" in line for line in lines) for lines in told] == [0, 1]


def test_random_answers_score_chance_within_its_interval_and_keep_no_name(table):
    found = judge_names(called(TRUE), table, None, RandomJudge(3), n_intruder=4)
    for name, one in scores(found).items():
        assert one["low"] <= one["chance"] == CHANCE[name] <= one["high"], name
        assert one["shuffled_low"] <= one["chance"] <= one["shuffled_high"], name
    assert found.n_named == 0 and (found.latents["name"] == "").all()
    assert (
        found.latents["reason"].str.match(r"the name does not tell where it fires; finding . does with balanced").all()
    )


def test_names_of_random_latents_are_taken_back_beside_right_ones(table, labels):
    found = judge_names(called({**TRUE, **OF_RANDOM}), table, None, labels).latents.set_index("latent")
    assert not found.loc[list(TRUE), "abstained"].any()
    assert (~found.loc[list(OF_RANDOM), "abstained"]).mean() <= 0.05
    alone = judge_names(called(OF_RANDOM), table, None, labels)
    assert alone.n_named <= 0.05 * N_RANDOM
    assert scores(alone)["detection"]["low"] <= 0.5 <= scores(alone)["detection"]["high"]


def test_answers_that_do_not_count_are_wrong_answers(table):
    found = judge_names(called(TRUE), table, None, RandomJudge(fail=1.0))
    assert all(one["mean"] == one["shuffled_mean"] == 0 for one in scores(found).values())
    assert (found.latents["n_failed"] == 7).all() and (found.latents["detection_p"] == 1).all() and found.n_named == 0
    assert "; 7 of 7 answers do not count" in found.latents["reason"][0]
    assert told_scores(found)[-1] == "336 of 336 answers do not count, and are wrong answers"
    some = scores(judge_names(called(TRUE), table, None, RandomJudge(fail=0.5)))
    assert some["detection"]["high"] < 0.4 and some["ranking_2"]["mean"] < 0.4


def test_a_judge_who_sees_where_a_latent_fires_without_reading_keeps_no_name(table):
    codes = table.max_latents.toarray()

    class Seer(RandomJudge):
        def answer(self, tasks):
            found = super().answer(tasks)
            for key, task in tasks.items():
                fires = codes[list(task.rows), int(key.split("/")[0])] > 0
                if task.kind != "ranking":
                    found[key] = tuple(map(int, fires)) if task.kind == "detection" else (int(np.argmin(fires)),)
            return found

    found = judge_names(called(TRUE), table, None, Seer())
    assert all(scores(found)[name]["shuffled_mean"] == 1 for name in ("detection", "detection_hard", "intruder"))
    assert (found.latents["detection"] == 1).all() and (found.latents["detection_q"] < 0.001).all()
    assert found.n_named == 0 and found.latents["reason"].str.contains("by chance 0.50, shuffled names 1.00").all()


def test_a_text_encoder_judges_by_cosine(table):
    class Tower:
        def embed_texts(self, texts):
            return np.array([np.eye(N_KINDS)[KINDS.index(text)] for text in texts], dtype=np.float32)

        def project(self, features):
            return np.asarray(features, dtype=np.float64)

    judge = TextJudge(Tower(), table.mean_channels, name="tower")
    found = judge_names(called({**TRUE, **OF_RANDOM}), table, None, judge).latents.set_index("latent")
    assert found.loc[list(TRUE), "detection"].mean() > 0.9 and found.loc[list(TRUE), "ranking_1"].mean() > 0.9
    assert (~found.loc[list(TRUE), "abstained"]).mean() > 0.9 and (
        ~found.loc[list(OF_RANDOM), "abstained"]
    ).mean() <= 0.05


def test_what_is_shown_is_of_another_split_each_of_another_patient(table):
    plan = plan_judging(called(TRUE), table, n_intruder=3)
    codes, images = table.max_latents.toarray(), table.images
    for key, task in plan.tasks.items():
        latent, which, kind, _ = key.split("/")
        rows, truth = np.array(task.rows), plan.truth[key]
        assert (images["split"][rows] == "test").all()
        assert len(task.names) == (5 if kind == "ranking" else 1)
        fires = codes[rows, int(latent)] > 0
        if kind == "detection":
            assert (fires == (np.array(truth) == 1)).all()
        elif kind == "intruder":
            assert fires.sum() == 4 and not fires[truth[0]]
        else:
            assert fires.all() and len({*task.names}) == 5
        name = task.names[truth[0]] if kind == "ranking" else task.names[0]
        assert name == (plan.called if which == "true" else plan.shuffled)[int(latent)]
        assert (name == TRUE[int(latent)]) == (which == "true") and (kind != "ranking" or which == "true" or
            TRUE[int(latent)] not in task.names)  # fmt: skip
    for latent in TRUE:
        for kind in ("detection", "intruder"):
            own = [plan.tasks[key] for key in plan.tasks if key.startswith(f"{latent}/true/{kind}/")]
            patients = images["patient_id"].to_numpy()[[row for task in own for row in task.rows]]
            assert len({*patients}) == len(patients) == {"detection": 20, "intruder": 15}[kind]
    places = [plan.truth[key][0] for key in plan.tasks if "/ranking/" in key]
    assert {*places} == set(range(5))  # the true name is everywhere in the list
    again = plan_judging(called(TRUE), table, n_intruder=3)
    assert again.tasks == plan.tasks and again.n_pictures == sum(len(task.rows) for task in plan.tasks.values())
    fewer = plan_judging(called({latent: TRUE[latent] for latent in range(12)}), table, n_intruder=3)
    same = [key for key in fewer.tasks if "/true/detection" in key or "/true/intruder" in key]
    assert all(fewer.tasks[key] == plan.tasks[key] for key in same)  # what was answered stays, whoever else is judged


def test_patients_of_whom_the_names_were_made_are_not_shown(table):
    images = table.images.assign(split=np.where(np.arange(2 * N_PATIENTS) % 2, "test", table.images["split"]))
    both = SimpleNamespace(**{**vars(table), "images": images})
    made_of = {*images.loc[images["split"] == "training", "patient_id"]}
    assert made_of & {*images.loc[images["split"] == "test", "patient_id"]}
    plan = plan_judging(called(TRUE), both)
    assert not made_of & {*images["patient_id"].to_numpy()[[row for task in plan.tasks.values() for row in task.rows]]}


def test_hard_negatives_are_those_of_a_slow_reference():
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(60), 2)
    dense = rng.normal(size=(120, 6)).astype(np.float32)
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    values = np.where(rng.random(120) < 0.3, rng.random(120), 0)
    shown = shown_images(values, groups, dense, 8, np.random.default_rng(0))
    used, expected = {groups[row] for row in shown.firing}, []
    for row in shown.firing[[1, 3, 5, 7]]:
        best, at = -2.0, -1
        for other in range(120):
            cosine = sum(float(a) * float(b) for a, b in zip(dense[row], dense[other], strict=True))
            if values[other] <= 0 and groups[other] not in used and cosine > best:
                best, at = cosine, other
        expected.append(at)
        used.add(groups[at])
    assert shown.hard.tolist() == expected and len(shown.random) == 4
    assert (values[shown.firing] > 0).all() and (values[shown.others] == 0).all()
    assert len({*groups[np.append(shown.firing, shown.others)]}) == 16
    firing = np.sort([max(values[groups == group]) for group in {*groups[values > 0]}])
    assert values[shown.firing].tolist() == firing[((np.arange(8) + 0.5) * len(firing) / 8).astype(int)].tolist()
    assert spread(np.arange(10.0), 5).tolist() == [1, 3, 5, 7, 9]


def test_few_patients_are_shared_fairly_and_too_few_are_told():
    groups = np.repeat(np.arange(12), 2)
    of_half = np.where(np.arange(24) % 2, 1.0 + np.arange(24), 0)
    for values, expected in ((of_half, 6), (np.ones(24), 0), (1.0 + np.arange(24), 3)):
        shown = shown_images(values, groups, None, 10, np.random.default_rng(0))
        assert len(shown.firing) == len(shown.others) == expected
        assert len({*groups[np.append(shown.firing, shown.others)]}) == 2 * expected
    rare = a_table(1)
    codes = rare.max_latents.toarray()
    codes[np.flatnonzero(codes[:, 0])[3:], 0] = 0
    codes[:, 1] = 1
    few = SimpleNamespace(**{**vars(rare), "max_latents": csr_array(codes)})
    found = judge_names(called(TRUE), few, None, LabelJudge(rare.images[KINDS])).latents
    assert found["reason"][0] == "cannot be judged: images where it fires are of 0 groups of split test, fewer than 5"
    assert found["reason"][1] == "cannot be judged: images where it fires are of 0 groups of split test, fewer than 5"
    assert found.loc[:1, "abstained"].all() and found.loc[:1, "detection"].isna().all() and not found["abstained"][2]


def test_a_latent_that_is_above_0_in_every_image_is_told_by_where_it_is_strong(table, labels):
    codes = table.max_latents.toarray()
    has = table.images[KINDS].to_numpy()[:, np.arange(6)]
    codes[:, :6] = np.random.default_rng(0).random((len(codes), 6)) + 2 * has
    codes[:, 6:12] = 1 + np.random.default_rng(1).random((len(codes), 6))
    dense = SimpleNamespace(**{**vars(table), "max_latents": csr_array(codes)})
    names = called({latent: KINDS[latent] for latent in range(12)})
    plan = plan_judging(names, dense, n=40)
    for key, task in plan.tasks.items():
        if key.split("/")[2] == "detection":
            value = codes[:, int(key.split("/")[0])]
            shown, test = value[list(task.rows)], value[300:]
            right = np.array(plan.truth[key]) == 1
            assert (shown[right] > np.median(test)).all() and (shown[~right] <= np.quantile(test, 0.25)).all()
    found = judge_names(names, dense, None, labels, n=40)
    assert not found.latents["abstained"][:6].any() and found.latents["abstained"][6:].all()
    assert told_scores(found)[-1].startswith("12 of the latents fire in over three quarters of the images: told apart")


def test_what_a_model_wrote_is_a_name_once_judged_and_not_by_itself(table, labels):
    written = called({**TRUE, **OF_RANDOM}, name="", score=np.nan, low=np.nan, high=np.nan, chance=np.nan, p=np.nan,
        q=np.nan, abstained=True, reason="not judged yet", model="labels")  # fmt: skip
    with pytest.raises(InputError, match="labels made these names"):
        judge_names(written, table, None, labels)
    found = judge_names(written, table, None, labels, same_judge=True).latents
    kept = found[~found["abstained"]]
    assert kept["latent"].tolist()[:N_LATENTS] == list(TRUE) and len(kept) <= N_LATENTS + 3
    assert (kept["judge"] == "labels (wrote the names)").all() and (kept["score"] == kept["detection"]).all()
    assert (found["chance"] == 0.5).all() and (found["n"] == 20).all() and (found["q"] == found["detection_q"]).all()
    rest = called({0: "finding a"}, name="", abstained=True, reason="fires in 2 groups")
    with pytest.raises(InputError, match="no name to judge"):
        judge_names(rest, table, None, labels)


def test_names_that_the_judge_cannot_read_and_names_without_others(table, labels):
    found = judge_names(called({0: KINDS[0], 1: "a dark rim", 2: KINDS[3]}), table, None, labels)
    assert found.latents["name"].tolist() == [KINDS[0], "a dark rim", ""]  # what a judge cannot read is not its to take
    assert found.latents["judge"].tolist() == ["labels", "", "labels"] and np.isnan(found.latents["detection"][1])
    assert told_scores(found)[-1] == "1 names stay as they are: no attribute of the images has this name"
    alone = judge_names(called({0: KINDS[0], 12: KINDS[0].upper()}), table, None, labels)
    assert (
        alone.n_named == 2
        and alone.latents["detection_shuffled"].isna().all()
        and alone.latents["ranking_1"].isna().all()
    )
    assert told_scores(alone)[1].endswith("over 2 latents), no other name to shuffle, chance 0.50")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"split": "training"}, "made in split training"),
        ({"split": "validation"}, "no split 'validation'"),
        ({"judge": object()}, "a object is no judge"),
        ({"judge": SimpleNamespace(name="vlm", host=None, answer=print)}, "give pictures"),
        ({"n": 1}, "n is 1"),
        ({"alpha": 2}, "alpha is 2"),
    ],
)
def test_bad_settings_are_refused_in_a_line(table, labels, changed, said):
    settings = {"judge": labels, **changed}
    with pytest.raises(InputError, match=said):
        judge_names(called(TRUE), table, None, settings.pop("judge"), **settings)


def test_p_of_telling_apart_is_exact():
    for found in range(11):
        p = p_of_telling_apart(found + 4, 16 - found, 0, 10, balanced_accuracy(found, 10, 6, 10))
        assert p == pytest.approx(hypergeom.sf(found - 1, 20, 10, found + 4), rel=1e-9)
    said = np.array([1, 1, 1, 0, FAILED, 1, 0, 0, FAILED, 0, 0, 1])
    rng, higher = np.random.default_rng(0), 0
    score = balanced_accuracy(4, 5, 4, 7)
    for _ in range(20_000):
        fires = np.isin(np.arange(12), rng.choice(12, 5, replace=False))
        higher += balanced_accuracy((said[fires] == 1).sum(), 5, (said[~fires] == 0).sum(), 7) >= score - 1e-9
    assert p_of_telling_apart(5, 5, 2, 5, score) == pytest.approx(higher / 20_000, abs=0.01)


def test_intervals_cover_what_they_should():
    ends = {(a, b): balanced_interval(a, 10, b, 10) for a in range(11) for b in range(11)}
    for p, q in ((0.5, 0.5), (0.8, 0.6), (0.9, 0.9), (0.99, 0.7)):
        inside = [
            binom.pmf((a, b), 10, (p, q)).prod() for (a, b), (low, high) in ends.items() if low <= (p + q) / 2 <= high
        ]
        assert 0.92 < sum(inside) <= 0.98
    assert balanced_interval(10, 10, 10, 10)[1] == 1 and balanced_interval(0, 10, 0, 10)[0] == 0
    assert mean_interval(np.ones(20)) == wilson(20, 20) and np.isnan(mean_interval([])).all()
    low, high = mean_interval([0, 1] * 50)
    assert low == pytest.approx(0.4, abs=0.03) and high == pytest.approx(0.6, abs=0.03)


SAIL = json.loads((DATA / "sail" / "judging.json").read_text())


def test_rates_and_their_intervals_are_those_of_sail_with_failures_as_failures():
    for case in SAIL["wilson"]:
        low, high = wilson(case["successes"], case["n"], case["confidence"])
        if case["n"]:
            assert (low, high) == pytest.approx((case["lower"], case["upper"]), abs=1e-9)
        else:
            assert np.isnan([low, high]).all()
    for one in SAIL["published"]:
        assert wilson(one["successes"], one["n"]) == pytest.approx((one["low"], one["high"]), abs=1e-9)


class RecordedRanks(RandomJudge):
    """Puts the true name at the rank of a record, and says nothing of it where that could not be parsed."""

    def __init__(self, ranks) -> None:
        super().__init__()
        self.ranks = ranks

    def answer(self, tasks):
        found = dict(super().answer(tasks))
        for key, task in tasks.items():
            latent, which, kind, _ = key.split("/")
            if (which, kind) == ("true", "ranking"):
                rank, parsed = self.ranks[int(latent)]
                true = task.names.index(KINDS[int(latent) % N_KINDS])
                others = [place for place in range(5) if place != true]
                found[key] = (*others[: rank - 1], true, *others[rank - 1 :]) if parsed else None
        return found


@pytest.mark.parametrize("case", SAIL["summaries"])
def test_success_of_rankings_is_that_of_sail_with_failures_as_failures(table, case):
    names = {latent: KINDS[latent % N_KINDS] for latent in range(len(case["ranks"]))}
    found = judge_names(called(names), table, None, RecordedRanks(case["ranks"]), n=5, n_intruder=0)
    one = scores(found)["ranking_2"]
    assert one["mean"] == pytest.approx(case["rate"], abs=1e-12)
    successes = sum(parsed and rank <= 2 for rank, parsed in case["ranks"])
    assert (one["low"], one["high"]) == wilson(successes, len(names))
    assert found.latents["intruder"].isna().all()


def test_distractors_and_unlike_images_are_those_of_sail_put_right():
    for case in SAIL["distractors"]:
        names = {latent: f"name {latent}" for latent in [*case["eligible"], case["target"]]}
        assert distractors(names, case["target"], case["n"], case["seed"]) == case["chosen"]
    frame = pd.read_parquet(DATA / "sail" / "fingerprint_codes.parquet")
    slices = pd.read_parquet(DATA / "sail" / "fingerprint_slices.parquet")
    codes = csr_array((frame["value"], (frame["row"], frame["feature"]))).toarray().astype(np.float64)
    groups = as_groups((slices["modality"] + "/" + slices["image_id"]).to_numpy(), len(slices))
    for case in SAIL["samples"]:
        top = strongest_rows(as_codes(codes[:, [case["feature"]]]), groups, case["n_candidates"])[0][0]
        top = top[top >= 0]
        assert top[diverse(codes[top], case["n_samples"])].tolist() == case["rows"]


def test_a_distractor_has_another_text():
    names = {0: "A mass", 1: "a  mass.", 2: "letter", 3: "Letter", 4: "clip", 5: "muscle"}
    for seed in range(20):
        chosen = distractors(names, 0, 3, seed)
        assert sorted(chosen) == [2, 4, 5]
    assert distractors(names, 0, 4, 0) == [] and distractors(names, 0, 3, 0, without="CLIP") == []
    assert plain_text("Non-fatty (dense)") == "non fatty dense" and plain_text("view=CC") == "view=cc"
    assert random.Random(0).sample([2, 4, 5], 3) == distractors(names, 0, 3, 0)
