"""Rounds that are alike in all that a program depends on share what JAX traced and compiled of it."""

from collections.abc import Callable, Iterator

import jax
import pytest

from twistjax.training.rounds import Rounds

KEPT: dict = {}


@pytest.fixture(scope="package", autouse=True)
def shared_programs(forgets: list[Callable[[], object]]) -> Iterator[None]:
    """Hands out the same functions to compile for the same units, mesh, worker and shapes; they hold no weights."""

    def sharing(name: str, key_of: Callable) -> Callable:
        make = getattr(Rounds, name)

        def shared(self, of):
            key = (name, self.units, self.mesh, self.outer, key_of(of))
            if key not in KEPT:
                KEPT[key] = make(self, of)
            return KEPT[key]

        return shared

    forgets.insert(0, KEPT.clear)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Rounds, "_wave", sharing("_wave", of_worker))
        patched.setattr(Rounds, "_mean", sharing("_mean", lambda workers: workers))
        patched.setattr(Rounds, "_zeros", sharing("_zeros", shapes_of))
        yield


def of_worker(worker):
    return (worker.model.config, worker.model._graph, *worker[1:])


def shapes_of(central):
    leaves, tree = jax.tree.flatten(central)
    return tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
