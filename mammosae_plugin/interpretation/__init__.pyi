# What the room offers; each name is imported when it is asked for, because torch, SAELens and datasets take seconds.
from .answers import parse_ranking as parse_ranking
from .by_directions import name_by_directions as name_by_directions
from .by_labels import name_by_labels as name_by_labels
from .by_labels import name_by_labels_of as name_by_labels_of
from .by_texts import name_by_texts as name_by_texts
from .by_texts import name_by_texts_of as name_by_texts_of
from .judges import Judge as Judge
from .judges import LabelJudge as LabelJudge
from .judges import ModelJudge as ModelJudge
from .judges import TextJudge as TextJudge
from .judging import judge_names as judge_names
from .judging import plan_judging as plan_judging
from .judging import told_scores as told_scores
from .named_files import read_names as read_names
from .names import LatentNames as LatentNames
from .terms import Terms as Terms
from .terms import load_terms as load_terms
