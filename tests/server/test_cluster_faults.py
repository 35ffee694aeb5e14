"""What happens to a shared image, and to its machines, when something goes wrong."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil
import pytest

from clear_core.cluster.channel import Refused, Token, connect
from devtools import workflow
from devtools.client import ClientError, ComfyClient, Run
from devtools.machines import Machines, difference, said, wait_until, with_machines
from devtools.server import ComfyServer


def test_strangers_are_refused_in_a_line_each_and_the_worker_stays(machines: Machines, small_prompt: Any) -> None:
    host, port = machines.address.split(":")
    driver = machines.driver
    start, left = len(driver.log), driver.log.count("has left")

    def refused() -> list[str]:
        return [line for line in driver.log[start:].splitlines() if "CLEAR Multi-GPU: refused" in line]

    with socket.create_connection((host, int(port)), timeout=30) as stranger:
        stranger.sendall(bytes(range(256)) * 64)
        with suppress(ConnectionResetError):  # it closes without having read all
            assert stranger.recv(1) == b""
    wrong = Token("the token of another cluster, as long as one")
    with pytest.raises(Refused, match="another token"):
        connect(host, int(port), wrong, timeout=30)
    wait_until(lambda: len(refused()) >= 2, driver)
    shared = machines.client.run(with_machines(small_prompt(seed=19), machines.address, bands=6))
    assert "with 127.0.0.1" in said(shared), said(shared)
    garbage, other = refused()
    assert re.search(r"refused 127\.0\.0\.1:\d+: ", garbage) and "it has another token" in other, (garbage, other)
    assert wrong.text not in driver.log and driver.log.count("has left") == left


def test_a_cancelled_prompt_leaves_the_worker_ready(machines: Machines, small_prompt: Any) -> None:
    client, left = machines.client, machines.driver.log.count("has left")
    prompt = small_prompt(seed=15, steps=100)
    sampler = workflow.node_id(prompt, "SamplerCustomAdvanced")

    def cancel(run: Run) -> None:
        if run.steps_of(sampler):
            client.interrupt()

    assert client.run(with_machines(prompt, machines.address, bands=6), cancel).status == "interrupted"
    short = small_prompt(seed=16)
    shared = client.run(with_machines(short, machines.address, bands=5))  # not 6: a node that is not run says nothing
    assert "with 127.0.0.1" in said(shared), said(shared)
    assert difference(machines.pictures(shared), machines.pictures(client.run(short))) <= 1
    assert machines.driver.log.count("has left") == left


def test_a_worker_that_is_killed_costs_a_forward_and_may_come_back(machines: Machines, small_prompt: Any) -> None:
    client, driver, worker = machines.client, machines.driver, machines.workers[0]
    prompt = small_prompt(seed=13, steps=40)
    plain = machines.pictures(client.run(prompt))
    killed: list[int] = []

    def kill(run: Run) -> None:
        if not killed and run.steps_of(workflow.node_id(prompt, "SamplerCustomAdvanced")):
            killed.append(worker.pid)
            psutil.Process(worker.pid).kill()

    left = driver.log.count("has left")
    run = client.run(with_machines(prompt, machines.address, bands=6), kill)
    assert run.status == "success" and killed
    assert "with 127.0.0.1" in said(run) and "this machine alone" in said(run)
    assert difference(machines.pictures(run), plain) <= 1
    assert driver.log.count("has left") == left + 1
    worker.stop()
    machines.start(worker)
    again = client.run(with_machines(small_prompt(seed=14), machines.address, bands=6))
    assert "with 127.0.0.1" in said(again), said(again)


def test_without_its_driver_a_worker_stops(new_small: Callable[[], ComfyServer], small_prompt: Any) -> None:
    """The driver is killed in the middle of a prompt; the worker ends its own, and waits for a driver."""
    prompt = small_prompt(seed=18, steps=400)
    with new_small() as driver, Machines(driver, new_small) as machines:
        machines.client.run(with_machines(small_prompt(side=64, steps=1), machines.address))
        worker = machines.join()
        killed: list[int] = []

        def kill(run: Run) -> None:
            if not killed and run.steps_of(workflow.node_id(prompt, "SamplerCustomAdvanced")):
                killed.append(len(ComfyClient(worker.address).get_json("/queue")["queue_running"]))
                psutil.Process(driver.pid).kill()

        with pytest.raises((OSError, ClientError)):
            machines.client.run(with_machines(prompt, machines.address, bands=6), kill)
        assert killed == [1]
        host = ComfyClient(worker.address)
        wait_until(lambda: not host.get_json("/queue")["queue_running"] and "trying again" in worker.log, worker)
        assert "Prompt executed" in worker.log
