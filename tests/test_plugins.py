"""Plugins found by real entry-point discovery: healthy, faulty and hostile ones."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from gloria.catalog import Catalog
from gloria.cli.info import collect, render
from gloria.errors import ContractError, MissingDependencyError, PluginWarning, UnknownNameError

HEALTHY = """
    def gloria_register_losses(register):
        register("healthy", "zz_healthy_losses:Healthy")
"""
HEALTHY_LOSSES = """
    from torch import nn
    class Healthy(nn.Module):
        def forward(self): return 1
"""


@pytest.fixture
def healthy(install):
    """A plugin without fault, which is sorted behind the faulty ones."""
    install(
        "zz-healthy",
        {"zz_healthy.py": HEALTHY, "zz_healthy_losses.py": HEALTHY_LOSSES},
        {"healthy": "zz_healthy"},
        version="2.5",
    )


@pytest.fixture
def install_faulty(install):
    """Install a plugin ``faulty`` of ``a-faulty 1.0`` with this code."""

    def install_faulty(code: str, target: str = "a_faulty") -> None:
        install("a-faulty", {"a_faulty.py": code}, {"faulty": target})

    return install_faulty


def discover(catalog: Catalog):
    """The catalog's record of each plugin under test, and the warnings of finding them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        records = catalog.plugins()
    assert all(each.category is PluginWarning for each in caught)
    return {record.name: record for record in records}, [str(each.message) for each in caught]


def names_by_registry(catalog: Catalog):
    return {key: registry.list() for key, registry in catalog.registries.items()}


# --- a healthy plugin -----------------------------------------------------------------------------


def test_a_healthy_plugin_is_listed_and_created(install, healthy):
    catalog = Catalog()
    assert "healthy" in catalog.list("losses")
    assert catalog.create("losses", "healthy", {})() == 1
    records, caught = discover(catalog)
    record = records["healthy"]
    assert (record.distribution, record.version, record.status) == ("zz-healthy", "2.5", "loaded")
    assert record.registered["losses"] == ["healthy"]
    assert caught == []


def test_all_four_hooks_and_sources(install):
    install(
        "zoo",
        {
            "zoo.py": """
                def gloria_register_image_encoders(register):
                    register("zoo:", "zoo_makers:image", list_names="zoo_makers:names")
                def gloria_register_text_encoders(register):
                    register("zoo_text", "zoo_makers:text")
                def gloria_register_aggregators(register):
                    register("zoo_middle", "zoo_makers:middle")
                def gloria_register_losses(register):
                    register("zoo_loss", "zoo_makers:loss")
            """,
            "zoo_makers.py": """
                from torch import nn
                from gloria.types import ImageInput
                def names(): return ["cat", "wildcat", "dog"]
                def image(name, scale=1):
                    made = nn.Identity()
                    made.pooled_dim = made.region_dim = scale
                    made.image_input = ImageInput(1, name, (0.5,), (0.5,))
                    return made
                def text():
                    made = nn.Identity()
                    made.pooled_dim = made.word_dim = 3
                    made.tokenize = lambda texts: texts
                    return made
                def middle(): return lambda values, mask, dim: values
                def loss(): return nn.Identity()
            """,
        },
        {"zoo": "zoo"},
    )
    catalog = Catalog()
    assert "zoo:*" in catalog.list("image_encoders")
    assert catalog.list("image_encoders", "zoo:*cat") == ["zoo:cat", "zoo:wildcat"]
    encoder = catalog.create("image_encoders", "zoo:cat", {"scale": 7})
    assert (encoder.pooled_dim, encoder.image_input.size) == (7, "cat")
    assert catalog.create("text_encoders", "zoo_text", {}).word_dim == 3
    assert catalog.create("aggregators", "zoo_middle", {})(1, None, 0) == 1
    assert catalog.create("losses", "zoo_loss", {})("x") == "x"


def test_hooks_may_be_methods_of_an_object_and_wear_pluggys_marker(install):
    install(
        "marked",
        {
            "marked.py": """
                import pluggy
                class Plugin:
                    @pluggy.HookimplMarker("gloria")
                    def gloria_register_losses(self, register):
                        register("marked", "torch.nn:Identity")
                plugin = Plugin()
            """
        },
        {"marked": "marked:plugin"},
    )
    records, caught = discover(Catalog())
    assert records["marked"].registered["losses"] == ["marked"]
    assert caught == []


def test_plugins_are_looked_for_once(install, tmp_path):
    count = tmp_path / "count"
    install(
        "counting",
        {
            "counting.py": f"""
                import time
                def gloria_register_losses(register):
                    time.sleep(0.05)  # long enough for every thread to arrive
                    with open({str(count)!r}, "a") as file:
                        file.write("x")
                    register("counting", "torch.nn:Identity")
            """
        },
        {"counting": "counting"},
    )
    catalog = Catalog()
    assert not count.exists()
    with ThreadPoolExecutor(8) as pool:
        lists = list(pool.map(catalog.list, ["losses"] * 8))
    assert all("counting" in names for names in lists)
    assert count.read_text() == "x"


# --- faulty plugins -------------------------------------------------------------------------------

FAULTY = {
    "raises on import": (
        "raise RuntimeError('no licence')",
        ["importing a_faulty", "a_faulty.py:1", "RuntimeError: no licence"],
    ),
    "exits on import": (
        "import sys\nsys.exit('bye')",
        ["importing a_faulty", "a_faulty.py:2", "SystemExit: bye"],
    ),
    "raises what is no Exception": (
        """
        class Abort(BaseException): pass
        raise Abort("enough")
        """,
        ["importing a_faulty", "Abort: enough"],
    ),
    "raises what can't be shown": (
        """
        class Mute(Exception):
            def __str__(self): raise RuntimeError
        raise Mute
        """,
        ["importing a_faulty", "a_faulty.py:4", ": Mute. GLORIA_DISABLE_PLUGINS"],
    ),
    "is no Python": ("def f(:", ["importing a_faulty", "SyntaxError"]),
    "misses a package": (
        "import no_such_package_at_all",
        ["importing a_faulty", "No module named 'no_such_package_at_all'"],
    ),
    "raises halfway": (
        """
        def gloria_register_aggregators(register):
            register("half_a", "torch.nn:Identity")
        def gloria_register_losses(register):
            register("half_b", "torch.nn:Identity")
            raise RuntimeError("halfway")
        """,
        ["calling gloria_register_losses", "a_faulty.py:6", "RuntimeError: halfway"],
    ),
    "shadows a built-in": (
        """
        def gloria_register_losses(register):
            register("mine", "torch.nn:Identity")
            register("local_contrastive", "torch.nn:Identity")
        """,
        ["a_faulty.py:4", "built-in", "gloria.losses:LocalContrastiveLoss", "torch.nn:Identity"],
    ),
    "shadows a source": (
        """
        def gloria_register_image_encoders(register):
            register("timm:", "torch.nn:Identity")
        """,
        ["'timm:*'", "built-in", "DuplicateNameError"],
    ),
    "registers a name twice": (
        """
        def gloria_register_losses(register):
            register("mine", "torch.nn:Identity")
            register("mine", "torch.nn:Linear")
        """,
        ["DuplicateNameError", "torch.nn:Identity", "torch.nn:Linear"],
    ),
    "a hook with another argument": (
        "def gloria_register_losses(registry): pass",
        ["reading the hooks of a_faulty", "registry", "PluginValidationError"],
    ),
    "a hook without argument": (
        "def gloria_register_losses(): pass",
        ["gloria_register_losses must take one argument, 'register'"],
    ),
    "a hook that does not exist": (
        "def gloria_register_optimizers(register): pass",
        ["unknown hook 'gloria_register_optimizers'"],
    ),
    "a hook that yields": (
        """
        def gloria_register_losses(register):
            yield register("mine", "torch.nn:Identity")
        """,
        ["returns nothing; got generator"],
    ),
    "a hook that is no function": (
        """
        def gloria_register_aggregators(register): register("mine", "torch.nn:Identity")
        gloria_register_losses = {"mine": "torch.nn:Identity"}
        """,
        ["reading the hooks of a_faulty", "gloria_register_losses"],
    ),
    "no hook": ("x = 1", ["defines none of the hooks", "gloria_register_image_encoders"]),
    "a hook that returns instead of registering": (
        "def gloria_register_losses(register): return {'mine': 'torch.nn:Identity'}",
        ["returns nothing; got dict", "mine"],
    ),
    "registers a malformed name": (
        "def gloria_register_losses(register): register('my loss', 'torch.nn:Identity')",
        ["OptionError", "got 'my loss'"],
    ),
}


@pytest.mark.parametrize("code, said", FAULTY.values(), ids=FAULTY)
def test_a_faulty_plugin_leaves_nothing_and_harms_nobody(install_faulty, healthy, code, said):
    untouched = names_by_registry(Catalog())
    install_faulty(code)
    catalog = Catalog()
    records, caught = discover(catalog)

    assert records["faulty"].status == "skipped"
    assert records["faulty"].registered == {}
    assert len(caught) == 1
    advice = "GLORIA_DISABLE_PLUGINS=faulty leaves it out."
    for part in ("plugin 'faulty' of a-faulty 1.0 is skipped: ", " failed: ", *said, advice):
        assert part in caught[0]
    assert ".. GLORIA" not in caught[0]
    shown = [line for line in render(collect(catalog)).splitlines() if line.startswith("  faulty ")]
    assert len(shown) == 1
    assert "a-faulty 1.0, skipped: " in shown[0]

    assert records["healthy"].status == "loaded"
    assert catalog.create("losses", "healthy", {})() == 1
    untouched["losses"] = sorted([*untouched["losses"], "healthy"])
    assert names_by_registry(catalog) == untouched
    assert catalog.losses.get("local_contrastive").__module__.startswith("gloria.")
    assert discover(catalog)[1] == []  # said once


@pytest.mark.parametrize(
    "target", ["a_faulty:missing", "no_such_module_at_all", "::", "a_faulty:x"]
)
def test_an_entry_point_that_leads_nowhere(install_faulty, healthy, target):
    install_faulty("x = None", target)
    catalog = Catalog()
    records, caught = discover(catalog)
    assert records["faulty"].status == "skipped"
    assert len(caught) == 1
    assert catalog.create("losses", "healthy", {})() == 1


def test_of_two_plugins_with_one_name_the_first_has_it(install):
    code = "def gloria_register_losses(register): register('same', 'torch.nn:{}')"
    install("b-second", {"b_second.py": code.format("Linear")}, {"b": "b_second"})
    install("a-first", {"a_first.py": code.format("Identity")}, {"a": "a_first"})
    catalog = Catalog()
    records, caught = discover(catalog)
    assert (records["a"].status, records["b"].status) == ("loaded", "skipped")
    assert "plugin 'a' of a-first 1.0" in caught[0]
    assert "plugin 'b' of b-second 1.0" in caught[0]
    assert catalog.losses.get("same").__name__ == "Identity"


def test_two_plugins_of_one_distribution_stand_and_fall_alone(install):
    install(
        "pair",
        {
            "pair_good.py": "def gloria_register_losses(register): register('good', 'm:x')",
            "pair_bad.py": """
                def gloria_register_losses(register):
                    register('bad', 'm:x')
                    raise ValueError
            """,
        },
        {"pair": "pair_good", "pair-too": "pair_bad"},
    )
    catalog = Catalog()
    records, caught = discover(catalog)
    assert (records["pair"].status, records["pair-too"].status) == ("loaded", "skipped")
    assert "good" in catalog.list("losses")
    assert "bad" not in catalog.list("losses")
    assert len(caught) == 1


def test_what_a_failing_plugin_decorated_at_import_is_taken_back(install_faulty, monkeypatch):
    catalog = Catalog()
    monkeypatch.setattr("gloria.catalog.register_loss", catalog.losses.register)
    install_faulty(
        """
        from gloria.catalog import register_loss
        register_loss("decorated", "torch.nn:Identity")
        raise ValueError("too late")
        """
    )
    discover(catalog)
    assert "decorated" not in catalog.list("losses")


def test_a_plugin_may_ask_for_lists_while_it_is_loaded(install, monkeypatch):
    catalog = Catalog()
    monkeypatch.setattr("gloria.catalog.list_losses", lambda: catalog.list("losses"))
    install(
        "curious",
        {
            "curious.py": """
                import gloria.catalog
                def gloria_register_losses(register):
                    assert "local_contrastive" in gloria.catalog.list_losses()
                    register("curious", "torch.nn:Identity")
            """
        },
        {"curious": "curious"},
    )
    assert "curious" in catalog.list("losses")


def test_a_plugin_that_makes_its_own_thing_while_it_is_loaded_is_told_so(
    install_faulty, healthy, monkeypatch
):
    catalog = Catalog()
    monkeypatch.setattr(
        "gloria.catalog.create_loss", lambda name: catalog.create("losses", name, {})
    )
    install_faulty(
        """
        import gloria.catalog
        gloria.catalog.create_loss("mine")
        def gloria_register_losses(register): register("mine", "torch.nn:Identity")
        """
    )
    records, caught = discover(catalog)
    assert records["faulty"].status == "skipped"
    assert "UnknownNameError: no loss is named 'mine'" in caught[0]
    assert "healthy" in catalog.list("losses")


def test_a_plugin_without_metadata_is_named_by_its_entry_point(install_faulty, install):
    install_faulty("raise ValueError('x')")
    (install.site / "a_faulty-1.0.dist-info" / "METADATA").unlink()
    _, caught = discover(Catalog())
    assert caught[0].startswith("plugin 'faulty' of faulty is skipped: importing a_faulty")


def test_interrupted_discovery_leaves_nothing_and_starts_afresh(install, healthy, monkeypatch):
    install(
        "zzz-slow",
        {
            "zzz_slow.py": """
                import os
                def gloria_register_losses(register):
                    register("slow", "torch.nn:Identity")
                    if os.environ.get("PRESS_CTRL_C"):
                        raise KeyboardInterrupt
            """
        },
        {"slow": "zzz_slow"},
    )
    catalog = Catalog()
    built_in = names_by_registry(catalog)
    monkeypatch.setenv("PRESS_CTRL_C", "1")
    with pytest.raises(KeyboardInterrupt):
        catalog.list("losses")
    assert names_by_registry(catalog) == built_in
    monkeypatch.delenv("PRESS_CTRL_C")
    assert {"healthy", "slow"} <= set(catalog.list("losses"))


def test_warnings_turned_into_errors_leave_a_working_catalog(install_faulty, healthy):
    install_faulty("raise RuntimeError")
    catalog = Catalog()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PluginWarning, match="faulty"):
            catalog.list("losses")
        assert "healthy" in catalog.list("losses")


def test_built_in_names_are_made_without_asking_plugins(install_faulty):
    install_faulty("raise KeyboardInterrupt")
    catalog = Catalog()
    assert catalog.create("aggregators", "max", {})
    with pytest.raises(KeyboardInterrupt):  # as if it were Ctrl-C, which it could be
        catalog.create("aggregators", "maximum", {})


def test_a_plugin_is_asked_for_its_hooks_only(install):
    install(
        "magic",
        {
            "magic.py": """
                class Magic:
                    torch_of_ten_seconds = property(lambda self: 1 / 0)
                    def __getattr__(self, name): raise RuntimeError(name)
                    def gloria_register_losses(self, register):
                        register("magic", "torch.nn:Identity")
                plugin = Magic()

                def __getattr__(name):  # every other name of this module is imported lazily
                    raise RuntimeError(name)
                def __dir__(): return ["gloria_register_aggregators", "heavy"]
                def gloria_register_aggregators(register): register("lazy", "torch.nn:Identity")
            """
        },
        {"object": "magic:plugin", "module": "magic"},
    )
    records, caught = discover(Catalog())
    assert caught == []
    assert records["object"].registered["losses"] == ["magic"]
    assert records["module"].registered["aggregators"] == ["lazy"]


def test_ten_thousand_names_are_listed_and_found(install):
    install(
        "crowd",
        {
            "crowd.py": """
                def gloria_register_losses(register):
                    for number in range(10_000):
                        register(f"crowd{number}", "torch.nn:Identity")
            """
        },
        {"crowd": "crowd"},
    )
    catalog = Catalog()
    assert len(catalog.list("losses", "crowd*")) == 10_000
    assert catalog.create("losses", "crowd9999", {})("x") == "x"
    with pytest.raises(UnknownNameError, match=r"crowd\d+.* and \d+ more\.$") as caught:
        catalog.create("losses", "crowd_9999", {})
    assert len(str(caught.value)) < 2000


# --- plugins that fail when used ------------------------------------------------------------------


def test_a_target_is_imported_when_it_is_used_and_not_before(install, healthy, tmp_path):
    seen = tmp_path / "imported"
    install(
        "slow",
        {
            "slow.py": """
                def gloria_register_losses(register): register("slow", "slow_losses:Slow")
            """,
            "slow_losses.py": f"""
                open({str(seen)!r}, "w").close()
                from torch.nn import Identity as Slow
            """,
        },
        {"slow": "slow"},
    )
    catalog = Catalog()
    assert "slow" in catalog.list("losses")
    catalog.create("losses", "healthy", {})
    assert not seen.exists()
    catalog.create("losses", "slow", {})
    assert seen.exists()


def test_a_missing_package_is_an_error_of_its_use_only(install_faulty, healthy):
    install_faulty(
        """
        def gloria_register_losses(register):
            register("needy", "a_needy:Needy")
        """
    )
    catalog = Catalog()
    assert discover(catalog)[1] == []
    with pytest.raises(MissingDependencyError, match=r"plugin 'faulty' of a-faulty 1\.0") as caught:
        catalog.create("losses", "needy", {})
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert catalog.create("losses", "healthy", {})() == 1


def test_a_source_that_fails_to_list_harms_no_other(install_faulty, healthy):
    install_faulty(
        """
        def names(): raise RuntimeError('bye')
        def gloria_register_losses(register):
            register("zoo:", "torch.nn:Identity", list_names=names)
        """
    )
    catalog, told = Catalog(), r"'zoo:\*' .*plugin 'faulty'.* not listed: RuntimeError: bye"
    with pytest.warns(PluginWarning, match=told):
        assert "healthy" in catalog.list("losses", "*h*")
    with pytest.raises(ContractError, match=told):
        catalog.list("losses", "zoo:*")


@pytest.mark.parametrize(
    "key, complaint",
    [
        ("losses", "made must be a module: it is no nn.Module, it is list"),
        ("image_encoders", "made must be an image encoder: it is no nn.Module, it is list"),
        ("text_encoders", "made must be a text encoder: it is no nn.Module, it is list"),
        ("aggregators", "made must be an aggregator: it is not callable, list"),
    ],
)
def test_what_a_plugin_makes_must_keep_the_contract(install_faulty, key, complaint):
    install_faulty(f"def gloria_register_{key}(register): register('odd', 'builtins:list')")
    with pytest.raises(ContractError, match=complaint) as caught:
        Catalog().create(key, "odd", {})
    assert "plugin 'faulty' of a-faulty 1.0, builtins:list" in str(caught.value)


@pytest.mark.parametrize(
    "key, lacking",
    [
        ("image_encoders", "Identity lacks pooled_dim, region_dim, image_input"),
        ("text_encoders", "Identity lacks pooled_dim, word_dim, tokenize"),
    ],
)
def test_an_encoder_must_tell_its_widths(install_faulty, key, lacking):
    install_faulty(f"def gloria_register_{key}(register): register('odd', 'torch.nn:Identity')")
    with pytest.raises(ContractError, match=lacking):
        Catalog().create(key, "odd", {})


# --- the switch -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "switch", ["faulty", "a-faulty", "A_Faulty", "a-faulty, faulty ,", "all", "ALL", "a.faulty,all"]
)
def test_a_plugin_is_disabled_by_its_name_or_its_distribution(
    install_faulty, healthy, monkeypatch, switch
):
    install_faulty("raise RuntimeError")
    monkeypatch.setenv("GLORIA_DISABLE_PLUGINS", switch)
    catalog = Catalog()
    records, caught = discover(catalog)
    assert records["faulty"].status == "disabled"
    assert switch in records["faulty"].cause
    assert caught == []
    assert ("healthy" in catalog.list("losses")) == ("all" not in switch.lower())


def test_a_misspelt_name_in_the_switch_is_told_once(healthy, monkeypatch):
    monkeypatch.setenv("GLORIA_DISABLE_PLUGINS", "helthy, ,zz_healthy")
    catalog = Catalog()
    _, caught = discover(catalog)
    assert caught == ["GLORIA_DISABLE_PLUGINS names 'helthy': no such plugin."]
    assert "healthy" not in catalog.list("losses")


def test_an_unknown_name_tells_which_plugins_are_not_loaded(install_faulty, healthy, monkeypatch):
    install_faulty("raise RuntimeError('no licence')")
    monkeypatch.setenv("GLORIA_DISABLE_PLUGINS", "healthy")
    catalog = Catalog()
    discover(catalog)
    with pytest.raises(UnknownNameError, match="no loss is named 'healthy'") as caught:
        catalog.create("losses", "healthy", {})
    notes = "\n".join(caught.value.__notes__)
    assert "plugin 'faulty' of a-faulty 1.0 is skipped: importing a_faulty" in notes
    assert "plugin 'healthy' of zz-healthy 2.5 is disabled" in notes
