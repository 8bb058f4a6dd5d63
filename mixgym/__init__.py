"""mixgym: data scheduling for LLM fine-tuning, framed as reinforcement learning.

Importing this package registers the environments with Gymnasium (see
:func:`mixgym.envs.register_environments`); nothing heavy is imported before it is used.
"""

from mixgym.envs import register_environments

__version__ = "0.1.0"

register_environments()
