# What the package offers; each name is imported when it is asked for, because torch, SAELens and datasets take seconds.
from .about import About as About
from .name_agreement import agreement_with_notes as agreement_with_notes
from .note_tables import add_notes as add_notes
from .notes import add_note as add_note
from .notes import agreement as agreement
from .notes import read_notes as read_notes
from .notes import withdraw_notes as withdraw_notes
from .published import Findings as Findings
from .study_folder import StudyFolder as StudyFolder
