"""Share what two studies found, with a reader's note, compare them, and make a page to browse both.

    python examples/share_and_compare_findings.py STUDY OTHER-STUDY YOUR-NAME/findings YOUR-NAME/other-findings

STUDY and OTHER-STUDY are output folders of `mammosae study` (or `mammosae demo`) that used the same SAE. Without
`--confirm` nothing is sent: what would go out is printed, and the folders themselves are compared.
"""

import argparse
from pathlib import Path

from mammosae_plugin.findings.notes import add_note
from mammosae_plugin.hub import build_space, compare_findings, load_findings, prepare_findings


def main() -> None:
    """Add a note, publish both, load them again, compare, and build the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs=2, type=Path, help="output folders of two studies")
    parser.add_argument("repos", nargs=2, help="owner/name on the Hub, one per study")
    parser.add_argument("--licence", default="cc-by-4.0", help="of the findings")
    parser.add_argument("--confirm", action="store_true", help="send them")
    parser.add_argument("--page", type=Path, default=Path("page"), help="where the page goes")
    arguments = parser.parse_args()

    # What a reader says about the best latent travels with the findings.
    ranked = load_findings(arguments.studies[0]).concepts.dropna(subset=["rank"])
    best = ranked[ranked["class"] == 1].sort_values("rank", kind="stable").iloc[0]
    add_note(
        arguments.studies[0],
        int(best["latent"]),
        "bright where the tissue is dense",
        author="reader A",
        layer=best["layer"],
        label="artefact",
        confidence=2,
    )

    for study, repo in zip(arguments.studies, arguments.repos, strict=True):
        publication = prepare_findings(study, repo, licence=arguments.licence, tag="v1")
        print(publication.send().as_text() if arguments.confirm else publication.describe())

    places = arguments.repos if arguments.confirm else arguments.studies
    findings, other = (load_findings(place) for place in places)
    print(compare_findings(findings, other, top=5).as_text())

    page = build_space(findings, arguments.page, compare=other)
    print(f"open {page / 'index.html'}; `mammosae publish space` puts it on the Hub")


if __name__ == "__main__":
    main()
