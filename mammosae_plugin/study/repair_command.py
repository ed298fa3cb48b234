"""`mammosae repair`: a classifier of a finished study without some of its latents, and a page that says what it did."""

__all__ = ["repair_study"]

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import write_json, write_text
from mammosae_plugin.own_files import empty_staging, replace_files, require_own
from mammosae_plugin.report.repair import froc_sentences, performance_text, repair_page
from mammosae_plugin.study.finished import finished_layer
from mammosae_plugin.study.repairing import Kind, checked_output, repair
from mammosae_plugin.study.study import Study


def repair_study(
    file: Path | None,
    latents: Sequence[int],
    output: Path,
    *,
    settings: Sequence[str] = (),
    scale: float = 0.0,
    kind: Kind = "exact",
    model: str | None = None,
    concept: str | None = None,
    layer: str | None = None,
    group: Sequence[str] = (),
    split: str = "test",
    froc: bool = False,
) -> str:
    """Repair a classifier of a finished study; the file, a page and JSON beside it. Returns text for the terminal.

    Args:
        file: as for `finished_layer`.
        latents: those to remove or scale.
        output: the classifier's file; the others have its name and end in .html and .json. What an earlier run wrote
            there is replaced, and renamed where it was edited.
        settings: as for `finished_layer`.
        scale: as for `repair`.
        kind: as for `repair`.
        model: as for `finished_layer`.
        concept: as for `finished_layer`.
        layer: as for `finished_layer`.
        group: as for `repair`.
        split: as for `repair`.
        froc: as for `repair`.

    Raises:
        InputError: as `finished_layer` and `repair`; something of another's lies at `output`, or that is an input of
            the study, or inside its work or results.
    """
    output = checked_output(output, kind)
    chosen = finished_layer(file, settings, model=model, concept=concept, layer=layer)
    study, config = chosen.study, chosen.study.config
    written = [output.with_suffix(ending) for ending in (output.suffix, ".html", ".json")]
    record = output.with_name(f".{output.stem}.mammosae-repair.json")
    _require_free(written, study)
    require_own(written, record)
    images = study.split(split)
    done = repair(
        chosen.table,
        study.classifier(chosen.pair),
        chosen.layer.sae,
        latents,
        head=chosen.pair.concept,
        scale=scale,
        kind=kind,
        group=group,
        split=split,
        unit=chosen.layer.unit,
        images=images,
        froc=froc,
        n_bootstrap=config.analysis.n_bootstrap,
        min_patients=config.analysis.min_patients,
        seed=config.seed,
        device=config.device,
        batch_size=config.batch_size,
    )
    about = {
        **done.describe(),
        "model": chosen.pair.model,
        "layer": chosen.found.name,
        "split": split,
        "group": [*group],
    }
    rows = done.performance.astype(object).where(done.performance.notna(), None).to_dict("records")
    numbers = {"repair": about, "file": output.name, "performance": rows, "difference": dict(done.difference)}
    numbers["firing"] = done.firing.to_dict("records")
    curves = [] if done.froc is None else done.froc.astype(object).where(done.froc.notna(), None).to_dict("records")
    page = repair_page(
        about,
        done.performance,
        done.difference,
        [*froc_sentences(done.froc), *done.notes],
        chosen.layer.unit,
        n_bootstrap=config.analysis.n_bootstrap,
        min_patients=config.analysis.min_patients,
    )
    staged = empty_staging(output.parent)
    try:
        done.save(staged / output.name)
        write_json(staged / f"{output.stem}.json", {**numbers, "froc": curves, "notes": list(done.notes)})
        write_text(staged / f"{output.stem}.html", page)
        replace_files(staged, output.parent, record=record)
    finally:
        shutil.rmtree(staged)
    places = ", ".join(map(str, written))
    return "\n".join(
        [performance_text(done.performance), *froc_sentences(done.froc), *done.notes, f"written: {places}"]
    )


def _require_free(written: Sequence[Path], study: Study) -> None:
    """Refuse places that are a study's own.

    Raises:
        InputError: one is an input of the study, or lies inside of one or of the study's work or results.
    """
    own = [study.work, study.results_folder]
    inputs = [
        one.resolve()
        for one in _paths(study.config.model_dump(exclude={"output"}))
        if not study.output.resolve().is_relative_to(one.resolve())  # a folder that the study lies in
    ]
    for path in (one.resolve() for one in written):
        for folders, what in ((own, "the study's own folder"), (inputs, "an input of the study")):
            for folder in (one.resolve() for one in folders):
                if path.is_relative_to(folder):
                    where = "is" if path == folder else f"is in {folder},"
                    raise InputError(f"{path} {where} {what}; name another place")


def _paths(value: Any) -> Iterator[Path]:
    """All paths in settings."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, dict | list | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _paths(one)
