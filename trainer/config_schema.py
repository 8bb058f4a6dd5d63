"""The JSON schema of the configuration, by which editors complete and check its YAML."""

from typing import Any

from mixgym.trainer.config import RunConfig

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TITLE = "The configuration of a mixgym run"


def config_schema() -> dict[str, Any]:
    """The schema: what :func:`mixgym.trainer.config.load_config` accepts, with every description.

    Checks that need more than one key are not in it: the commands make them.
    """
    schema = RunConfig.model_json_schema()
    # what a run folder's config.yaml has, and what is by the model where it is null
    schema["properties"]["versions"] = {"type": "object", "description": "ignored when read"}
    rate = schema["$defs"]["TrainingOptions"]["properties"]["learning_rate"]
    bounds = {key: rate.pop(key) for key in ("type", "exclusiveMinimum") if key in rate}
    rate["anyOf"] = [bounds, {"type": "null"}]
    return {"$schema": DIALECT, **schema, "title": _TITLE}
