"""The base of every section of the configuration."""

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Base of every section: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
