"""An adapter in a folder that training starts from, with all that is its own: shapes, scale, target modules."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from altojax.adapters.peft_config import AdapterSpec
from altojax.adapters.peft_files import Adapter, read_adapter
from altojax.adapters.target_parameters import search_targets
from jaxlm.families.config import ModelConfig
from jaxrun.files.home import from_home
from jaxrun.process.errors import UserError, nearest


@dataclass(frozen=True, eq=False)
class StartAdapter:
    """An adapter to start from.

    Attributes:
        spec: Its description.
        adapter: Its arrays.
        digest: Changes with any of them, with its scale and with what it adapts.
    """

    spec: AdapterSpec
    adapter: Adapter
    digest: str

    @classmethod
    def read(cls, folder: str, config: ModelConfig) -> "StartAdapter":
        """Reads an adapter for a model.

        Raises:
            UserError: There is no such folder, or as `read_adapter`.
        """
        path = from_home(folder)
        if not path.is_dir():
            beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UserError(f"no folder {folder}{nearest(path.name, beside)}, expected one with an adapter")
        spec, adapter = read_adapter(path, config)
        if spec.alpha <= 0:
            raise UserError(f"{path}: lora_alpha is {spec.alpha:g}, expected a number above 0 to train on from")
        digest = sha256(repr((spec.rank, spec.scale, sorted(spec.modules.items()))).encode())
        for key in sorted(adapter):
            for half in adapter[key]:
                digest.update(half.tobytes())
        return cls(spec, adapter, digest.hexdigest()[:16])

    def named_otherwise(self, base: str) -> bool:
        """Whether it says that it was trained on a model of another name than a path or hub id has."""
        said, here = (Path(name).name.lower() for name in (self.spec.base_model_name, base))
        return bool(said) and said != here


def shape_of(spec: AdapterSpec, config: ModelConfig) -> dict[str, Any]:
    """Returns what of a LoRA configuration is an adapter's own, by field."""
    return {
        "lora_rank": spec.rank,
        "lora_alpha": spec.alpha,
        "use_rslora": spec.use_rslora,
        **search_targets(spec.modules, config),
    }
