"""The options of one data set of the mixture, ``sources.NAME`` of a configuration."""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from mixgym.envs.sources.rows.formats import AUTO, FORMATS
from mixgym.envs.strict_options import Options

Paths = str | list[str]
Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class SourceOptions(Options):
    """One data set of the mixture."""

    path: Paths | None = Field(
        None,
        description="a file, a folder with train/valid/test files or shards, a folder of datasets' "
        "save_to_disk, a glob, or a list of these; .jsonl, .json, .jsonl.gz, .jsonl.zst, .parquet, "
        ".csv, .tsv, .arrow",
    )
    hub: str | None = Field(
        None, description="name of a data set on the hub instead, or a folder laid out like one"
    )
    config: str | None = Field(None, description="configuration of the hub's data set")
    split: str | None = Field(
        None,
        description="split that is trained on, of the hub or of save_to_disk; null: train, with "
        "validation and test held out where there are such splits",
    )
    revision: str | None = Field(None, description="branch, tag or commit of the hub's data set")
    columns: dict[str, str] = Field(
        default={},
        description="column of the rows -> the name that it would have in a known format",
    )
    embedded: str | None = Field(None, description="name of a generated task instead of a path")
    rows: int | None = Field(None, ge=1, description="rows to generate (embedded sources only)")
    reward: Paths | None = Field(
        None, description="files of the reward split, if it is not to be cut"
    )
    select: Paths | None = Field(None, description="files of the select split")
    test: Paths | None = Field(None, description="files of the test split")
    format: str = Field(
        "auto",
        description="of the rows, see: mixgym list row-formats; auto: the one that most rows fit",
    )
    target: Weight = Field(1.0, description="weight in rewards and evaluation; 0: a pool only")
    train: bool = Field(True, description="false: the source is a target only, never trained on")
    max_epochs: float | None = Field(None, gt=0, description="cap on passes over the rows")

    @field_validator("format")
    @classmethod
    def _known_format(cls, name: str) -> str:
        if name != AUTO:
            FORMATS.find(name)
        return name

    @model_validator(mode="after")
    def _one_origin(self) -> "SourceOptions":
        given = sum(origin is not None for origin in (self.path, self.hub, self.embedded))
        if given == 0 or (given > 1 and self.hub is None):
            raise ValueError("give either path or embedded")
        if given > 1:
            raise ValueError("give one of path, hub and embedded")
        if self.hub is None and (self.config is not None or self.revision is not None):
            raise ValueError("config and revision are of a data set of the hub: give hub")
        if self.split is not None and self.embedded is not None:
            raise ValueError("split is for data sets; a generated task has none")
        if self.columns and self.embedded is not None:
            raise ValueError("columns is for files; a generated task's are known")
        if self.rows is not None and self.embedded is None:
            raise ValueError("rows is for embedded sources; a file's rows are all read")
        return self
