"""Public collections whose files a mapping alone cannot read: several tables joined, what only names or headers tell.

Each module registers a reader, which takes the collection's folder and gives one table of text, a row per annotation,
as the collection has it; the preset of the same name (`presets/`) says what is read from it. Nothing but tables,
contours, names of files and DICOM headers is read.
"""

__all__ = ["cbis_ddsm", "cmmd", "csaw_cc", "embed", "inbreast", "rsna", "vindr"]

from mammosae_plugin.datasets.collections import cbis_ddsm, cmmd, csaw_cc, embed, inbreast, rsna, vindr
