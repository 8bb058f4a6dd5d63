"""What vector environments have in common that are one object rather than many."""

from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from mixgym.envs.errors import check_reset_options


class OneObjectVecEnv(VecEnv):
    """Attributes and methods are those of the object, the same for every environment in it."""

    render_mode = None  # before the base class looks for it

    def close(self) -> None:
        """Nothing to close."""

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """There are no options of a reset.

        Raises:
            MixgymError: for any.
        """
        for own in options if isinstance(options, list) else [options]:
            check_reset_options(own)
        super().set_options(options)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The attribute, once per environment."""
        return [getattr(self, attr_name)] * self._count(indices)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set the attribute, for all environments."""
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any
    ) -> list[Any]:
        """Call the method once; its answer, once per environment."""
        answer = getattr(self, method_name)(*args, **kwargs)
        return [answer] * self._count(indices)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Never wrapped; episode statistics are in ``info`` all the same."""
        return [False] * self._count(indices)

    def _count(self, indices: Any) -> int:
        return len(list(self._get_indices(indices)))
