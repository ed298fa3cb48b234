"""What pages show of a layer's latents beside each other, kept in the study's work folder: neighbours and a map."""

__all__ = ["map_of_layer", "neighbours_of_layer"]

import logging
from typing import Any

import numpy as np
import pandas as pd

from mammosae_plugin.analysis.neighbours import (
    N_NEIGHBOURS,
    decoder_neighbours,
    firing_neighbours,
    map_latents,
)
from mammosae_plugin.files import read_parquet, write_parquet
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.progress import progress
from mammosae_plugin.schema.pages import PAGE_SCHEMAS
from mammosae_plugin.study import plans
from mammosae_plugin.study.images import TEST
from mammosae_plugin.study.layer import LayerStudy

logger = logging.getLogger(__name__)

_MAPPED = 5000  # latents that t-SNE places, in about half a minute; the others lie between these
_PLACES = ["latent", "x", "y"]


def neighbours_of_layer(layer: LayerStudy) -> pd.DataFrame:
    """The neighbours of every latent that fires, of each encoder: encoder, and the columns that are kept of them."""
    settings = {"n": N_NEIGHBOURS, "seed": layer.config.seed}
    frames = []
    groups, to = layer.study.encoder_groups, layer.work / "analyses"
    for group in progress(groups, description="neighbours", unit="encoder", to=to, delay=2, leave=False):
        pair = next(iter(group.heads))

        def compute(table: LatentTable, _pair: Any) -> pd.DataFrame:
            together = firing_neighbours(table, split=TEST, **settings).assign(kind="together")
            directions = layer.sae.W_dec.detach().float().cpu().numpy()
            near = decoder_neighbours(directions, table.live_latents(TEST), **settings).assign(kind="decoder")
            return pd.concat([frame for frame in (together, near) if len(frame)] or [near], ignore_index=True)

        found = layer.kept("neighbours", pair, settings, compute).drop(columns=["model", "concept"])
        frames.append(found.assign(encoder=layer.study.name_of(group)))
    found = pd.concat(frames, ignore_index=True)
    counts = [name for name in PAGE_SCHEMAS["neighbours"].names if name.startswith("n_")]
    return found.reindex(columns=PAGE_SCHEMAS["neighbours"].names[1:]).fillna(dict.fromkeys(counts, 0))


def map_of_layer(layer: LayerStudy) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The places of the latents that fire under any encoder (latent, x, y), and how far the map can be trusted.

    Both are empty where too few fire.
    """
    tables = {table.folder.name: table for table in layer.tables.values()}
    settings = {"most": _MAPPED, "seed": layer.config.seed}
    plan = plans.of_analysis("latent-map", table="+".join(sorted(tables)), model="", concept="", settings=settings)
    path = plans.keep(plan, layer.work / "analyses" / f"latent-map-{plans.digest(plan)}.parquet")
    if not path.exists():
        logger.info("a map of latents at %s", layer.name)
        fires = np.zeros(layer.sae.cfg.d_sae, dtype=np.int64)
        for table in tables.values():
            rows = np.flatnonzero((table.images["split"] == TEST).to_numpy())
            fires += np.bincount(table.max_latents[rows].indices, minlength=len(fires))
        live = np.argsort(-fires, kind="stable")[: np.count_nonzero(fires)]
        found = map_latents(layer.sae.W_dec.detach().float().cpu().numpy(), live, **settings)
        frame = pd.DataFrame(columns=_PLACES) if found is None else found.places.assign(**found.facts())
        write_parquet(path, frame)
    frame = read_parquet(path)
    facts = frame.drop(columns=_PLACES).head(1).to_dict("records")
    return frame[_PLACES], {str(name): value for name, value in (facts[0] if facts else {}).items()}
