# What the package offers; each name is imported when it is asked for, because torch, SAELens and datasets take seconds.
from .context import PrivacyContext as PrivacyContext
from .context import PrivacyError as PrivacyError
from .guard import check_staged as check_staged
from .sending import permit_sending as permit_sending
