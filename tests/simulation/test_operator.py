"""What an operator of a simulated cluster does while servers come and go."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from securifile.simulation.run import Run, Scene


def test_an_operator_asks_again_while_the_admin_server_restarts() -> None:
    """It had crashed when the order came, and crashes again while the node repairs itself: the node runs again in the end."""
    run = Run(Scene(seed=0, nodes=3, people=1))
    run.begin()
    cluster = run.cluster
    (admin,) = cluster.admins
    cluster.crash(admin)
    operating = Deferred.fromCoroutine(cluster.operate("n2"))
    cluster.run(5.0)
    assert not operating.called
    cluster.start(admin)
    assert cluster.run(60.0, lambda: cluster.roster["n2"].offline)
    cluster.crash(admin)
    cluster.run(1.0)
    cluster.start(admin)
    cluster.wait(operating, 300.0)
    assert cluster.run(60.0, lambda: cluster.all_run)
    assert not cluster.failures
    cluster.bury()
