"""Argument checks: each message says what was expected and what was given."""

import functools
import math

import numpy as np
import pytest
import torch

from gloria import errors
from gloria.checks import (
    check_choice,
    check_device,
    check_finite,
    check_fusion_weights,
    check_mask,
    check_options,
    check_positive,
    check_same_device,
    check_same_size,
    check_share,
    check_temperature,
    check_tensor,
    check_weight,
    require,
)
from gloria.errors import (
    DeviceError,
    DtypeError,
    GloriaError,
    MissingDependencyError,
    OptionError,
    ShapeError,
)

ROWS = ("row", "column")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_floating_tensors_pass(dtype, device):
    check_tensor("x", torch.zeros(2, 3, dtype=dtype, device=device), ROWS)
    check_tensor("x", torch.zeros(0, 3, dtype=dtype, device=device), ROWS)


def test_tensors_that_are_none():
    with pytest.raises(DtypeError, match=r"^x must be a tensor \(row, column\); got ndarray\.$"):
        check_tensor("x", np.zeros((2, 3)), ROWS)
    with pytest.raises(
        ShapeError, match=r"^x must be \(row, column\); got \(2,\)\. Add an axis\.$"
    ):
        check_tensor("x", torch.zeros(2), ROWS, "Add an axis.")
    with pytest.raises(ShapeError, match=r"^x must be \(row, column\); got \(\)\.$"):
        check_tensor("x", torch.tensor(1.0), ROWS)
    for dtype in (torch.int64, torch.bool, torch.complex64, torch.float8_e5m2):
        expected = f"^x must be a floating-point tensor of 16, 32 or 64 bits; got dtype {dtype}"
        with pytest.raises(DtypeError, match=expected):
            check_tensor("x", torch.zeros(2, 3, dtype=dtype), ROWS)
    for layout in (torch.zeros(2, 3).to_sparse(), torch.zeros(2, 3).to_mkldnn()):
        with pytest.raises(DtypeError, match=r"^x must be a dense tensor \(row, column\); got lay"):
            check_tensor("x", layout, ROWS)


def test_masks():
    check_mask("m", torch.ones(2, 3, dtype=torch.bool), (2, 3), ROWS)
    with pytest.raises(ShapeError, match=r"^m must be \(2, 3\) = \(row, column\); got \(3, 2\)\.$"):
        check_mask("m", torch.ones(3, 2, dtype=torch.bool), (2, 3), ROWS)
    with pytest.raises(ShapeError, match=r"^m must be \(row, column\); got \(3,\)\.$"):
        check_mask("m", torch.ones(3, dtype=torch.bool), (2, 3), ROWS)
    with pytest.raises(
        DtypeError, match=r"^m must be boolean.*got dtype torch.uint8.*mask\.bool\(\)"
    ):
        check_mask("m", torch.ones(2, 3, dtype=torch.uint8), (2, 3), ROWS)
    with pytest.raises(DtypeError, match=r"^m must be a tensor \(row, column\); got NoneType\.$"):
        check_mask("m", None, (2, 3), ROWS)


def test_devices():
    here, elsewhere = torch.zeros(2), torch.zeros(2, device="meta")
    check_same_device("a", elsewhere, "b", torch.zeros(3, device="meta"))
    with pytest.raises(
        DeviceError,
        match=r"^a must be on the device of b, cpu; got meta\. Move it with a\.to\(b\.device\)\.$",
    ):
        check_same_device("a", elsewhere, "b", here)


def test_devices_that_can_be_used_here():
    for device in ("cpu", torch.device("cpu")):
        check_device(device)
    for device in ("gpu", "cuda:99", torch.device("cuda:99")):
        with pytest.raises(OptionError, match=rf"^device '{device}' can't be used here: .+\.$"):
            check_device(device)


def test_sizes():
    check_same_size("dim", "a", 3, "b", 3)
    with pytest.raises(
        ShapeError, match=r"^a and b must agree in dim; got 3 and 4\. Project both\.$"
    ):
        check_same_size("dim", "a", 3, "b", 4, "Project both.")
    with pytest.raises(ShapeError, match=r"got 3 and 4\.$"):
        check_same_size("dim", "a", 3, "b", 4)


@pytest.mark.parametrize("value", [1, 0.1, 1e-30, np.float64(0.1)])
def test_positive_numbers_pass(value):
    check_positive("x", value)
    check_temperature("x", value)


@pytest.mark.parametrize("value", [0, -1, -0.0, np.float16(0), math.inf, -math.inf, math.nan])
def test_numbers_that_are_not_positive(value):
    with pytest.raises(OptionError, match=f"^x must be a finite number above 0; got {value}"):
        check_positive("x", value)


@pytest.mark.parametrize("value", [1e-31, 1e-40, np.float32(1e-40)])
def test_a_number_that_float32_cannot_divide_by_is_refused(value):
    with pytest.raises(OptionError, match=f"above 0; got {value}, too small for float32"):
        check_temperature("x", value)


@pytest.mark.parametrize("value", [1e31, 1e40, 10**400])
def test_a_number_that_float32_cannot_multiply_by_is_refused(value):
    for check, which in ((check_positive, "above 0"), (check_weight, "of at least 0")):
        with pytest.raises(OptionError, match=f"number {which}; got .*, too large for float32"):
            check("x", value)


@pytest.mark.parametrize("value", [True, False, "1", None, [1.0], 1j, torch.tensor(0.1)])
def test_positive_values_that_are_no_numbers(value):
    with pytest.raises(DtypeError, match=r"^x must be a number above 0; got "):
        check_positive("x", value)


@pytest.mark.parametrize("value", [0, -10.0, 1e300, np.float32(2), torch.tensor(math.inf)])
def test_finite_numbers_pass(value):
    check_finite("x", value)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_numbers_that_are_not_finite(value):
    with pytest.raises(OptionError, match=f"^x must be a finite number; got {value}"):
        check_finite("x", value)
    with pytest.raises(DtypeError, match=r"^x must be a number; got '1'"):
        check_finite("x", "1")


@pytest.mark.parametrize("value", [0, 0.25, 1, np.float64(0.5)])
def test_shares_pass(value):
    check_share("x", value)


@pytest.mark.parametrize("value", [-0.01, 1.01, math.inf, math.nan])
def test_numbers_that_are_no_share(value):
    with pytest.raises(OptionError, match=f"^x must be a number from 0 to 1; got {value}"):
        check_share("x", value)
    with pytest.raises(DtypeError, match=r"^x must be a number from 0 to 1; got True"):
        check_share("x", True)


def test_a_temperature_may_be_a_tensor_of_one_value():
    check_temperature("x", torch.tensor(0.1))
    check_temperature("x", torch.ones(1, 1))


def test_a_tensor_of_several_values_is_no_single_number():
    with pytest.raises(ShapeError, match=r"^x must be a single number; got a tensor \(3, 1\)\.$"):
        check_temperature("x", torch.ones(3, 1))


def test_choices():
    check_choice("x", "a", ("a", "b"))
    for bad in ("c", None, 1, ""):
        with pytest.raises(OptionError) as raised:
            check_choice("x", bad, ("a", "b"))
        assert str(raised.value) == f"x must be one of 'a', 'b'; got {bad!r}."
    with pytest.raises(OptionError, match=r"got 'chunk'\. Did you mean 'chunked'\?$"):
        check_choice("backend", "chunk", ("auto", "triton", "chunked", "einops"))


def test_a_dependency_that_is_there_is_returned():
    assert require("math", "all") is math


def test_a_missing_dependency_says_how_to_install_it():
    with pytest.raises(MissingDependencyError) as raised:
        require("a_package_nobody_has.part", "encoders")
    assert str(raised.value).startswith(
        "a_package_nobody_has is needed here and could not be imported (ModuleNotFoundError: "
    )
    assert str(raised.value).endswith("Install it with: pip install 'gloria-torch[encoders]'")
    assert isinstance(raised.value, ImportError)
    assert isinstance(raised.value.__cause__, ModuleNotFoundError)


def test_a_broken_dependency_is_chained_whatever_it_raises(tmp_path, monkeypatch):
    (tmp_path / "a_broken_package.py").write_text("raise RuntimeError('operator does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        MissingDependencyError, match="RuntimeError: operator does not exist"
    ) as raised:
        require("a_broken_package", "viz")
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_every_error_is_a_gloria_error_and_a_builtin():
    classes = [
        each
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, Exception) and not issubclass(each, Warning)
    ]
    assert len(classes) > 5
    builtins = (ValueError, TypeError, KeyError, RuntimeError, ImportError, ArithmeticError)
    for each in classes:
        assert issubclass(each, GloriaError)
        assert each is GloriaError or issubclass(each, builtins)


def test_two_numbers_of_any_kind_are_weights():
    for weights in ((0.5, 0.5), [1, 2], np.array([0.5, 2.5]), torch.tensor([0.5, 2.5])):
        check_fusion_weights(weights)


def test_options_are_of_what_is_called_and_not_of_what_it_wraps():
    def inner(width):
        return width

    @functools.wraps(inner)
    def outer(width, seed=0):
        return inner(width)

    check_options("it", outer, ["width", "seed"])
    with pytest.raises(errors.UnknownOptionError, match="it has no option 'depth'"):
        check_options("it", outer, ["depth"])
