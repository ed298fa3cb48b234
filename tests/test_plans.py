"""What a step's result depends on: every part that is changed changes the plan's digest, and nothing else does."""

import json
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers_study import study_settings, write_study
from torch import nn

from mammosae_plugin.adapters.preprocessing import MAMMO_CLIP
from mammosae_plugin.config import load_config
from mammosae_plugin.datasets import VinDrMammo
from mammosae_plugin.files import write_json
from mammosae_plugin.study import plans
from mammosae_plugin.study.layer import LayerStudy

TRAINED = {"train": {"model": "pretrained", "concept": "Mass", "count": 3, "training": {"d_sae": 32}}}


@pytest.fixture
def make(tmp_path, phantom_root):
    """Every step's plan, by the settings of a study and by what it reads."""
    base = study_settings(tmp_path, phantom_root) | {"sae": TRAINED}
    encoder = {"weight": torch.arange(4.0)}
    base["models"][0] = {"name": "pretrained", "encoder": "encoder.safetensors", "train": {"epochs": 2}}

    def call(change: dict[str, Any] | None = None, **read: Any) -> dict[str, str]:
        settings = deepcopy(base)
        for key, value in (change or {}).items():
            *path, last = key.split(".")
            place: Any = settings
            for part in path:
                place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
            place[last] = value
        config = load_config(write_study(tmp_path, settings))
        images = read.get("images") or VinDrMammo(phantom_root, image_size=config.data.image_size)
        content, network = read.get("content", "c"), read.get("network", "n")
        layer = {"hook_name": read.get("hook_name", "bn2.hook_out"), "encoder": read.get("encoder", "e")}
        heads = {"Mass": read.get("head", nn.Linear(2, 1)).requires_grad_(False)}
        nn.init.constant_(heads["Mass"].weight, read.get("weight", 1.0))
        nn.init.constant_(heads["Mass"].bias, 0.0)
        made = {
            "classifier": plans.of_classifier(
                config.models[0].train, network, "Mass", images, content, config.data.evaluation_unit
            ),
            "rows": plans.of_rows(config, network, images, content),
            "sae": plans.of_sae(config, read.get("store", {"shards": ["a"]})),
            "table": plans.of_table(
                config, **layer, sae=read.get("sae", encoder), sae_settings=read.get("sae_settings", {}), heads=heads,
                with_boxes=read.get("boxes", ["Mass"]),
                scores=read.get("scores", ["mean"]), images=images, content=content,
            ),
            "outputs": plans.of_layer_outputs(config, **layer, images=images, content=content),
            "analysis": plans.of_analysis(
                "roles", table=read.get("table", "t"), model=read.get("model", "m"), concept="Mass",
                settings=read.get("settings", {}),
            ),
        }  # fmt: skip
        return {step: plans.digest(plan) for step, plan in made.items()}

    return call


IMAGES = "classifier rows table outputs"
CHANGES = [
    ({"seed": 1}, "rows"),
    ({"batch_size": 3}, "rows table outputs"),
    ({"device": "cpu", "num_workers": 2, "output": "elsewhere"}, ""),
    ({"report.n_images": 1, "analysis.n_bootstrap": 200}, ""),
    ({"data.unit": "finding_row"}, "table"),
    ({"data.unit": "breast"}, "table"),
    ({"data.unit_scores": "maximum"}, ""),  # of an image there is one score
    ({"models.0.train.epochs": 3}, "classifier"),
    ({"models.0.train.seed": 5}, "classifier"),
    ({"analysis.top": 3}, "table"),
    ({"analysis.gradcam": True}, "table"),
    ({"sae.train.count": 4}, "rows"),
    ({"sae.train.dtype": "float16"}, "rows"),
    ({"sae.train.limit": 9}, "rows"),
    ({"sae.train.sample_from": "batch", "sae.train.fraction": 0.5, "sae.train.count": None}, "rows"),
    ({"sae.train.augmentation": "flips"}, "rows"),
    ({"sae.train.autocast": "bfloat16"}, "rows"),
    ({"sae.train.fold_batch_norms": True}, "rows"),
    ({"sae.train.compile": True}, "rows"),
    ({"sae.train.fraction": 0.5, "sae.train.count": None}, "rows"),
    ({"sae.train.training.d_sae": 64}, "sae"),
    ({"sae.train.training.seed": 3}, "sae"),
    ({"models.0.name": "other", "sae.train.model": "other"}, "sae"),
]
READ = [
    ({"content": "another"}, IMAGES),
    ({"network": "another"}, "classifier rows"),
    ({"encoder": "another"}, "table outputs"),
    ({"hook_name": "blocks.3.hook_out"}, "table outputs"),
    ({"store": {"shards": ["b"]}}, "sae"),
    ({"sae": {"weight": torch.ones(4)}}, "table"),
    ({"sae_settings": {"k": 2}}, "table"),
    ({"weight": 2.0}, "table"),
    ({"boxes": []}, "table"),
    ({"scores": ["max"]}, "table"),
    ({"model": "another"}, "analysis"),
    ({"table": "another"}, "analysis"),
    ({"settings": {"seed": 1}}, "analysis"),
]


def test_an_sae_of_before_plans_had_names_is_found_unless_another_model_bears_them(tmp_path, phantom_root):
    config = load_config(write_study(tmp_path, study_settings(tmp_path, phantom_root) | {"sae": TRAINED}))
    store = SimpleNamespace(manifest={"shards": ["a"]})
    layer: Any = SimpleNamespace(config=config, extract=lambda: store, work=tmp_path)
    named = LayerStudy._trained_folder.fget(layer)
    plan = plans.of_sae(config, store.manifest)
    before = tmp_path / "sae" / plans.digest({name: plan[name] for name in ("step", "rows", "training")})
    said = {"trained_on_model": plan["model"], "concept": plan["concept"]}
    write_json(before / "cfg.json", {"metadata": said})
    assert LayerStudy._trained_folder.fget(layer) == before != named
    write_json(before / "cfg.json", {"metadata": said | {"trained_on_model": "another"}})
    assert LayerStudy._trained_folder.fget(layer) == named


@pytest.mark.parametrize(("change", "steps"), CHANGES, ids=lambda value: str(value)[:60])
def test_a_changed_setting_changes_the_steps_that_depend_on_it_and_no_other(make, change, steps):
    before, after = make(), make(change)
    assert {step for step in before if before[step] != after[step]} == set(steps.split())


def test_how_a_unit_gets_its_score_decides_which_latents_have_maps(make):
    by_mean, by_maximum = (make({"data.unit": "breast", "data.unit_scores": one}) for one in ("mean", "maximum"))
    assert {step for step in by_mean if by_mean[step] != by_maximum[step]} == {"table"}


def test_what_a_fraction_is_drawn_from_decides_the_rows(make):
    share = {"sae.train.fraction": 0.5, "sae.train.count": None}
    before, after = make(share), make(share | {"sae.train.sample_from": "batch"})
    assert {step for step in before if before[step] != after[step]} == {"rows"}


@pytest.mark.parametrize(("read", "steps"), READ, ids=lambda value: str(value)[:60])
def test_so_does_what_a_step_reads(make, read, steps):
    before, after = make(), make(**read)
    assert {step for step in before if before[step] != after[step]} == set(steps.split())


def test_so_do_the_images_and_how_they_are_prepared(make, phantom_root):
    before = make()
    images = VinDrMammo(phantom_root, image_size=(96, 64))
    fewer = make(images=images.select(image_ids=images.images["image_id"][1:]))
    assert {step for step in before if before[step] != fewer[step]} == set(IMAGES.split())
    prepared = make(images=images.with_preprocessing(replace(MAMMO_CLIP, mean=0.5)))
    assert {step for step in before if before[step] != prepared[step]} == set(IMAGES.split())


@pytest.mark.parametrize(
    ("name", "steps"), [("STORE_FORMAT", "rows"), ("TABLE_FORMAT", "table"), ("OUTPUTS_FORMAT", "outputs")]
)
def test_so_do_formats_of_files_and_of_analyses_the_version(make, monkeypatch, name, steps):
    before = make()
    monkeypatch.setattr(plans, name, getattr(plans, name) + 1)
    monkeypatch.setattr(plans, "package_versions", lambda: {"mammosae-plugin": "0"})
    after = make()
    assert {step for step in before if before[step] != after[step]} == {steps, "analysis"}


def test_a_plan_lies_beside_its_result_for_people(tmp_path):
    plan = plans.of_analysis("roles", table="t", model="m", concept="Mass", settings={"n": 3})
    result = plans.keep(plan, tmp_path / f"roles-{plans.digest(plan)}.parquet")
    (file,) = tmp_path.iterdir()
    assert file.name == f"{result.name}.plan.json"
    assert json.loads(file.read_text()) == plan
