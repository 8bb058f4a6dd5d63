"""What people run: configuration, command line, fine-tuning runs and their records."""

if not __name__.startswith("mixgym."):
    raise ImportError(
        f"this folder is the package mixgym.{__name__}: write `import mixgym.{__name__}`, "
        "or the code would be loaded twice"
    )
