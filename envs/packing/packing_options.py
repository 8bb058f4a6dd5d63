"""The options of packing, as validated plain data (``data.packing``)."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from mixgym.envs.packing.packers import PACKERS
from mixgym.envs.strict_options import Options


def _known_packer(name: str) -> str:
    PACKERS.find(name)
    return name


PackerName = Annotated[str, AfterValidator(_known_packer)]
NormaliserName = Literal[
    "token",
    "ave_token",
    "ave_token_printed",
    "token_mean_per_replica",
    "sample_mean",
    "sum",
    "longalign",
]


class GroupOptions(Options):
    """One range of lengths, and how it is trained."""

    length: int = Field(ge=1, description="tokens in a pack; longer rows go to the next group")
    degree: int = Field(1, ge=1, description="processes that share a pack (sequence parallelism)")
    checkpointed: int = Field(
        0, ge=0, description="layers whose activations are recomputed in the backward pass"
    )


class PackingOptions(Options):
    """How the rows of an interval become packs and steps."""

    groups: Literal["one", "auto"] | tuple[GroupOptions, ...] = Field(
        "one",
        description="one: packs of max_length; auto: lengths and degrees that the cost model finds "
        "fastest; or a list, short to long",
    )
    packer: PackerName = Field("best_fit_decreasing", description="see: mixgym list packers")
    balance: Literal["auto", "sort", "none"] = Field(
        "auto",
        description="sort: packs of like attention work share a step, in whole micro-steps of the "
        "processes; none: at random; auto: sorted with groups of several lengths, at random "
        "without, and the same steps for any number of processes",
    )
    window: int | None = Field(
        None, ge=1, description="steps inside which packs are sorted; null: the whole interval"
    )
    fill: float = Field(
        0.25,
        ge=0,
        le=1,
        description="share of the shorter groups' tokens that may fill longer packs, at most",
    )
    warm_up: int = Field(
        0, ge=0, description="first steps of the run that the shortest group alone is put in front"
    )
    pool: Literal["interval", "run"] = Field(
        "interval",
        description="rows that are packed together; run: all at once, for schedules that do not "
        "change",
    )
    normaliser: NormaliserName = Field(
        "token", description="what a token counts for in the loss of a step; see README"
    )
    hardware: str = Field(
        "cpu-core",
        description="machine of the cost model: a stated one, or a JSON file of mixgym profile",
    )
