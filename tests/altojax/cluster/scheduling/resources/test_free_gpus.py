"""The map of free GPUs: nothing is given twice, gangs stay together, the same calls give the same GPUs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moldable import clusters, quick

from altojax.cluster.scheduling.resources.nodes import Cluster, Free

wishes = st.lists(st.tuples(st.booleans(), st.integers(1, 20)), max_size=40)


@quick
@given(clusters, wishes)
def test_no_gpu_is_taken_twice_and_a_gang_stays_inside_a_node_or_has_whole_ones(cluster, wishes):
    free, held = Free(cluster), []
    left = {(name, gpu) for name, size in cluster.nodes.items() for gpu in range(size)}
    for releases, number in wishes:
        if releases and held:
            gpus = held.pop(number % len(held))
            free.release(gpus)
            left |= {(name, gpu) for name, indices in gpus.items() for gpu in indices}
        elif not releases:
            fits, gpus = free.fits(number), free.take(number)
            assert fits == (gpus is not None)
            if gpus is None:
                by_node = {name: sum(one == name for one, _ in left) for name in cluster.nodes}
                assert number > max(by_node.values())
                whole = [size for name, size in cluster.nodes.items() if by_node[name] == size]
                assert number <= cluster.largest or all(
                    number % size or number // size > whole.count(size) for size in whole
                )
                continue
            own = {(name, gpu) for name, indices in gpus.items() for gpu in indices}
            assert len(own) == number and own <= left
            if number > cluster.largest:
                assert len({cluster.nodes[name] for name in gpus}) == 1
                assert all(len(indices) == cluster.nodes[name] for name, indices in gpus.items())
            else:
                assert len(gpus) == 1
            left -= own
            held.append(gpus)
        assert free.gpus == len(left)
        assert Free(cluster, held).gpus == len(left)


@quick
@given(clusters, st.integers(1, 40))
def test_an_empty_cluster_gives_what_it_holds_and_nothing_else(cluster, width):
    assert cluster.holds(width) == Free(cluster).fits(width)


def test_a_gang_goes_where_it_leaves_least_over():
    free = Free(Cluster({"a": 8, "b": 4, "c": 4}))
    assert free.take(1) == {"b": (0,)}
    assert free.take(3) == {"b": (1, 2, 3)}
    assert free.take(5) == {"a": (0, 1, 2, 3, 4)}
    assert free.take(3) == {"a": (5, 6, 7)}
    assert free.take(5) is None
    assert free.take(4) == {"c": (0, 1, 2, 3)}


def test_a_gang_larger_than_any_node_takes_whole_nodes_the_fewest_it_can():
    free = Free(Cluster({"a": 2, "b": 4, "c": 2, "d": 4}))
    assert free.take(8) == {"b": (0, 1, 2, 3), "d": (0, 1, 2, 3)}
    assert free.take(6) is None
    assert not Cluster({"a": 8, "b": 4}).holds(12)
    assert Cluster({"a": 4, "b": 2, "c": 2, "d": 4}).holds(8)


def test_very_gpus_can_be_claimed_once():
    free = Free(Cluster({"a": 4}))
    free.claim({"a": (1, 3)})
    assert free.take(2) == {"a": (0, 2)}
    assert not free.has({"a": (1,)}) and not free.has({"z": (0,)})
    free.release({"a": (1,)})
    assert free.has({"a": (1,)}) and not free.has({"a": (1, 3)})
    with pytest.raises(ValueError, match="that are free"):
        free.claim({"a": (1, 3)})
    with pytest.raises(ValueError, match="that are taken"):
        free.release({"a": (1,)})
    with pytest.raises(ValueError, match="that are taken"):
        free.release({"a": (4,)})


def test_what_a_lost_node_had_is_no_longer_present():
    cluster = Cluster({"a": 8, "b": 8}).changed("a", 0).changed("b", 4).changed("c", 2)
    assert cluster.nodes == {"b": 4, "c": 2}
    assert cluster.present({"a": (0, 1), "b": (3, 4), "c": (1,)}) == {"b": (3,), "c": (1,)}
