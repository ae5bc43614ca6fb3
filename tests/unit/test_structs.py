"""Dataclasses whose making is put off: nobody must notice."""

from __future__ import annotations

import threading
from dataclasses import FrozenInstanceError, field, fields, is_dataclass, replace
from typing import Any

import pytest

from busline.structs import frozen, struct, value


def classes() -> tuple[type[Any], type[Any], type[Any]]:
    """New ones, of which no instance was made."""

    @value
    class Point:
        """A place."""

        x: int
        y: int = 2
        names: dict[str, int] = field(default_factory=dict)

        @property
        def far(self) -> bool:
            return self.x > 10

    @struct
    class Pen:
        colour: str = "red"

    @frozen()
    class Shape:
        corners: int = 3

    return Point, Pen, Shape


def test_defaults_factories_and_methods_are_as_in_any_dataclass() -> None:
    Point, Pen, Shape = classes()
    one, other = Point(1), Point(x=1, y=2)
    one.names["a"] = 1
    assert (one.x, one.y, other.names, one.far, Point(11).far) == (1, 2, {}, False, True)
    assert (Pen().colour, Pen("blue").colour, Shape().corners) == ("red", "blue", 3)
    assert (Point.__doc__, Point.__module__, Point.__name__) == ("A place.", __name__, "Point")
    assert Point.__qualname__.endswith(".Point")


def test_equals_are_equal_and_tell_what_they_are() -> None:
    Point, Pen, _ = classes()
    assert Point(1) == Point(1, 2) != Point(1, 3)
    assert repr(Pen("blue")).endswith("Pen(colour='blue')")
    assert hash(Point(1, 2, ())) == hash(Point(1, names=()))
    with pytest.raises(TypeError):
        hash(Pen())


def test_a_first_instance_that_cannot_be_made_says_why_and_the_next_can() -> None:
    Point, _, _ = classes()
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        Point()
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        Point(1, z=2)
    assert Point(1).x == 1


def test_they_are_copied_matched_and_looked_into() -> None:
    Point, Pen, Shape = classes()
    moved = replace(Point(1), y=5)
    assert [each.name for each in fields(moved)] == ["x", "y", "names"]
    match moved:
        case Point(x, y):
            assert (x, y) == (1, 5)
        case _:
            pytest.fail("it is a Point")
    assert all(is_dataclass(each) for each in (moved, Pen(), Shape))


def test_nothing_else_can_be_put_into_them_and_frozen_ones_are_set_once() -> None:
    Point, Pen, Shape = classes()
    pen = Pen()
    pen.colour = "green"
    for each in (Point(1), pen):
        assert not hasattr(each, "__dict__")
        with pytest.raises(AttributeError):
            each.weight = 3
    with pytest.raises(FrozenInstanceError):
        Shape().corners = 4


def test_threads_that_make_the_first_at_once_all_get_one() -> None:
    for _ in range(50):
        Point, _, _ = classes()
        start, made = threading.Barrier(8), list[Any]()

        def make(kind: type[Any] = Point, start: threading.Barrier = start, made: list[Any] = made) -> None:
            start.wait()
            made.append(kind(1))

        threads = [threading.Thread(target=make) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [(each.x, each.y, each.names) for each in made] == [(1, 2, {})] * 8
