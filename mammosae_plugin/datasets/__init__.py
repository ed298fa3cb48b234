"""Images with labels and boxes: kinds of datasets, DICOM, phantoms, preprocessing, screening of bad images."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
