"""Draw the pictures of docs/gallery.md, and write that page, from a finished study of phantoms.

    make demo && .venv/bin/python docs/make_gallery.py demo

The pages are looked at by Chromium (`playwright install chromium`, or CHROMIUM=/usr/bin/chromium). A study of patients
is refused: nothing of one may be in the documentation.
"""

import argparse
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote

from PIL import Image

DOCS = Path(__file__).resolve().parent
FOLDER = DOCS / "gallery"
CONCEPT, MODEL = "Mass", "finetuned"


@dataclass(frozen=True)
class Picture:
    """A picture of the gallery: its file, what is under it, and how it is drawn of a demo."""

    name: str
    title: str
    text: str
    draw: Callable[["Demo"], Image.Image]
    width: int = 900


class Demo:
    """A finished demo and a browser to look at its pages."""

    def __init__(self, folder: Path, browser: Any, scratch: Path) -> None:
        self.study, self.browser, self.scratch = folder / "study", browser, scratch
        self.config = folder / "study.yaml"
        if self.findings.study["data_kind"] != "phantom":
            raise SystemExit(f"{folder} is no study of phantoms, and pictures of patients are not drawn here")

    @cached_property
    def findings(self) -> Any:
        from mammosae_plugin.hub import load_findings

        return load_findings(self.study)

    @cached_property
    def space(self) -> str:
        from mammosae_plugin.hub import build_space

        return (build_space(self.findings, self.scratch / "space") / "index.html").as_uri()

    @cached_property
    def best(self) -> Any:
        """The row of the latent that is first for the concept."""
        all_of = self.findings.concepts
        of_concept = (all_of["concept"] == CONCEPT) & (all_of["class"] == 1)
        ranked = all_of[of_concept & (all_of["encoder"] == f"{MODEL}/{CONCEPT}")]
        return ranked[ranked["layer"] == ranked["layer"].iloc[-1]].sort_values("rank").iloc[0]

    def figure(self, name: str) -> Image.Image:
        """A figure that the study drew."""
        return Image.open(self.study / "results" / "figures" / f"{name}.png").convert("RGB")

    @cached_property
    def viewer(self) -> str:
        """Where `mammosae view` shows the study, until this process ends."""
        from mammosae_plugin.study.viewing import open_viewer

        server = open_viewer(self.config, told=lambda _: None)
        Thread(target=server.serve_forever, daemon=True).start()
        return str(server.address)

    def page(
        self, address: str, *, size: tuple[int, int] = (1100, 760), dark: bool = False, at: str = "", press: str = ""
    ) -> Image.Image:
        """The part of a page that is seen first, or from the element `at` on, after a click on `press`."""
        width, height = size
        context = self.browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        page = context.new_page()
        page.goto(address)
        page.wait_for_load_state("networkidle")
        if press:
            page.click(press)
            page.wait_for_load_state("networkidle")
        if at:
            page.wait_for_selector(at)
            page.evaluate("at => document.querySelector(at).scrollIntoView()", at)
        page.wait_for_function("[...document.images].every(image => image.complete)")
        shot = page.screenshot()
        context.close()
        return Image.open(io.BytesIO(shot)).convert("RGB")


def draw_latent(demo: Demo) -> Image.Image:
    """The strongest images of the concept's best latent that have a box, without and with heat and boxes."""
    from mammosae_plugin.analysis import choose_examples
    from mammosae_plugin.datasets import VinDrMammo
    from mammosae_plugin.findings import StudyFolder
    from mammosae_plugin.latents import LatentTable
    from mammosae_plugin.visualization.examples import draw_example

    tables = StudyFolder(demo.study).results["tables"]
    (name,) = (row["table"] for row in tables if (row["model"], row["concept"]) == (MODEL, CONCEPT))
    table, latent = LatentTable(demo.study / "work" / "latents" / name), int(demo.best["latent"])
    dataset = VinDrMammo(demo.study.parent / "phantoms", image_size=table.image_size)
    strongest = choose_examples(table, latent, n_strongest=20, n_range=0, n_healthy=0)
    shown = [one.image for one in strongest if latent in table.map_latents(one.image)][:3]  # where maps were kept
    places = {image_id: number for number, image_id in enumerate(dataset.images["image_id"])}
    tiles = []
    for row in shown:
        number = places[table.images["image_id"][row]]
        pixels, boxes = dataset.gray(number), dataset[number]["boxes"][CONCEPT].numpy()
        tiles += [Image.fromarray(pixels).convert("RGB")]
        tiles += [draw_example(pixels, table.maps([latent], row)[0], boxes).whole.convert("RGB")]
    width, height = tiles[0].size
    sheet = Image.new("RGB", ((width + 8) * len(tiles) - 8, height), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number * (width + 8), 0))
    return sheet


def of_latent(demo: Demo) -> str:
    return "#/latent/" + "/".join(quote(str(demo.best[name]), safe="") for name in ("layer", "encoder", "latent"))


PICTURES = (
    Picture(
        "latent",
        "What a latent sees",
        "The images in which the best latent of masses is strongest, one of each patient, without and with it: where "
        "it fires (the line runs at half of its largest), and in red what was drawn there. "
        "[How to see this of your own](questions/see-a-latent.md).",
        draw_latent,
    ),
    Picture(
        "report",
        "The report",
        "What `mammosae study` writes: a first page of five sentences and a page per concept, which open without a "
        "server, on screen, phone and paper. [The report](report.md).",
        lambda demo: demo.page((demo.study / "results" / "report.html").resolve().as_uri()),
    ),
    Picture(
        "interventions",
        "With and without latents, beside chance",
        "The classifier with only the best latents, and without them; the band is what as many random latents do. "
        "[How it is computed](reproducing.md).",
        lambda demo: demo.figure(f"figure_2_{CONCEPT}"),
    ),
    Picture(
        "explained",
        "One image, latent by latent",
        "`mammosae explain` takes the logit of one image apart into what each latent adds; the sum is exact. "
        "[Explain](explain.md).",
        lambda demo: demo.figure(f"explained_{MODEL}_{CONCEPT}_with_finding_1"),
        700,
    ),
    Picture(
        "lesions",
        "Lesion by lesion",
        "How many lesions a latent's peaks find at so many false positives per image, beside what they find of other "
        "patients' lesions. [Localization](localization.md).",
        lambda demo: demo.figure(f"froc_{CONCEPT}"),
    ),
    Picture(
        "space",
        "A Space: every latent",
        "What `mammosae publish space` puts on the Hub, or into a folder: all latents with their numbers. "
        "[The Space](space.md).",
        lambda demo: demo.page(demo.space),
    ),
    Picture(
        "space-latent",
        "A Space: one latent",
        "Every number of one latent beside its chance, names, notes and what it does to the classifier.",
        lambda demo: demo.page(demo.space + of_latent(demo)),
    ),
    Picture(
        "view-latent",
        "On your own machine: with images",
        "`mammosae view` shows the same pages with images, to nobody else: where a latent is strongest, over its "
        "range, and where it should be silent. "
        "[View](view.md).",
        lambda demo: demo.page(demo.viewer + of_latent(demo), size=(1100, 900), at="#images h3"),
    ),
    Picture(
        "view-image",
        "An image taken apart",
        "What each latent adds to the logit of one image; a latent that is taken off takes its share with it, at once.",
        lambda demo: demo.page(
            f"{demo.viewer}#/image?label=1&order=highest", press="#in-image tbody button", at="#photo"
        ),
    ),
    Picture(
        "space-phone",
        "The same on a phone, in the dark",
        "Pages follow the width and the colours of the reader's screen.",
        lambda demo: demo.page(demo.space + of_latent(demo), size=(390, 760), dark=True),
        390,
    ),
)


def gallery() -> str:
    """The page."""
    parts = [
        "# Gallery",
        "Pictures of what comes out, drawn by `python docs/make_gallery.py demo` from the study that `make demo` runs "
        "on phantoms: drawn mammograms, no patient.",
    ]
    for picture in PICTURES:
        parts += [f"## {picture.title}", f"![{picture.title}](gallery/{picture.name}.webp)", picture.text]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="the folder of a finished demo")
    parser.add_argument("--only", nargs="*", help="names of pictures to draw; all by default")
    arguments = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, running_browser() as browser:
        demo = Demo(arguments.demo, browser, Path(scratch))
        for picture in PICTURES:
            if not arguments.only or picture.name in arguments.only:
                image = picture.draw(demo)
                image.thumbnail((picture.width, 2000))
                image.save(FOLDER / f"{picture.name}.webp", quality=80, method=6)
    (DOCS / "gallery.md").write_text(gallery())


@contextmanager
def running_browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=os.environ.get("CHROMIUM"), args=["--no-sandbox"])
        yield browser
        browser.close()


if __name__ == "__main__":
    main()
