"""Who decides: rules, and any algorithm of Stable-Baselines3, behind one registry."""

if not __name__.startswith("mixgym."):
    raise ImportError(
        f"this folder is the package mixgym.{__name__}: write `import mixgym.{__name__}`, "
        "or the code would be loaded twice"
    )
