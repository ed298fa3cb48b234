"""What is known of a dataset as a whole: its name, whose it is, how to cite it, whether its rows may be passed on."""

__all__ = ["DatasetAbout", "images_called", "KNOWN", "PHANTOM_ID", "PHANTOMS", "VINDR_MAMMO"]

from collections.abc import Sequence
from dataclasses import dataclass

from mammosae_plugin.errors import InputError


@dataclass(frozen=True)
class DatasetAbout:
    """A dataset's name and terms, which reports, cards and the privacy rules take from here.

    Attributes:
        name: Its short name in metadata and file names, such as "vindr"; lower case.
        title: Its name for readers, such as "VinDr-Mammo".
        citation: How to cite it; None where nothing is to be cited.
        licence: The licence of its images; None where none is known.
        url: Where its terms are.
        restricted: Whether its images and rows per image may not be passed on, or only under a licence that says so.
        why: Why they may not, in a clause; empty where they may.
        licence_words: What the name of a licence under which rows may go out must contain, in lower case.

    Raises:
        InputError: The name is no short name, or the title is empty.
    """

    name: str
    title: str
    citation: str | None = None
    licence: str | None = None
    url: str | None = None
    restricted: bool = True
    why: str = ""
    licence_words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the names, which files bear."""
        if not self.name or not all(letter.isascii() and (letter.isalnum() or letter in "-_.") for letter in self.name):
            raise InputError(f"a dataset's name is {self.name!r}; give letters, digits and -_. such as 'my-clinic'")
        if not self.title.strip():
            raise InputError(f"the title of the dataset {self.name} is empty; say how readers know it")


VINDR_MAMMO = DatasetAbout(
    name="vindr",
    title="VinDr-Mammo",
    citation="H. T. Nguyen, H. Q. Nguyen, H. H. Pham, K. Lam, L. T. Le, M. Dao, V. Vu. VinDr-Mammo: A large-scale "
    "benchmark dataset for computer-aided diagnosis in full-field digital mammography. Scientific Data 10, 277, 2023.",
    licence="PhysioNet Restricted Health Data License 1.5.0",
    url="https://physionet.org/content/vindr-mammo/",
    why="its users have signed not to share the data, and a row per image is data",
    licence_words=("physionet", "1.5.0"),
)

RSNA_SCREENING = DatasetAbout(
    name="rsna",
    title="RSNA screening mammography",
    licence="RSNA Screening Mammography competition rules",
    url="https://www.kaggle.com/competitions/rsna-breast-cancer-detection/rules",
    why="its competition rules forbid passing the data on, and a row per image is data",
    licence_words=("rsna",),
)

CBIS_DDSM = DatasetAbout(
    name="cbis-ddsm",
    title="CBIS-DDSM",
    citation="R. S. Lee, F. Gimenez, A. Hoogi, K. K. Miyake, M. Gorovoy, D. L. Rubin. A curated mammography data set "
    "for use in computer-aided detection and diagnosis research. Scientific Data 4, 170177, 2017.",
    licence="CC BY 3.0",
    url="https://www.cancerimagingarchive.net/collection/cbis-ddsm/",
    why="it is passed on under its own licence, with its authors named, and a row per image is data",
    licence_words=("cc", "by"),
)

INBREAST = DatasetAbout(
    name="inbreast",
    title="INbreast",
    citation="I. C. Moreira, I. Amaral, I. Domingues, A. Cardoso, M. J. Cardoso, J. S. Cardoso. INbreast: toward a "
    "full-field digital mammographic database. Academic Radiology 19(2), 236-248, 2012.",
    licence="INbreast agreement, for research only",
    url="https://doi.org/10.1016/j.acra.2011.09.014",
    why="its hospital gave it for research to those who asked, and a row per image is data",
    licence_words=("inbreast",),
)

EMBED = DatasetAbout(
    name="embed",
    title="EMBED",
    citation="J. J. Jeong et al. The EMory BrEast imaging Dataset (EMBED): a racially diverse, granular dataset of 3.4 "
    "million screening and diagnostic mammographic images. Radiology: Artificial Intelligence 5(1), e220047, 2023.",
    licence="EMBED research use agreement, non-commercial",
    url="https://github.com/Emory-HITI/EMBED_Open_Data",
    why="its users have agreed neither to share the data nor to release models, weights or embeddings made with them",
    licence_words=("embed",),
)

CMMD = DatasetAbout(
    name="cmmd",
    title="CMMD",
    citation="C. Cui, L. Li, H. Cai, Z. Fan, L. Zhang, T. Dan, J. Li, J. Wang. The Chinese Mammography Database "
    "(CMMD): an online mammography database with biopsy confirmed types for machine diagnosis of breast. The Cancer "
    "Imaging Archive, 2021, doi:10.7937/tcia.eqde-4b16.",
    licence="CC BY 4.0",
    url="https://www.cancerimagingarchive.net/collection/cmmd/",
    why="it is passed on under its own licence, with its authors named, and a row per image is data",
    licence_words=("cc", "by"),
)

CSAW_CC = DatasetAbout(
    name="csaw-cc",
    title="CSAW-CC",
    citation="F. Strand. CSAW-CC (mammography): a dataset for AI research to improve screening, diagnostics and "
    "prognostics of breast cancer. Swedish National Data Service, 2022, doi:10.5878/45vm-t798.",
    licence="CSAW-CC terms of access of the Swedish National Data Service",
    url="https://doi.org/10.5878/45vm-t798",
    why="its users have agreed not to share the data, and a row per image is data",
    licence_words=("csaw",),
)

PHANTOMS = DatasetAbout(name="phantom", title="generated phantom images", restricted=False)
"""Images that were drawn: of no patient, and anybody's."""
PHANTOM_ID = "phantom_"
"""How the ids of phantom patients and images begin, and those of no hospital."""

_COLLECTIONS = (VINDR_MAMMO, RSNA_SCREENING, CBIS_DDSM, INBREAST, EMBED, CMMD, CSAW_CC)
KNOWN = {about.name: about for about in (*_COLLECTIONS, PHANTOMS)}
"""The collections whose terms this package knows, by their short names."""
_MAMMOGRAPHY = {about.name for about in _COLLECTIONS}


def images_called(names: Sequence[str]) -> str:
    """What readers are told that the images of datasets of these names are; of other collections only that they are."""
    if names and set(names) <= {PHANTOMS.name}:
        return "phantom images"
    return "mammograms" if names and set(names) <= {PHANTOMS.name, *_MAMMOGRAPHY} else "images"
