"""Rooms one above the other, imports downwards only, and the names that others use where they look for them."""

import ast
import importlib
import inspect
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from mammosae_plugin.datasets import CONCEPTS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mammosae_plugin"

ROOMS = (
    *("cli", "study", "report", "hub", "visualization", "findings", "privacy", "interpretation", "analysis", "latents"),
    *("config", "training", "activations", "datasets", "adapters", "schema", "measures"),
)
"""From the roof to the ground; what is in none of them is ground."""
_FACES = {
    "__main__": "cli",
    "notes": "findings",
    **dict.fromkeys(("probing", "intervention", "localization", "reconstruction"), "analysis"),
}
"""Modules beside the rooms that only hand on what a room has, under the names by which others know them."""

PUBLIC = {
    "adapters": "load_mammo_clip load_mammo_clip_text text_tower MammoClipClassifier HookedVisionModel load_sae "
    "export_sae load_vision_sae "
    "vision_sae_disk_loader vision_sae_huggingface_loader UnsafeCheckpointError CheckpointFormatError",
    "datasets": "VinDrMammo make_phantoms TotalSegmentator load_images prepare_dicom",
    "activations": "embed extract_activations ActivationStore",
    "training": "train_sae train_saes train_classifier SAETraining ClassifierTraining",
    "latents": "encode_latents encode_rows LatentTable",
    "analysis": "monosemanticity activation_similarity linear_probes recovery rank_saes retrieve replication "
    "absorption splitting redundancy firing_density clarity effect_agreement",
    "interpretation": "search_images search_scores name_by_labels name_by_texts name_by_directions LatentNames",
    "probing": "class_mean_latents rank_latents",
    "intervention": "latent_group intervene sweep",
    "localization": "heatmap_boxes average_precision localize",
    "reconstruction": "reconstruction_metrics",
    "notes": "add_note agreement read_notes",
    "hub.guard": "PrivacyContext PrivacyError check_staged",
    "study": "Study run_study",
    "hub": "publish_sae publish_findings load_findings compare_findings register_releases "
    "prepare_sae prepare_findings prepare_space",
}
"""The contract: what scripts outside the project import."""


def modules() -> dict[str, Path]:
    found = {}
    files = [Path(folder) / name for folder, _, names in os.walk(PACKAGE, followlinks=True) for name in names]
    for path in sorted(path for path in files if path.suffix == ".py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(source: str) -> Iterator[tuple[str, str | None]]:
    """Every module of ours that a source imports anywhere, under TYPE_CHECKING and in functions too, and the name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if (node.module or "").split(".")[0] == PACKAGE.name:
                yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.split(".")[0] == PACKAGE.name)


def edges(name: str) -> set[str]:
    """What a module imports; of a package's face also what it hands on, which its stub says."""
    found = set()
    for module, imported in imports_of(MODULES[name].read_text()):
        full = f"{module}.{imported}"
        found.add(full if full in MODULES else module)
    stub = MODULES[name].with_suffix(".pyi")
    if stub.exists():
        froms = [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ImportFrom)]
        found |= {f"{name}.{node.module}" for node in froms}
    return found - {name}


def floor(name: str) -> int:
    """From the roof, which is the package's own face, downwards."""
    if name == PACKAGE.name:
        return -1
    room = name.split(".")[1]
    room = _FACES.get(room, room)
    return ROOMS.index(room) if room in ROOMS else len(ROOMS)


def test_imports_go_downwards_only():
    upwards = {name: {other for other in edges(name) if floor(other) < floor(name)} for name in MODULES}
    assert not {name: others for name, others in upwards.items() if others}


def test_no_modules_import_each_other_in_a_circle():
    try:
        TopologicalSorter({name: edges(name) for name in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_report_hub_and_command_line_ask_no_analysis_and_no_adapter_knows_labels():
    for name in MODULES:
        rooms = {other.split(".")[1] for other in edges(name) if "." in other}
        if name.split(".")[1:2] in (["report"], ["cli"], ["hub"]):
            assert "analysis" not in rooms, name
        if name.startswith("mammosae_plugin.privacy"):  # what may leave is told it by stagers, datasets and the schema
            assert not rooms & {"hub", "config", "training", "latents", "analysis"}, name
        if name.startswith("mammosae_plugin.adapters"):
            assert not rooms & set(ROOMS[: ROOMS.index("adapters")]), name


_PHANTOMS = ("datasets.phantoms", "datasets.phantom_findings", "datasets.phantom_pairs")
KNOW_VINDR = {"datasets.vindr", *_PHANTOMS, "study.demo", "report.paper"}
"""The reader, what is drawn in its form, the demo on that, and the paper, whose numbers are of it."""


def test_only_the_reader_of_vindr_knows_its_findings():
    """Elsewhere concepts come with a dataset, a table or findings: no name in code, no import of the list."""
    names = re.compile("|".join(name if "_" in name else rf"\A{name}\Z" for name in CONCEPTS))  # Mass is a word too
    for name, path in MODULES.items():
        if name.removeprefix("mammosae_plugin.") in KNOW_VINDR:
            continue
        tree = ast.parse(path.read_text())
        told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [one.value for one in ast.walk(tree) if isinstance(one, ast.Constant) and id(one) not in told]
        assert not [text for text in texts if isinstance(text, str) and names.search(text)], name
        if name != "mammosae_plugin.datasets":  # which offers the list, as scripts outside import it
            imported = {one for module, one in imports_of(path.read_text()) if module.endswith("vindr")}
            assert not imported & {"CONCEPTS", "VINDR_CONCEPTS"}, name


def test_no_file_is_long_without_a_reason():
    for name, path in MODULES.items():
        source = path.read_text()
        reason = "is long because" in (ast.get_docstring(ast.parse(source)) or "")
        assert source.count("\n") <= 600 or reason, name


def test_report_and_visualization_read_the_findings_and_no_file_of_results():
    for name, path in MODULES.items():
        if name.split(".")[1:2] in (["report"], ["visualization"]):
            assert not {"RESULTS_FILE", "results.json", "read_json", "read_parquet"} & set(
                re.findall(r"[\w.]+", path.read_text())
            ), name


def told_imports() -> list[tuple[str, str]]:
    """What README, docs, cards and examples import of ours."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "hub_cards").rglob("*.j2")]
    texts = [path.read_text() for path in (*pages, *(ROOT / "examples").rglob("*.py"))]
    told = set()
    for text in texts:
        for module, names in re.findall(r"^\s*from (mammosae_plugin[\w.]*) import (\([^)]*\)|[\w ,]+)", text, re.M):
            told |= {(module, name.split(" as ")[0].strip()) for name in names.strip("()").split(",") if name.strip()}
    return sorted(told)


@pytest.mark.parametrize(
    ("module", "name"),
    [*((f"mammosae_plugin.{room}", name) for room, names in PUBLIC.items() for name in names.split()), *told_imports()],
)
def test_names_that_others_use_stay_importable(module, name):
    found = importlib.import_module(module)
    if not hasattr(found, name):
        importlib.import_module(f"{module}.{name}")


def test_the_package_offers_the_main_names_itself():
    package = importlib.import_module("mammosae_plugin")
    told = {name for room, names in PUBLIC.items() if room not in ("notes", "hub.guard") for name in names.split()}
    assert told <= set(dir(package)) and told <= set(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError):
        _ = package.no_such_name


def test_the_package_shows_its_names_before_anything_heavy_is_imported():
    script = (
        "import sys, mammosae_plugin as mp; assert 'train_sae' in dir(mp);"
        "assert not {'numpy', 'pandas', 'sae_lens', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("modules", "unneeded"),
    [
        ("findings.notes privacy.context hub.pulling datasets.about", "torch sae_lens timm sklearn scipy matplotlib"),
        ("activations.store", "sae_lens timm transformer_lens sklearn"),
        ("study.done activations.store_facts distributed", "torch pandas sae_lens timm"),
        ("adapters.inspection adapters.latent_edits training", "sae_lens timm transformer_lens torchvision sklearn"),
    ],
)
def test_what_needs_no_network_imports_no_library_of_networks(modules, unneeded):
    """Else a note takes three seconds, and a look at a store six."""
    script = (
        f"import sys, importlib; [importlib.import_module('mammosae_plugin.' + name) for name in {modules.split()}];"
        f"found = set({unneeded.split()}) & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


VERBS = "monosemanticity activation_similarity recovery rank_saes retrieve replication audit froc confounders explain"
"""Main verbs of the analysis room, whether or not they exist yet: no module of it bears such a name."""


def test_no_module_bears_the_name_of_what_its_room_hands_on():
    """Else the room's name would be the function or the module, by which of them is asked for first."""
    assert not {f"mammosae_plugin.analysis.{verb}" for verb in VERBS.split()} & set(MODULES)
    for name in MODULES:
        stub = MODULES[name].with_suffix(".pyi")
        froms = (
            [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ImportFrom)]
            if stub.exists()
            else []
        )
        handed_on = {f"{name}.{alias.asname or alias.name}" for node in froms for alias in node.names}
        assert not handed_on & set(MODULES), name


def test_signatures_of_public_functions_show_their_settings():
    package = importlib.import_module("mammosae_plugin")
    functions = {name: found for name in package.__all__ if inspect.isfunction(found := getattr(package, name))}
    hidden = {
        name
        for name, function in functions.items()
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
    assert len(functions) > 20 and not hidden
    for name in functions:
        if name.startswith("publish_"):
            settings = inspect.signature(functions[name]).parameters
            prepared = inspect.signature(getattr(package, name.replace("publish", "prepare"))).parameters
            assert [*settings] == [*prepared, "dry_run"] and "repo_id" in settings


def test_every_mutant_of_the_mutation_check_can_be_made():
    """What a mutant changes must stand in its file, or `benchmarks/mutants.py` would no longer check it."""
    mutants = runpy.run_path(str(ROOT / "benchmarks" / "mutants.py"))
    assert len(mutants["MUTANTS"]) >= 30
    lost = [(mutant.file, mutant.old) for mutant in mutants["MUTANTS"] if not mutants["found_once"](mutant)]
    assert not lost and all(mutant.old != mutant.new for mutant in mutants["MUTANTS"])


PUBLIC_MODULES = [name for name in MODULES if not any(part.startswith("_") for part in name.split("."))]


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_every_public_module_says_what_it_offers(name):
    module = importlib.import_module(name)
    offered = module.__all__
    assert len(set(offered)) == len(offered)
    assert not [one for one in offered if not hasattr(module, one)]
