"""``python -m mixgym`` is the command line."""

from mixgym.trainer.cli.main import main

if __name__ == "__main__":
    main()
