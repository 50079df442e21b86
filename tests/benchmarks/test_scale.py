"""The table and the plot of what grows."""

from __future__ import annotations

import xml.etree.ElementTree as xml

from benchmarks.plot import plot
from benchmarks.scale import Cost, table
from benchmarks.synthetic import path_of


def cost(operation: str, files: int, millis: float) -> Cost:
    return Cost(operation=operation, files=files, millis=millis)


def test_what_grows_is_named() -> None:
    """A line for each operation; twice as much at the most files as at the least may be the machine, more is not."""
    costs = [cost("list", 1000, 2.0), cost("put", 1000, 5.0), cost("list", 100_000, 3.0), cost("put", 100_000, 11.0)]
    lines = table(costs)
    assert lines[0] == "| ms | 1,000 files | 100,000 files | most / least files |"
    assert lines[2:] == ["| list | 2.00 | 3.00 | 1.50 |", "| put | 5.00 | 11.00 | 2.20: **grows** |"]


def test_a_plot_is_an_svg_with_every_line() -> None:
    """Each has its points and its name, and no two names are written over each other."""
    root = xml.fromstring(plot({"a <b>": {1000: 1.0, 100_000: 2.0}, "c": {1000: 1.0, 100_000: 2.01}}, "files", "ms"))
    kinds = [child.tag.rpartition("}")[2] for child in root]
    assert kinds.count("polyline") == 2
    assert kinds.count("circle") == 4
    places = {child.text: float(child.attrib["y"]) for child in root if child.tag.endswith("text")}
    assert abs(places["a <b>"] - places["c"]) >= 12


def test_half_of_the_files_are_in_one_folder() -> None:
    """The other half are a hundred in each."""
    paths = [path_of(number) for number in range(2000)]
    assert len(set(paths)) == 2000
    assert sum(path.startswith("many/") for path in paths) == 1000
    assert sum(path.startswith("tree/0003/") for path in paths) == 100
