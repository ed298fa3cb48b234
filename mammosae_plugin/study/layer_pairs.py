"""What a layer's latents answer to: its tables of counterfactual pairs, under the SAE and under an untrained one."""

__all__ = ["LayerPairs"]

from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from sae_lens import SAE

from mammosae_plugin import distributed
from mammosae_plugin.activations import extract_activations
from mammosae_plugin.adapters.sae_settings import sae_settings
from mammosae_plugin.analysis import PairResponses, pair_places, pair_responses
from mammosae_plugin.datasets import StudyDataset
from mammosae_plugin.files import read_parquet, write_parquet
from mammosae_plugin.latents import LatentTable, encode_latents
from mammosae_plugin.latents.encoding import is_whole_table
from mammosae_plugin.study import plans
from mammosae_plugin.study.inputs import EncoderGroup
from mammosae_plugin.study.layer_tables import LayerTables
from mammosae_plugin.training.controls import untrained_like
from mammosae_plugin.training.saving import CFG, save_sae
from mammosae_plugin.version import __version__

_UNTRAINED = 2  # as many as it takes to say how an untrained SAE scores beside another
_ROWS, _IMAGES = 8192, 64  # by which an untrained SAE is set, and of how many images they are
_OF_BEST = ("response", "response_low", "response_high", "share_changed", "q", "sign", "selectivity",
            "selectivity_low", "selectivity_high")  # fmt: skip
_OF_PLACE = ("inside", "inside_low", "inside_high", "inside_chance", "n_inside")


class LayerPairs(LayerTables):
    """A layer's SAE and tables, with those of the study's pairs."""

    def encode(self, group: EncoderGroup) -> None:
        """Make the latents table of the classifiers on one encoder, and those of the pairs."""
        super().encode(group)
        if self.config.analysis.pairs is not None:
            _ = self._pair_table(group, self.sae), self._untrained_tables(group)

    def _images_of_pairs(self, group: EncoderGroup, ids: Iterable[str] | None = None) -> StudyDataset:
        pair_images = self.study.pair_images
        assert pair_images is not None  # it is asked for
        return pair_images.dataset.select(image_ids=ids).with_preprocessing(group.preprocessing)

    def _pair_plan(self, group: EncoderGroup, sae: SAE[Any], images: StudyDataset) -> plans.Plan:
        pair_images = self.study.pair_images
        return plans.of_encoding(
            self.config,
            hook_name=self.hook_name,
            encoder=group.encoder,
            sae=sae.state_dict(),
            sae_settings=sae_settings(sae),
            images=images,
            content="" if pair_images is None else pair_images.content,
        )

    def _pair_table(
        self,
        group: EncoderGroup,
        sae: SAE[Any],
        *,
        map_latents: Sequence[int] = (),
        image_ids: Iterable[str] | None = None,
    ) -> LatentTable:
        images = self._images_of_pairs(group, image_ids)
        plan = {**self._pair_plan(group, sae, images), "maps": {"latents": list(map_latents)}}
        folder = plans.keep(plan, self.work / "pairs" / f"{group.model}-{plans.digest(plan)}")
        if distributed.on_main(partial(is_whole_table, folder)):
            return LatentTable(folder)
        return encode_latents(
            self._hooked(group),
            sae,
            images,
            folder,
            heads={},
            map_latents=map_latents,
            map_splits=sorted(images.images["split"].unique()),
            map_images="all",
            peaks=0,
            device=self.config.device,
            batch_size=self.config.batch_size,
            num_workers=self.config.num_workers,
        )

    def _untrained_tables(self, group: EncoderGroup) -> list[LatentTable]:
        settings = self.config.analysis.pairs
        asked = settings is not None and settings.untrained
        return [self._pair_table(group, sae) for sae in self._untrained(group)] if asked else []

    def _untrained(self, group: EncoderGroup) -> list[SAE[Any]]:
        """Untrained SAEs that fire as often as the layer's on a group's rows of the pairs; kept on disk."""
        images = self._images_of_pairs(group)
        seeds = [self.config.seed + number for number in range(_UNTRAINED)]
        folders = []
        for seed in seeds:
            plan = {
                **self._pair_plan(group, self.sae, images),
                "step": "untrained",
                "seed": seed,
                "mammosae_plugin": __version__,
            }
            folders.append(plans.keep(plan, self.work / "pairs" / f"untrained-{plans.digest(plan)}"))
        with distributed.main_first():
            if not all((folder / CFG).exists() for folder in folders):
                rows = self._rows_of_pairs(group, images)
                for seed, folder in zip(seeds, folders, strict=True):
                    save_sae(untrained_like(self.sae, rows, seed=seed), folder)
            return [SAE.load_from_disk(folder) for folder in folders]

    def _rows_of_pairs(self, group: EncoderGroup, images: StudyDataset) -> torch.Tensor:
        """(n, d_in) rows of the layer, of some of the images."""
        ids = images.images["image_id"].to_numpy()
        some = images.select(image_ids=ids[:: max(1, len(ids) // _IMAGES)].tolist())
        with TemporaryDirectory(dir=self.work) as folder:
            store = extract_activations(
                self._hooked(group),
                some,
                folder,
                hook_name=self.hook_name,
                count=max(1, _ROWS // len(some)),
                seed=self.config.seed,
                device=self.config.device,
                batch_size=self.config.batch_size,
            )
            return store.take(np.arange(store.n_rows)).float()

    @cached_property
    def answers(self) -> pd.DataFrame:
        """What latents answer to: a row per encoder and attribute of the pairs; none where no pairs are given."""
        if self.config.analysis.pairs is None:
            return pd.DataFrame()
        return pd.concat([self._answers(group) for group in self.study.encoder_groups], ignore_index=True)

    def _answers(self, group: EncoderGroup) -> pd.DataFrame:
        settings, images = self.config.analysis.pairs, self.study.pair_images
        assert settings is not None and images is not None
        table, untrained = self._pair_table(group, self.sae), self._untrained_tables(group)
        given: dict[str, Any] = {
            "n_bootstrap": settings.n_bootstrap,
            "min_patients": self.config.analysis.min_patients,
            "seed": self.config.seed,
        }
        plan = {
            "step": "pairs",
            "tables": [one.folder.name for one in (table, *untrained)],
            "pairs": images.fingerprint,
            "settings": {**given, **settings.model_dump(include={"statistic", "n_permutations"})},
            "mammosae_plugin": __version__,
        }
        path = plans.keep(plan, self.work / "analyses" / f"pairs-{group.model}-{plans.digest(plan)}.parquet")
        if not path.exists():
            found = pair_responses(
                table,
                images.pairs,
                statistic=settings.statistic,
                untrained=untrained,
                n_permutations=settings.n_permutations,
                **given,
            )
            write_parquet(path.with_name(f"pair-latents-{path.name.removeprefix('pairs-')}"), found.latents)
            write_parquet(path, _told(found, self._places(group, found, images.pairs, given)))
        frame = read_parquet(path)
        frame.insert(0, "encoder", self.study.name_of(group))
        return frame

    def _places(
        self, group: EncoderGroup, found: PairResponses, pairs: pd.DataFrame, given: dict[str, Any]
    ) -> pd.DataFrame:
        """Which share of the change of each attribute's best latent lies in the boxes; only their maps are kept."""
        best = found.attributes.dropna(subset=["best_latent"])
        boxed = pairs[pairs["xmin"].notna() & pairs["attribute"].isin(best["attribute"])]
        if not len(boxed):
            return pd.DataFrame(columns=["attribute", "latent", *_OF_PLACE])
        latents = sorted({*best.loc[best["attribute"].isin(boxed["attribute"]), "best_latent"].astype(int)})
        ids = sorted({*boxed["image_id_a"].astype(str), *boxed["image_id_b"].astype(str)})
        return pair_places(self._pair_table(group, self.sae, map_latents=latents, image_ids=ids), boxed, **given)


def _told(found: PairResponses, places: pd.DataFrame) -> pd.DataFrame:
    """A row per attribute: how many latents answer, the best of them and where, and the chances beside."""
    of_best = found.latents[["attribute", "latent", *_OF_BEST]]
    told = found.attributes.drop(columns=[name for name in _OF_BEST if name in found.attributes])
    for frame in (of_best, places[["attribute", "latent", *_OF_PLACE]]):
        renamed = frame.rename(columns={"latent": "best_latent"}).astype({"best_latent": "Int64", "attribute": object})
        told = told.merge(renamed, on=["attribute", "best_latent"], how="left")
    shares = {"share": found.share, "share_mixed": found.share_mixed, "share_permuted": found.share_permuted}
    return told.assign(**shares, share_untrained=found.share_untrained)
