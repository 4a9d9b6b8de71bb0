"""A pytest plugin: CPU seconds of each test with the runs that it starts, and which tests the marker `slow` misses.

Wall time says little on a machine that does other things as well. A killed run is not counted.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

SLOW = 2.0  #: CPU seconds from which a test is marked slow

_LOG = "WST_TEST_CPU"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cpu", action="store_true", help="list the CPU seconds of each test over one second")


def pytest_configure(config: pytest.Config) -> None:
    os.environ[_LOG] = f"/tmp/wst-test-cpu-{os.getpid()}"


def pytest_unconfigure(config: pytest.Config) -> None:
    Path(os.environ.pop(_LOG)).unlink(missing_ok=True)


def _seconds() -> float:
    own, ended = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    log = Path(os.environ[_LOG])
    forked = sum(map(float, log.read_text().split())) if log.exists() else 0.0
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime + forked


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    before = _seconds()
    try:
        return (yield)
    finally:
        item.user_properties.append(("cpu", _seconds() - before))
        item.user_properties.append(("slow", item.get_closest_marker("slow") is not None))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long form of a test is slow as well: `-m "not slow"` leaves both out."""
    for item in items:
        if item.get_closest_marker("long") is not None:
            item.add_marker("slow")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.getreports(kind) if r.when == "call"]
    used = sorted(((dict(r.user_properties).get("cpu", 0.0), r) for r in reports), key=lambda pair: -pair[0])
    unmarked = [(cpu, r) for cpu, r in used if cpu > SLOW and not dict(r.user_properties)["slow"]]
    if config.getoption("--cpu"):
        terminalreporter.section(f"CPU seconds ({sum(cpu for cpu, _ in used):.0f} in all)")
        for cpu, report in used:
            if cpu >= 1:
                terminalreporter.write_line(f"{cpu:6.1f} {report.nodeid}")
    if unmarked:
        terminalreporter.section(f"tests over {SLOW:.0f} CPU seconds that are not marked slow")
        for cpu, report in unmarked:
            terminalreporter.write_line(f"{cpu:6.1f} {report.nodeid}")
