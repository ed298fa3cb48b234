"""The one definition of every measure: AUROC and intervals over patients, average precision of boxes."""
