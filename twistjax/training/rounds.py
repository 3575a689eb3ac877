"""Rounds on a mesh: waves of workers train side by side, then one mean over all holders makes the new central model.

Workers are sharded over the mesh axis ``subnet``, and vmapped on each device. A wave's program has no collective: every
device sums what its own workers made. The mean after the last wave is the only reduction over ``subnet``.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Float32, Int32

from jaxrun.process.errors import UserError
from twistjax.distillation import SoftTargets
from twistjax.training.gather_scatter import Weights, add, gather, holder_mean, holders
from twistjax.training.local_training import Moments, Worker
from twistjax.training.units import Kept, Units

SUBNET = "subnet"


class Central(NamedTuple):
    """The model that workers' subnetworks are cut from and averaged into; every leaf is float32, by path.

    Attributes:
        weights: The full model's.
        moments: AdamW's, where they are carried from round to round, else None.
        velocity: The outer optimizer's, where there is one, else None.
    """

    weights: Weights
    moments: Moments | None
    velocity: Weights | None = None


class Outer(NamedTuple):
    """Nesterov's momentum on what a round changed (DiLoCo, 2311.08105; SNOO, 2510.15830), in place of the mean alone.

    Attributes:
        momentum: What of the velocity is left from round to round.
        learning_rate: Of the change and the velocity; with a momentum of 0 and a rate of 1 a round ends in the mean.
    """

    momentum: float
    learning_rate: float

    def step(
        self, before: Weights, mean: Weights, velocity: Weights, held: Weights
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Returns the weights after a round, and the velocity; what nobody held keeps both.

        Args:
            before: float32 weights before the round.
            mean: Their mean over holders after it.
            velocity: float32 by path.
            held: How many hold each weight that has units; all hold the others.
        """
        after, moved = {}, {}
        for path, old in before.items():
            change = mean[path] - old
            speed = self.momentum * velocity[path] + change
            new = old + self.learning_rate * (self.momentum * speed + change)
            anybody = held[path] > 0 if path in held else True
            after[path], moved[path] = jnp.where(anybody, new, old), jnp.where(anybody, speed, velocity[path])
        return after, moved


class Totals(NamedTuple):
    """Sums over workers, each with a leading axis of devices.

    Attributes:
        trained: Of what the workers made, like the central model.
        held: How many workers hold each weight that has units.
    """

    trained: Central
    held: Weights


class Wave(NamedTuple):
    """Workers of one kappa that train at once.

    Attributes:
        kappa: The share each keeps.
        kept: What each keeps, stacked.
        tokens: int32, each worker's rows of each step.
        targets: Which tokens the loss counts.
        soft: What a teacher expects at every token, where there is one.
    """

    kappa: float
    kept: Kept
    tokens: Int32[np.ndarray, "steps workers rows length"]
    targets: Bool[np.ndarray, "steps workers rows length"]
    soft: SoftTargets | None = None


def subnet_mesh(workers_at_once: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of as many devices as share the workers of a wave evenly, some of every process.

    Raises:
        UserError: There are more processes than such devices.
    """
    devices = jax.devices() if devices is None else devices
    own: dict[int, list[jax.Device]] = {}
    for device in devices:
        own.setdefault(device.process_index, []).append(device)
    counts = [n for n in range(len(own), len(devices) + 1) if workers_at_once % n == 0]
    if not counts:
        raise UserError(
            f"subnetworks.workers_at_once: {workers_at_once} cannot be shared evenly by devices of all {len(own)} "
            f"processes ({len(devices)} devices), expected a multiple of {len(own)}, or another number of processes"
        )
    in_turn = sorted(devices, key=lambda device: (own[device.process_index].index(device), device.process_index))
    chosen = set(in_turn[: counts[-1]])
    return Mesh(np.asarray([device for device in devices if device in chosen]), (SUBNET,))


def on_this_host(central: Central) -> Central:
    """Returns this process's own copy of a central model, whose copies lie on the devices of all processes."""
    return jax.tree.map(lambda leaf: leaf if leaf.is_fully_addressable else leaf.addressable_data(0), central)


class Rounds:
    """The compiled programs of a run: one for the waves of each kappa, one for the mean.

    Attributes:
        programs: By what they compute.
        compile_s: Seconds that their compilation took.
    """

    def __init__(
        self,
        units: Units,
        workers: Mapping[float, Sequence[Worker]],
        mesh: Mesh,
        budget: int | None = None,
        outer: Outer | None = None,
    ):
        """Compiles nothing yet.

        Args:
            units: The full model's.
            workers: By kappa, the same worker in several ways, of which the first that fits is taken, or the last.
            mesh: Of the axis ``subnet``.
            budget: Bytes of a device that a program may take; None is no limit.
            outer: What makes a new model of the mean; None takes it as it is.
        """
        self.units, self.workers, self.mesh, self.budget, self.outer = units, workers, mesh, budget, outer
        self.programs: dict[str, Any] = {}
        self.compile_s = 0.0

    def place(self, central: Central) -> Central:
        """Returns a copy of the central model on every device of the mesh; rounds give their own up."""
        everywhere = NamedSharding(self.mesh, P())
        if everywhere.is_fully_addressable:
            return jax.device_put(central, everywhere, may_alias=False)

        def copied(leaf: ArrayLike) -> Array:
            copies = [jax.device_put(leaf, device, may_alias=False) for device in self.mesh.local_devices]
            return jax.make_array_from_single_device_arrays(np.shape(leaf), everywhere, copies)

        return jax.tree.map(copied, central)

    def run(
        self, central: Central, waves: Sequence[Wave], rates: Float32[np.ndarray, " steps"], before: int
    ) -> tuple[Central, Float32[np.ndarray, "steps workers"]]:
        """Runs one round.

        Args:
            central: The model to cut subnetworks from; its buffers are donated.
            waves: All workers of the round.
            rates: Learning rate of every local step.
            before: Steps that carried moments have seen.

        Returns:
            The model after the round, and every worker's losses.
        """
        totals = self._call("zeros", [self._zeros(central)], {})
        losses = []
        for wave in waves:
            kept = jax.tree.map(lambda part: self._feed(part, P(SUBNET)), wave.kept)
            rows = [self._feed(part, P(None, SUBNET)) for part in (wave.tokens, wave.targets)]
            soft = jax.tree.map(lambda part: self._feed(part, P(None, SUBNET)), wave.soft)
            arguments = central, totals, kept, *rows, self._feed(rates, P()), self._feed(np.int32(before), P()), soft
            ways = [self._wave(worker) for worker in self.workers[wave.kappa]]
            totals, loss = self._call(f"kappa {wave.kappa:g}", ways, {"donate_argnums": 1}, *arguments)
            losses.append(loss)
        count = sum(wave.tokens.shape[1] for wave in waves)
        central = self._call("mean", [self._mean(count)], {"donate_argnums": 0}, central, totals)
        return central, np.concatenate([_whole(loss) for loss in losses], axis=1)

    def _feed(self, value: ArrayLike, spec: P) -> Array:
        """Returns an array on the mesh, of which this process makes what its own devices hold."""
        whole = np.asarray(value)
        return jax.make_array_from_callback(whole.shape, NamedSharding(self.mesh, spec), lambda index: whole[index])

    @property
    def peak_bytes(self) -> int:
        """Bytes of a device that the largest program takes, its arguments and results included."""
        return max(map(needs, self.programs.values()), default=0)

    def _call(self, name: str, ways: Sequence[Callable[..., Any]], options: Mapping[str, Any], *arguments: Any) -> Any:
        if name not in self.programs:
            begun = time.perf_counter()
            for way in ways:
                self.programs[name] = jax.jit(way, **options).lower(*arguments).compile()
                if self.budget is None or needs(self.programs[name]) <= self.budget:
                    break
            self.compile_s += time.perf_counter() - begun
            if not NamedSharding(self.mesh, P()).is_fully_addressable:
                # Processes whose first collective begins more than 30 s apart do not find each other.
                multihost_utils.sync_global_devices(name)
        return self.programs[name](*arguments)

    def _zeros(self, central: Central) -> Callable[[], Totals]:
        devices = self.mesh.shape[SUBNET]
        sharding = NamedSharding(self.mesh, P(SUBNET))

        def zeros() -> Totals:
            shapes = jax.eval_shape(
                lambda: Totals(central._replace(velocity=None), holders(self._anybody(), self.units))
            )
            made = jax.tree.map(lambda leaf: jnp.zeros((devices, *leaf.shape), jnp.float32), shapes)
            return jax.lax.with_sharding_constraint(made, sharding)

        return zeros

    def _anybody(self) -> Kept:
        return jax.tree.map(lambda part: part[None], self.units.draw(jax.random.key(0), 1.0))

    def _wave(self, worker: Worker) -> Callable[..., tuple[Totals, Array]]:
        units = self.units

        def wave(
            central: Central,
            totals: Totals,
            kept: Kept,
            tokens: Array,
            targets: Array,
            rates: Array,
            before: Array,
            soft: SoftTargets | None,
        ) -> tuple[Totals, Float[Array, "steps workers"]]:
            def one(kept: Kept, tokens: Array, targets: Array, soft: SoftTargets | None) -> tuple[Central, Array]:
                weights = gather(central.weights, kept, units)
                moments = None
                if central.moments is not None:
                    moments = Moments(*(gather(moment, kept, units) for moment in central.moments))
                weights, moments, losses = worker.train(
                    weights, moments, before, tokens, targets, rates, soft, central.weights
                )
                return Central(weights, moments if central.moments is not None else None), losses

            def collect(total: Central, made: tuple[Central, Kept]) -> tuple[Central, None]:
                trained, kept = made
                moments = None
                if total.moments is not None and trained.moments is not None:
                    pairs = zip(total.moments, trained.moments, strict=True)
                    moments = Moments(*(add(sums, own, kept, units) for sums, own in pairs))
                return Central(add(total.weights, trained.weights, kept, units), moments), None

            # Each device's copy diverges: without this, gradients of shared weights would be summed.
            central = jax.lax.pcast(central, SUBNET, to="varying")
            made, losses = jax.vmap(one, in_axes=(0, 1, 1, 1), out_axes=(0, 1))(kept, tokens, targets, soft)
            own = jax.tree.map(lambda total: total[0], totals)
            trained, _ = jax.lax.scan(collect, own.trained, (made, kept))
            held = jax.tree.map(jnp.add, own.held, holders(kept, units))
            return jax.tree.map(lambda leaf: leaf[None], Totals(trained, held)), losses

        across = P(None, SUBNET)
        specs = (P(), P(SUBNET), P(SUBNET), across, across, P(), P(), across)
        return jax.shard_map(wave, mesh=self.mesh, in_specs=specs, out_specs=(P(SUBNET), across))

    def _mean(self, workers: int) -> Callable[[Central, Totals], Central]:
        everywhere = NamedSharding(self.mesh, P())

        def mean(central: Central, totals: Totals) -> Central:
            summed = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), totals)
            weights = holder_mean(central.weights, summed.trained.weights, summed.held, workers)
            moments = None
            if central.moments is not None and summed.trained.moments is not None:
                pairs = zip(central.moments, summed.trained.moments, strict=True)
                moments = Moments(*(holder_mean(old, sums, summed.held, workers) for old, sums in pairs))
            velocity = central.velocity
            if self.outer is not None and velocity is not None:
                weights, velocity = self.outer.step(central.weights, weights, velocity, summed.held)
            return jax.lax.with_sharding_constraint(Central(weights, moments, velocity), everywhere)

        return mean


def needs(program: jax.stages.Compiled) -> int:
    """Returns the bytes of a device that a compiled program takes, arguments and results included; 0 if unknown."""
    if (found := program.memory_analysis()) is None:
        return 0
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return int(held + found.temp_size_in_bytes)


def _whole(loss: Array) -> Float32[np.ndarray, "steps workers"]:
    """Returns the losses of the workers of all processes."""
    return np.asarray(loss if loss.is_fully_addressable else multihost_utils.process_allgather(loss, tiled=True))
