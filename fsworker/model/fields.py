"""What requests and outcomes are made of: frozen, strict models, and the fields that both have."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from fsworker.model.names import Hash


class Model(BaseModel):
    """Frozen, without conversions, and without fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


HashField = Annotated[Hash, Field(pattern=r"^[0-9a-f]{40}$", min_length=40, max_length=40)]
"""A :data:`Hash` in a model."""
