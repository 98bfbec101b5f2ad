"""The simulation of the serving benchmark, against closed forms of queueing theory."""

import importlib.util
import sys
from pathlib import Path

import pytest

_path = Path(__file__).parents[2] / "benchmarks" / "serve_simulation.py"
_spec = importlib.util.spec_from_file_location("serve_simulation", _path)
simulation = importlib.util.module_from_spec(_spec)
# Dataclasses look their module up by its name.
sys.modules["serve_simulation"] = simulation
_spec.loader.exec_module(simulation)

SECONDS = 0.01


def system(**options):
    stage = simulation.Stage(1, 0.0, SECONDS)
    values = {"front": 0.0, "batch_size": 1, "max_delay": 0.0, "queue": 10**9, **options}
    return simulation.System((stage,), (1.0,), **values)


def simulated(case, rate, count):
    return simulation.Simulation(case, simulation.random_requests(case, rate, count))


@pytest.mark.parametrize("cores", [None, 1.0])
@pytest.mark.parametrize("load", [0.3, 0.7])
def test_waiting_is_that_of_pollaczek_and_khinchine(cores, load):
    run = simulated(system(cores=cores), load / SECONDS, 15_000)
    found = run.run()
    mean = sum(run.latencies) / len(run.latencies)
    assert mean == pytest.approx(SECONDS + load * SECONDS / (2 * (1 - load)), rel=0.06)
    assert found["answered"] == 15_000
    assert found["throughput"] == pytest.approx(load / SECONDS, rel=0.03)


def test_work_shares_cores():
    # The HTTP process and the replica need as much; together they have one core.
    both = system(front=SECONDS, cores=1.0)
    found = simulated(both, 200.0, 5000).run()
    assert found["throughput"] == pytest.approx(0.5 / SECONDS, rel=0.02)
    alone = simulated(system(front=SECONDS), 200.0, 5000).run()
    assert alone["throughput"] == pytest.approx(1 / SECONDS, rel=0.02)


def test_requests_beyond_the_queue_are_refused_and_others_answered():
    found = simulated(system(queue=5), 300.0, 3000).run()
    assert found["refused"] > 1500
    assert found["answered"] + found["refused"] == 3000
    assert found["p99"] <= 5 * SECONDS + 1e-9


def test_lost_replicas_lose_no_request():
    stages = tuple(simulation.Stage(2, 0.002, 0.002) for _ in range(3))
    lossy = simulation.System(
        stages, (0.5, 0.25, 0.25), front=0.0, queue=10**9, lifetime=2.0, restart=0.5
    )
    found = simulated(lossy, 100.0, 3000).run()
    assert found["replicas lost"] > 20
    assert found["begun anew"] > 20
    assert found["answered"] == 3000
