"""The Django app: registers the check of the keep-set's models."""

from django.apps import AppConfig
from django.core import checks

from fsworker.contrib.django.keep import check_registered


class FSWorkerConfig(AppConfig):
    """``"fsworker.contrib.django"`` in ``INSTALLED_APPS``."""

    name = "fsworker.contrib.django"
    label = "fsworker"
    verbose_name = "fsworker"

    def ready(self) -> None:
        """Have ``manage.py check`` look at the models."""
        checks.register(check_registered, checks.Tags.models)
