"""Names, targets, origins."""

from __future__ import annotations

import subprocess
import sys
import threading
from fractions import Fraction

import pytest

from gloria.errors import (
    ContractError,
    DtypeError,
    DuplicateNameError,
    GloriaError,
    MissingDependencyError,
    OptionError,
    PluginWarning,
    UnknownNameError,
    UnknownOptionError,
)
from gloria.registry import BUILT_IN, IN_PROCESS, Origin, Registry, registering_as


@pytest.fixture
def registry():
    return Registry("number")


def test_a_string_target_is_created_with_the_options(registry):
    registry.register("half", "fractions:Fraction")
    assert registry.create("half", numerator=1, denominator=2) == Fraction(1, 2)
    assert registry.get("half") is Fraction


def test_a_string_target_reaches_nested_attributes(registry):
    registry.register("parsed", "fractions:Fraction.from_float")
    assert registry.get("parsed")(0.25) == Fraction(1, 4)


def test_the_decorator_registers_and_returns_what_it_decorates(registry):
    @registry.register("mine")
    class Mine:
        pass

    assert isinstance(registry.create("mine"), Mine)


def test_a_source_is_called_with_what_follows_its_first_colon(registry):
    registry.register("zoo:", lambda name, **options: (name, options))
    assert registry.create("zoo:hub:a/b", depth=2) == ("hub:a/b", {"depth": 2})


def test_a_name_and_a_source_of_that_name_are_two_things(registry):
    registry.register("zoo", lambda: "plain")
    registry.register("zoo:", lambda name: name)
    assert (registry.create("zoo"), registry.create("zoo:cat")) == ("plain", "cat")


def test_registering_and_listing_import_nothing():
    code = """
        import sys
        from gloria.registry import Registry
        registry = Registry("number")
        registry.register("fraction", "fractions:Fraction")
        registry.register("zoo:", "fractions:Fraction", list_names="fractions:nothing")
        assert registry.list() == ["fraction", "zoo:*"], registry.list()
        assert registry.list("f*") == ["fraction"]
        assert not {"fractions", "torch", "numpy"} & set(sys.modules)
    """
    code = "\n".join(line[8:] for line in code.splitlines())
    subprocess.run([sys.executable, "-c", code], check=True)


# --- duplicates -----------------------------------------------------------------------------------


def test_a_duplicate_overwrites_nothing_and_names_both_origins(registry):
    with registering_as(BUILT_IN):
        registry.register("one", "fractions:Fraction")
    plugin = Origin("plugin", "stats", "my-stats", "2.0")
    with (
        registering_as(plugin),
        pytest.raises(DuplicateNameError, match="is already registered") as caught,
    ):
        registry.register("one", "decimal:Decimal")
    for part in (
        "'one'",
        "built-in",
        "fractions:Fraction",
        "plugin 'stats' of my-stats 2.0",
        "decimal:Decimal",
    ):
        assert part in str(caught.value)
    assert registry.get("one") is Fraction
    assert isinstance(caught.value, ValueError)


def test_what_is_registered_outside_any_block_is_in_process(registry):
    registry.register("one", int)
    assert registry.entries()[0].origin is IN_PROCESS


def test_unregister_takes_back_one_origin_only(registry):
    mine, twin = Origin("plugin", "a", "a", "1"), Origin("plugin", "a", "a", "1")
    for name, origin in (("x", mine), ("y", twin)):
        with registering_as(origin):
            registry.register(name, int)
    registry.unregister(mine)
    assert registry.list() == ["y"]


def test_of_many_threads_registering_one_name_one_wins(registry):
    start, failures = threading.Barrier(8), []

    def claim():
        start.wait()
        for number in range(100):
            try:
                registry.register(f"name{number}", int)
            except DuplicateNameError:
                failures.append(number)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(registry.list()) == 100
    assert len(failures) == 700


# --- unknown names --------------------------------------------------------------------------------


def test_an_unknown_name_gives_the_nearest_and_the_list(registry):
    registry.register("local_contrastive", int)
    registry.register("triplet", int)
    with pytest.raises(UnknownNameError) as caught:
        registry.create("local_contrastiv")
    assert str(caught.value) == (
        "no number is named 'local_contrastiv'. Did you mean 'local_contrastive'? "
        "Registered: local_contrastive, triplet."
    )
    assert isinstance(caught.value, KeyError)


def test_an_unknown_source_keeps_the_rest_of_the_name_in_its_suggestion(registry):
    registry.register("timm:", int)
    with pytest.raises(UnknownNameError, match="Did you mean 'timm:resnet50'"):
        registry.create("tim:resnet50")


def test_a_name_without_its_source_is_suggested_with_it(registry):
    def breaks():
        raise OSError

    registry.register("zoo:", int, list_names=lambda: ["okapi", "lion"])
    registry.register("farm:", int, list_names=lambda: ["cow"])
    registry.register("hub:", int)
    registry.register("broken:", int, list_names=breaks)
    registry.register("plain", int)
    with pytest.raises(UnknownNameError, match=r"'okapi'\. Did you mean 'zoo:okapi'\? Reg"):
        registry.create("okapi")
    with pytest.raises(UnknownNameError, match=r"'a/yak'\. Did you mean 'hub:a/yak'\? Reg"):
        registry.create("a/yak")  # no source has it, and one can't tell
    with pytest.raises(UnknownNameError, match=r"'plane'\. Did you mean 'plain'\? Reg"):
        registry.create("plane")  # a misspelled name, no name of the hub


def test_an_unknown_name_in_an_empty_registry(registry):
    with pytest.raises(UnknownNameError, match="Registered: none"):
        registry.get("x")


def test_a_source_alone_is_no_name(registry):
    registry.register("zoo:", int)
    with pytest.raises(UnknownNameError, match="say which number: 'zoo:<name>'"):
        registry.create("zoo:")
    with pytest.raises(UnknownNameError, match=r"Registered: zoo:\*"):
        registry.create("zoo")


def test_an_object_is_no_name(registry):
    with pytest.raises(DtypeError, match="name of a number must be a string; got int: 3"):
        registry.create(3)


# --- bad registrations ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a b", "a*", "a:b", ":", "a/b", "a::", "a\n"])
def test_a_malformed_name_is_refused(registry, name):
    with pytest.raises(OptionError, match="must be letters, digits"):
        registry.register(name, int)
    assert registry.list() == []


def test_the_decorator_without_a_name_says_how(registry):
    with pytest.raises(DtypeError, match=r"@register\('name'\)"):

        @registry.register
        class Mine:
            pass


@pytest.mark.parametrize(
    "target", ["fractions", "fractions.Fraction", "a:b:c", ":b", "a:", "", ".a:b", "a..b:c", "a:b."]
)
def test_a_malformed_target_string_is_refused(registry, target):
    with pytest.raises(OptionError, match="target of number 'x' must be 'module:attribute'"):
        registry.register("x", target)


@pytest.mark.parametrize("target", [42, None, object()])
def test_a_target_that_cannot_be_called_is_refused(registry, target):
    with pytest.raises(DtypeError, match="must be a class, a function or 'module:attribute'"):
        registry.register("x", target)


def test_only_a_source_lists_names(registry):
    with pytest.raises(OptionError, match="list_names goes with a source, 'x:'; got 'x'"):
        registry.register("x", int, list_names=list)


# --- targets that fail when used ------------------------------------------------------------------


@pytest.mark.parametrize(
    "target, cause",
    [
        ("no_such_module_at_all:Thing", ModuleNotFoundError),
        ("fractions:Fractoin", AttributeError),
        ("fractions.nothing:Fraction", ModuleNotFoundError),
    ],
)
def test_a_target_that_cannot_be_imported_names_name_origin_and_cause(registry, target, cause):
    with registering_as(Origin("plugin", "stats", "my-stats", "2.0")):
        registry.register("x", target)
    with pytest.raises(MissingDependencyError, match="cannot be imported") as caught:
        registry.create("x")
    for part in ("'x'", "plugin 'stats' of my-stats 2.0", target, str(caught.value.__cause__)):
        assert part in str(caught.value)
    assert type(caught.value.__cause__) is cause
    assert isinstance(caught.value, ImportError)


def test_a_module_that_raises_anything_at_import_is_a_missing_dependency(registry, install):
    install("broken", {"broken_native.py": "raise OSError('libfoo.so: no such file')"}, {})
    registry.register("x", "broken_native:Thing")
    with pytest.raises(MissingDependencyError, match=r"OSError: libfoo.so") as caught:
        registry.create("x")
    assert isinstance(caught.value.__cause__, OSError)


def test_an_imported_target_that_cannot_be_called(registry):
    registry.register("x", "math:pi")
    with pytest.raises(ContractError, match=r"'x' .* is not callable; got float: 3.14"):
        registry.create("x")


def test_a_package_that_the_factory_itself_misses(registry):
    def factory():
        import no_such_package_at_all  # noqa: F401

    registry.register("x", factory)
    with pytest.raises(MissingDependencyError, match="No module named 'no_such_package") as caught:
        registry.create("x")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_other_errors_of_a_factory_pass_and_say_where(registry):
    registry.register("x", Fraction)
    with pytest.raises(ZeroDivisionError) as caught:
        registry.create("x", numerator=1, denominator=0)
    assert caught.value.__notes__ == ["while creating number 'x' (in-process, fractions:Fraction)"]


def test_an_error_of_a_source_has_the_name_that_was_asked_for(registry):
    zoo = {"small": 1}
    registry.register("zoo:", lambda name: zoo[name])
    with pytest.raises(KeyError) as caught:
        registry.create("zoo:smal")
    assert caught.value.__notes__[0].endswith("of the name 'zoo:smal'")


def test_an_option_that_what_takes_any_hands_on_is_told_from_a_fault_within(registry):
    def inner(base=10):
        return int("1", base)

    def outer(faulty=False, **options):
        return inner(**({"bass": 3} if faulty else options))

    registry.register("x", outer)
    assert registry.create("x", base=10) == 1
    with pytest.raises(UnknownOptionError, match=r"number 'x' .* has no option 'bass': .*'bass'"):
        registry.create("x", bass=10)
    with pytest.raises(TypeError) as caught:
        registry.create("x", faulty=True)
    assert not isinstance(caught.value, UnknownOptionError)
    registry.register("none", lambda: 1)
    with pytest.raises(UnknownOptionError, match=r"has no option 'a'\. It has none\.$"):
        registry.create("none", a=1)
    with pytest.raises(UnknownOptionError, match=r"has no option 'preset'\. It has none\.$"):
        registry.create("none", preset="paper")


def test_errors_of_gloria_pass_unchanged(registry):
    error = GloriaError("temperature must be above 0")

    def factory():
        raise error

    registry.register("x", factory)
    with pytest.raises(GloriaError) as caught:
        registry.create("x")
    assert caught.value is error


def test_what_is_made_is_checked():
    def check(name, made):
        if not isinstance(made, int):
            raise ContractError(f"{name} is odd")

    registry = Registry("number", check)
    registry.register("x", str)
    registry.register("y", int)
    assert registry.create("y") == 0
    with pytest.raises(ContractError, match=r"what number 'x' \(in-process, .* made is odd"):
        registry.create("x")


# --- presets --------------------------------------------------------------------------------------


def test_a_preset_is_made_by_from_preset_with_overrides(registry):
    class Loss:
        def __init__(self, preset, **options):
            self.made = (preset, options)

        from_preset = classmethod(lambda cls, preset, **options: cls(preset, **options))

    registry.register("loss", Loss)
    assert registry.create("loss", preset="paper", margin=1).made == ("paper", {"margin": 1})


def test_elsewhere_preset_is_an_option_like_any_other(registry):
    registry.register("x", lambda preset: preset)
    assert registry.create("x", preset="bone") == "bone"


# --- listing --------------------------------------------------------------------------------------


@pytest.fixture
def zoo():
    """A registry with one name and three sources; ``asked`` says which were asked for names."""
    registry, asked = Registry("animal"), []

    def names_of(source, *names):
        def list_names():
            asked.append(source)
            return names

        return list_names

    registry.register("cat", int)
    registry.register("farm:", int, list_names=names_of("farm", "cow", "wildcat"))
    registry.register("wild:", int, list_names=names_of("wild", "wildcat", "Lynx"))
    registry.register("hub:", int)
    return registry, asked


@pytest.mark.parametrize(
    "pattern, names, asks",
    [
        (None, ["cat", "farm:*", "hub:*", "wild:*"], []),
        ("*cat*", ["cat", "farm:wildcat", "wild:wildcat"], ["farm", "wild"]),
        ("farm:*cat", ["farm:wildcat"], ["farm"]),
        ("f*", ["farm:cow", "farm:wildcat"], ["farm"]),
        ("[w]ild:*", ["wild:Lynx", "wild:wildcat"], ["farm", "wild"]),
        ("wild:lynx", [], ["wild"]),
        ("wild:Lynx", ["wild:Lynx"], ["wild"]),
        ("cat", ["cat"], []),
        ("c?t", ["cat"], []),
        ("hub*", ["hub:*"], []),
        ("nothing", [], []),
    ],
)
def test_a_pattern_asks_the_sources_that_could_match(zoo, pattern, names, asks):
    registry, asked = zoo
    assert registry.list(pattern) == names
    assert asked == asks


def _raises():
    raise RuntimeError("the server is away")


@pytest.mark.parametrize(
    "list_names, cause, error",
    [
        ("no_such_module_at_all:names", "no_such_module_at_all", MissingDependencyError),
        (_raises, "the server is away", ContractError),
        (lambda: 3, "not iterable", ContractError),
        (lambda: [3], "int", ContractError),
    ],
)
def test_a_source_that_cannot_be_asked_is_an_error_only_if_named(
    registry, list_names, cause, error
):
    registry.register("cat", int)
    registry.register("zoo:", int, list_names=list_names)
    with pytest.warns(PluginWarning, match=rf"'zoo:\*' .* are not listed: .*{cause}"):
        assert registry.list("*cat*") == ["cat"]
    with pytest.raises(error, match=cause):
        registry.list("zoo:*cat*")


# --- what a factory takes -------------------------------------------------------------------------


class WithOptions:
    def __init__(self, name="", *, size=1, **options):
        pass


@pytest.mark.parametrize(
    ("name", "argument", "expected"),
    [
        ("class", "size", True),
        ("class", "colour", False),  # it might be one of the options, nobody knows
        ("source:rest", "size", True),
        ("builtin", "iterable", False),
    ],
)
def test_a_factory_says_what_it_takes(registry, name, argument, expected):
    registry.register("class", WithOptions)
    registry.register("source:", WithOptions)
    registry.register("builtin", dict)
    assert registry.takes(name, argument) is expected


def test_what_nobody_registered_takes_nothing(registry):
    with pytest.raises(UnknownNameError):
        registry.takes("nothing", "size")


def test_who_registered_a_name(registry):
    mine = Origin("plugin", "mine", "gloria-mine", "1.0")
    with registering_as(mine):
        registry.register("square", "math:sqrt")
        registry.register("zoo:", "math:sqrt")
    assert registry.origin("square") is registry.origin("zoo:lion") is mine
    assert registry.origin("circle") is registry.origin("square:") is None
