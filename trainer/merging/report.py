"""What a merge did, or a dry run would do."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class MergeReport:
    """The result of a merge.

    Attributes:
        out: The output folder.
        method: The method's name.
        models: The models' folders, in order.
        base: The base's folder.
        is_dry_run: Whether nothing was read or written.
        tensors: How many tensors.
        parameters: How many elements they have together.
        bytes_written: Bytes of all tensors in the output.
        dtypes: Storage type -> number of tensors.
        files: Names of the weight files.
        seconds: Wall time.
        zero_share: Per model, the share of elements that equal the base; None if not measured.
        selected_share: Per model, the share of elements that the merge took from it.
        delta_norm: Per model, the length of its difference from the base.
        warnings: What is unusual but not wrong.
    """

    out: str
    method: str
    models: list[str]
    base: str | None
    is_dry_run: bool
    tensors: int
    parameters: int
    bytes_written: int
    dtypes: dict[str, int]
    files: list[str]
    seconds: float
    zero_share: list[float] | None = None
    selected_share: list[float] | None = None
    delta_norm: list[float] | None = None
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """Return the report as one JSON object."""
        return json.dumps(self.to_dict(), indent=2)

    def text(self) -> str:
        """Return the report for people, a line per fact."""
        verb = "would write" if self.is_dry_run else "wrote"
        types = ", ".join(f"{count} {name}" for name, count in sorted(self.dtypes.items()))
        lines = [
            f"{self.method} of {len(self.models)} model(s): {verb} {self.out} "
            f"({self.bytes_written:,} bytes in {len(self.files)} file(s))",
            f"{self.tensors} tensors ({types}), {self.parameters:,} parameters",
        ]
        if not self.is_dry_run:
            lines.append(f"took {self.seconds:.1f} s")
        lines += [self._line(k, model) for k, model in enumerate(self.models)]
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)

    def _line(self, index: int, model: str) -> str:
        facts = []
        if self.selected_share is not None:
            facts.append(f"{self.selected_share[index]:.2%} of the elements")
        if self.zero_share is not None:
            facts.append(f"{self.zero_share[index]:.2%} equal the base")
        if self.delta_norm is not None:
            facts.append(f"delta norm {self.delta_norm[index]:.4g}")
        return f"  {model}" + (": " + ", ".join(facts) if facts else "")
