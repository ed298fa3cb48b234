from .boxes import average_precision as average_precision
from .roc import DeLong as DeLong
from .roc import DeLongDifference as DeLongDifference
from .roc import delong as delong
