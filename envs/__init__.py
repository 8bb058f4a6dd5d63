"""The world: sources and strata, learners, packing, rewards and the Gymnasium environments."""

if not __name__.startswith("mixgym."):
    raise ImportError(
        f"this folder is the package mixgym.{__name__}: write `import mixgym.{__name__}`, "
        "or the code would be loaded twice"
    )

from mixgym.envs.registration import register_environments

__all__ = ["register_environments"]
