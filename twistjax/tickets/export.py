"""A ticket as a model folder of Hugging Face's, or as a GGUF file, read back before anybody relies on it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxlm.families.config import ModelConfig
from jaxlm.families.registry import family_of
from jaxlm.files.hf import check_range, sampling_defaults
from jaxlm.files.weights import load_model
from jaxlm.models.functional import weights_by_path
from jaxlm.models.perplexity import perplexity, shown
from jaxrun.files.exports import write_export
from jaxrun.plots.markdown import fact_table
from jaxrun.process.errors import UserError
from twistjax.report.loss_gap import warning
from twistjax.tickets.gguf_ticket import gguf_container, save_gguf_ticket
from twistjax.tickets.hf_ticket import plain_container, save_ticket
from twistjax.tickets.repair import repaired
from twistjax.tickets.sampling import find_ticket
from twistjax.training.central_model import TrainedRun
from twistjax.training.gather_scatter import corrected, gather
from twistjax.training.prepare import scorer_of


class Exported(NamedTuple):
    """The result of an export.

    Attributes:
        folder: Where it is.
        config: The model's shapes.
        parameters: How many it has.
        loss: Its validation loss, in nats per token.
        full_loss: That of the full model, over the same rows.
        plain: Whether it needs no modelling file of its own beside it.
    """

    folder: Path
    config: ModelConfig
    parameters: int
    loss: float
    full_loss: float
    plain: bool

    def warning(self, kappa: float) -> str | None:
        """Returns a line where it is far worse than the full model, else None."""
        return warning(f"this ticket of kappa {kappa:g}", self.loss, self.full_loss)


def export(
    run: TrainedRun,
    folder: Path,
    kappa: float,
    ticket: str,
    *,
    dtype: DTypeLike,
    repair_rows: int = 0,
    form: Literal["hf", "gguf"] = "hf",
) -> Exported:
    """Writes a ticket of a run, or with kappa 1 its full model, and reads it back before it is put in place.

    Args:
        run: The run.
        folder: Where to.
        kappa: The share to keep.
        ticket: ``best``, ``mix`` or the number of a random ticket; of no meaning where kappa is 1.
        dtype: To write in.
        repair_rows: Training rows on which the ticket is re-fit; 0 leaves it as it is.
        form: A Hugging Face model, or a file FOLDER/NAME.gguf under the folder's name.

    Raises:
        UserError: No such ticket, a full model to repair, a ticket that is not written in this form, or the folder
            cannot be written.
    """
    if repair_rows and kappa == 1:
        raise UserError("repair: given with kappa 1, expected a smaller kappa: the full model lacks nothing")
    units, correction = run.prepared.units, run.config.subnetworks.correction
    if form == "gguf":
        gguf_container(units.subnetwork(kappa))
    scorer = scorer_of(run.config, run.prepared)
    full = loss = scorer.full(run.weights, run.config.subnetworks.ladder[0])
    if kappa == 1:
        config = run.prepared.model
        weights = corrected(run.weights, units, run.config.subnetworks.ladder[0], correction, full=True)
    else:
        kept, known = find_ticket(run.run_dir, run.assignment, kappa, run.config.seed, ticket)
        loss = scorer.ticket(run.weights, kept, kappa) if known is None else known
        config = units.subnetwork(kappa)
        weights = corrected(gather(run.weights, kept, units), units, kappa, correction, full=False)
        if repair_rows:
            weights = repaired(run, config, weights, repair_rows)
            loss = scorer.model(config, weights)
    facts = _facts(run, config, weights, kappa, ticket, dtype, form) | _losses(run, loss, full)
    card = _card(run, facts, warning("this ticket", loss, full), repair_rows)
    check_range(folder, config, weights, dtype)
    sampling = sampling_defaults(run.config.model.model_name_or_path)
    tokenizer = run.prepared.tokenizer
    with write_export(folder, "twistjax export") as partial:
        if form == "gguf":
            path = partial / f"{folder.name}.gguf"
            save_gguf_ticket(path, config, weights, dtype=jnp.dtype(dtype).name, tokenizer=tokenizer)
            (partial / "README.md").write_text(card, encoding="utf-8")
            plain = True
        else:
            also: dict[str, Any] = {"tokenizer": tokenizer, "card": card, "sampling": sampling}
            plain = save_ticket(partial, config, weights, dtype=dtype, **also)
            _read_back(partial, folder, weights, dtype)
    return Exported(folder, config, parameters(weights), loss, full, plain)


def parameters(weights: Mapping[str, Array]) -> int:
    """Returns how many numbers a model has."""
    return sum(int(np.prod(value.shape)) for value in weights.values())


def _read_back(partial: Path, folder: Path, weights: Mapping[str, Array], dtype: DTypeLike) -> None:
    _, again = load_model(partial, dtype=jnp.dtype(dtype))
    read = weights_by_path(again, dtype)
    wrong = [path for path, value in weights.items() if not np.array_equal(read[path], value.astype(dtype))]
    if wrong:
        raise UserError(f"{folder}: {wrong[0]} was not read back as it was written, expected a sound disk")


def _facts(
    run: TrainedRun,
    config: ModelConfig,
    weights: Mapping[str, Array],
    kappa: float,
    ticket: str,
    dtype: DTypeLike,
    form: str,
) -> dict[str, Any]:
    whole = run.prepared.model
    megabytes = [parameters(of) * jnp.dtype(dtype).itemsize / 1e6 for of in (weights, run.weights)]
    if form == "gguf":
        written = f"GGUF of the architecture {gguf_container(config).family}"
    else:
        container = plain_container(config)
        written = "TicketForCausalLM, of its own modelling file"
        written = written if container is None else family_of(container).causal_lm
    return {
        "base model": run.config.model.model_name_or_path,
        "written as": written,
        "share kept (kappa)": kappa,
        "ticket": "none, the full model" if kappa == 1 else ticket,
        "parameters": f"{parameters(weights):,} of {parameters(run.weights):,}",
        f"size in {jnp.dtype(dtype).name}": "{:,.1f} MB of {:,.1f} MB".format(*megabytes),
        "query heads of a layer": f"{config.num_heads} of {whole.num_heads}",
        "key heads of a layer": f"{config.num_kv_heads} of {whole.num_kv_heads}",
        "MLP neurons of a layer": f"{config.intermediate_size} of {whole.intermediate_size}",
        "protected layers": run.config.subnetworks.protected_first + run.config.subnetworks.protected_last,
        "rounds of training": run.round,
        "training data": run.config.data.train,
    }


def _losses(run: TrainedRun, loss: float, full: float) -> dict[str, Any]:
    rows = run.prepared.validation
    return {
        "validation loss": f"{loss:.4f} nats per token (full model: {full:.4f})",
        "validation perplexity": f"{shown(perplexity(loss))} (full model: {shown(perplexity(full))})",
        "validation data": f"{len(rows.tokens):,} rows, {int(rows.targets.sum()):,} tokens of {rows.name}",
    }


def _card(run: TrainedRun, facts: Mapping[str, Any], warned: str | None, repair_rows: int) -> str:
    said = "" if warned is None else f"\n\n> {warned[0].upper()}{warned[1:]}."
    rows = min(repair_rows, len(run.prepared.train.tokens))
    after = "masks, calibration or tuning after the cut"
    if rows:
        after = (
            "masks or tuning after the cut. It was calibrated: o_proj and down_proj are a ridge regression of what the "
            f"full model makes of {rows * run.config.data.max_length:,} tokens of its training text"
        )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [twistjax, pruned]
---

# A smaller {Path(run.config.model.model_name_or_path).stem}

A subnetwork of a model that was trained with twistjax for its subnetworks to be models of their own: dense, without
{after}.{said}

{fact_table(facts)}
"""
