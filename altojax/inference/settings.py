"""Settings that every verb that runs a model shares."""

from typing import Any, Literal

from jaxlm.devices.mesh_spec import MeshSpec
from jaxlm.models.spec import Quantize
from jaxrun.config.config import StrictModel


class UseSettings(StrictModel):
    """The base and adapters to use; every verb that runs a model has these.

    Attributes:
        adapter: Adapter folders, a list or with commas between them; null takes a run's own.
        task: Which task of a run; may be left out where there is one.
        trial: Which trial of a run; null is the best.
        dtype: Of base and activations; null is the run's, or bfloat16 on an accelerator and float32 on a CPU.
        quantize: The form of the base's matrices, as model.quantize of a run; null is the run's, or that on which the
            adapters were trained.
        mesh: How devices share the base, as in a run's config; null is one device, or all where one does not hold it.
    """

    adapter: str | list[str] | None = None
    task: str | None = None
    trial: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] | None = None
    quantize: Quantize | None = None
    mesh: MeshSpec | None = None

    @property
    def sought(self) -> dict[str, Any]:
        """What `altojax.inference.model_source.find_source` takes beside the model."""
        given = {name: getattr(self, name) for name in ("task", "trial", "dtype", "quantize")}
        return given | {"adapters": self.adapters}

    @property
    def adapters(self) -> list[str] | None:
        """The adapter folders."""
        if isinstance(self.adapter, str):
            return [name.strip() for name in self.adapter.split(",") if name.strip()]
        return self.adapter
