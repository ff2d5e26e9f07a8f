"""An application's side of fsworker: :class:`Client`, and what it can ingest."""

from fsworker.client.facade import Client
from fsworker.client.options import Specification
from fsworker.client.source import Source

__all__ = ["Client", "Source", "Specification"]
