"""``altojax export``: an adapter on its own, or merged into its base as a plain model."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from altojax.inference.settings import UseSettings
from jaxrun.config.settings import read_settings
from jaxrun.config.verbs import Args, Positional, Verb
from jaxrun.files.exports import make_way, write_export
from jaxrun.files.folders import copy_files
from jaxrun.files.home import from_home
from jaxrun.process.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from altojax.inference.model_source import ModelSource
    from jaxlm.devices.mesh_spec import MeshSpec

LOGIT_BOUND = 1e-3
"""Largest difference of a logit, in float32 and as a share of the largest, between the adapter on its base and the
merged model, and between that in memory and the one read back: only sums taken in another order may show."""

PROGRAM = "altojax export"
_PROBE_TOKENS = 16


class ExportSettings(UseSettings):
    """Settings of ``altojax export RUN``.

    Attributes:
        out: Folder to write.
        kind: ``adapter`` for PEFT's format, ``merged`` for a plain model with the adapter merged in.
        dtype: Of a merged model's weights; null is bfloat16. They are summed in float32 and rounded once.
        max_shard_size: Largest file of a merged model, such as 2GB.
        overwrite: Replace an earlier export that is there, if it holds nothing else.
    """

    out: str | None = None
    kind: Literal["adapter", "merged"] = "adapter"
    dtype: Literal["float32", "bfloat16"] | None = None
    max_shard_size: str | int = "2GB"
    overwrite: bool = False

    foreign_names: ClassVar[dict[str, str]] = {"output_dir": "out", "folder": "out", "torch_dtype": "dtype"}


def run(args: Args) -> int:
    """Runs ``altojax export RUN key=value ...``."""
    from altojax.inference.model_source import find_source

    settings = read_settings(ExportSettings, args.overrides)
    if not settings.out:
        raise UserError("export: no folder given, expected out=FOLDER")
    out = from_home(settings.out)
    make_way(out, overwrite=settings.overwrite)
    source = find_source(args["model"], **(settings.sought | {"dtype": None}))
    if len(source.adapters) != 1:
        raise UserError(f"adapter: {len(source.adapters)} given, expected one")
    if settings.kind == "adapter":
        copy_adapter(out, source)
    else:
        size = _shard_bytes(settings.max_shard_size)
        export_merged(out, source, settings.dtype or "bfloat16", size, mesh=settings.mesh)
    print(f"wrote {out}")
    return 0


def copy_adapter(out: Path, source: "ModelSource") -> None:
    """Copies a source's adapter once every entry of it has been matched to the base.

    Raises:
        UserError: The adapter does not fit the base, holds links, or the folder cannot be written or lies in its own.
    """
    from altojax.adapters.peft_files import read_adapter
    from jaxlm.files.weights import read_model_config

    (folder,) = source.adapters.values()
    read_adapter(folder, read_model_config(source.model.model_name_or_path, weights=False))
    if folder.resolve() in out.resolve().parents:
        raise UserError(f"{out}: lies inside the adapter's own folder, expected another place")
    with write_export(out, PROGRAM) as partial:
        copy_files(folder, partial)


def export_merged(
    out: Path, source: "ModelSource", dtype: str, max_shard_bytes: int, *, mesh: "MeshSpec | None" = None
) -> None:
    """Writes base and adapter as one plain model, reads it back and compares logits before it is put in place.

    The base is in memory once, in float32, on one device or over a mesh; it is changed in place, and written tensor by
    tensor.

    Args:
        out: Where to.
        source: Base and adapter.
        dtype: To write in.
        max_shard_bytes: Largest size of a file, which is also what waits in host memory.
        mesh: How devices share the base; None is one device, or all where one does not hold it.

    Raises:
        UserError: Base or adapter cannot be read, `dtype` cannot hold a weight, the folder cannot be written, or the
            devices are none as `mesh` wants them, or too small.
        ValueError: The merged model is not what the adapter on its base is, or not the same after reading it back.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from altojax.adapters.merge import merge, round_weights
    from altojax.adapters.peft_files import read_adapter
    from altojax.device.auto_mesh import layout_for_use
    from altojax.inference.adapted_model import AdaptedModel
    from altojax.inference.model_source import tell_of_other_forms
    from jaxlm.data.chat.chat_templates import with_template
    from jaxlm.files.hf import check_range, sampling_defaults, write_weights
    from jaxlm.files.tokenizer import end_tokens, load_tokenizer, save_tokenizer
    from jaxlm.files.weights import load_model, read_forms, read_model_config
    from jaxlm.models.functional import weights_by_path
    from jaxlm.models.transformer import Transformer
    from jaxlm.quantised.formats import make_dense, names_of, pack_of
    from jaxrun.process.notices import tell_once

    spec, name = source.model, source.model.model_name_or_path
    config = read_model_config(name, weights=not spec.random_init)
    tokenizer = load_tokenizer(name, trust_remote_code=spec.trust_remote_code)
    if source.written is not None:
        tokenizer = with_template(tokenizer, source.written.chat_template)
    ends = end_tokens(source.ends, config.eos_ids, tokenizer)
    (folder,) = source.adapters.values()
    adapter_spec, adapter = read_adapter(folder, config)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, (1, _PROBE_TOKENS)), jnp.int32)

    layout, pack = layout_for_use(mesh, config, jnp.float32), pack_of(spec.quantize)
    kinds: dict[str, Any] = {"dtype": jnp.float32, "placement": None if layout is None else layout.placement}

    def logits(model: Transformer, routing: object = None) -> np.ndarray:
        graph, state = nnx.split(model)

        def compute(state: nnx.State) -> jax.Array:
            model = nnx.merge(graph, state)
            return model.logits(model(tokens, routing=routing))

        with jax.default_matmul_precision("highest"):
            return np.asarray(jax.jit(compute)(state))

    forms = read_forms(name, pack, weights=not spec.random_init)
    tell_of_other_forms({str(folder): adapter_spec}, forms)
    if forms:
        tell_once(f"{out}: the base's matrices are {names_of(forms)}: they are dequantised, then merged, in {dtype}")
    _, model = load_model(name, random_init=spec.random_init, seed=source.seed, pack=pack, **kinds)
    make_dense(model, jnp.float32, kinds["placement"])
    adapted = AdaptedModel(model, [(adapter_spec, adapter)], layout=layout)
    expected = logits(adapted.model, adapted.routing([1]))
    del adapted
    merge(model, adapter_spec, adapter)
    check_range(out, config, weights_by_path(model, jnp.float32), dtype)
    _compare("merging", expected, logits(model))
    round_weights(model, dtype)
    expected = logits(model)
    with write_export(out, PROGRAM) as partial:
        stopping, values = replace(config, eos_ids=ends), weights_by_path(model, jnp.float32)
        also: dict[str, Any] = {"max_shard_bytes": max_shard_bytes, "sampling": sampling_defaults(name)}
        write_weights(partial, stopping, values, dtype=jnp.dtype(dtype), **also)
        save_tokenizer(partial, tokenizer, source.ends)
        del model, values
        _, again = load_model(partial, **kinds)
        _compare("writing", expected, logits(again))


def _compare(what: str, expected: "np.ndarray", found: "np.ndarray") -> None:
    moved = float(abs(found - expected).max() / max(1.0, abs(expected).max()))
    if not moved <= LOGIT_BOUND:
        raise ValueError(f"{what} moved logits by {moved:.3g} of the largest, bound {LOGIT_BOUND:.3g}")


def _shard_bytes(given: str | int) -> int:
    from altojax.config.tune_config import parse_bytes

    try:
        size = parse_bytes(given)
    except ValueError as error:
        raise UserError(f"max_shard_size: given '{given}', {error}") from error
    assert size is not None
    return size


VERB = Verb(
    name="export",
    help="Write a run's adapter to a folder of its own, or merged into its base as a plain model.",
    run=run,
    positionals=(Positional("model", "a run's folder, or a base with adapter=DIR"),),
    settings=ExportSettings,
    examples=(
        "altojax export runs/quickstart task=naming out=adapters/naming",
        "altojax export runs/quickstart task=naming trial=trial-3 kind=merged dtype=bfloat16 out=models/naming",
    ),
)
