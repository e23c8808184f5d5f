"""An accelerator that is not there: its tensors say so, and hold their numbers on the CPU.

Inside ``emulated("mps")``, ``emulated("cuda")`` or ``emulated("xpu")`` tensors are made on such a
device, or moved there, and computed with on the CPU, forward and backward. What torch refuses on
the device is refused: tensors of two devices, ``numpy()``, a generator of the CPU; on MPS, float64
and what has no kernel. It tells nothing of how a device rounds, nor how fast it is.
"""

from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map, tree_map_only

PLACE = torch.device("meta", 7)
"""What C++ takes for the device: one without memory, so what would compute there is an error."""

aten = torch.ops.aten
ANYWHERE = {aten.index: [1], aten.index_put: [1], aten.index_put_: [1]}
"""Which arguments, counted from 0, may be on the CPU, whatever their shape."""
NUMBERS = {aten.masked_fill: [2], aten.masked_fill_: [2], aten.fill_: [1], aten.index_put_: [2]}
"""Which may if they are a single number, as all may of what computes number by number."""
WAITING = {aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten._unique2}
"""For whose result the host waits."""
CASTING = (
    *(torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.mm, torch.bmm),
    *(torch.einsum, torch.baddbmm, torch.addmm, functional.linear, torch.conv2d),
    *(torch.conv_transpose2d, functional.scaled_dot_product_attention),
)
"""What :func:`torch.autocast` computes in half precision."""


class DeviceTensor(Tensor):
    """A tensor on the device; ``held`` is the one that is computed with."""

    kind = ""
    is_cpu = is_meta = property(lambda self: False)
    is_mps = property(lambda self: self.kind == "mps")
    is_cuda = property(lambda self: self.kind == "cuda")
    is_xpu = property(lambda self: self.kind == "xpu")
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __new__(cls, held):
        if cls.kind == "mps" and held.dtype in (torch.float64, torch.complex128):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support "
                "float64. Please use float32 instead."
            )
        place = {"dtype": held.dtype, "device": PLACE}
        shape = held.shape, held.stride(), held.storage_offset()
        made = Tensor._make_wrapper_subclass(cls, *shape, **place)
        made.held = held
        return made

    @property
    def device(self):
        # torch's own functions, in which _Calls is off, make tensors like this one by it
        on = any(isinstance(mode, _Calls) for mode in _get_current_function_mode_stack())
        return torch.device(self.kind, 0) if on else PLACE

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def __tensor_flatten__(self):  # having this, it takes the place of a module's parameter
        return ["held"], None

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            made = memo[id(self)] = self.detach().clone().requires_grad_(self.requires_grad)
            made.__dict__.update({**self.__dict__, "held": made.held})  # a parameter remains one
        return memo[id(self)]

    def __reduce_ex__(self, protocol):  # as read again with map_location="cpu"
        return self.held.__reduce_ex__(protocol)

    def __repr__(self):
        return f"{self.held} on {self.device}"

    def get_device(self):
        return 0

    def data_ptr(self):
        return self.held.data_ptr()

    def untyped_storage(self):
        return self.held.untyped_storage()

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *_, **__):
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy "
            f"the tensor to host memory first."
        )

    __array__ = numpy


@contextmanager
def emulated(kind):
    """Inside, that kind of device is there, and the fastest; yields its ``waits``, counted."""
    module, here = torch.get_device_module(kind), torch.device(kind)
    stream = SimpleNamespace(is_capturing=lambda: False)
    run_backward = torch.autograd._engine_run_backward

    def run_backward_there(*args, **kwargs):
        with _Calls():  # that which torch.autograd.grad came by is off inside of it
            return run_backward(*args, **kwargs)

    _SEEN.waits = 0
    with ExitStack() as stack:
        for owner, name, value in (
            (DeviceTensor, "kind", kind),
            (torch.accelerator, "current_accelerator", lambda check_available=False: here),
            (torch.accelerator, "device_count", lambda: 1),
            (torch.accelerator, "device_index", lambda index: nullcontext()),
            (torch.accelerator, "current_stream", lambda device=None: stream),
            (module, "get_rng_state", lambda device=None: None),  # it draws by the CPU's
            (module, "set_rng_state", lambda state, device=None: None),
            (torch.autograd, "_engine_run_backward", run_backward_there),
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch.cuda, "is_bf16_supported", lambda: True),
            (torch.cuda, "is_current_stream_capturing", lambda: False),
        ):
            stack.enter_context(patch.object(owner, name, value))
        # of what a graph keeps it is not told by Python, but by C++, where it is
        checks = torch.utils.checkpoint._allowed_determinism_checks_to_fns
        stack.enter_context(patch.dict(checks, default=checks["none"]))
        stack.enter_context(_Operators())
        stack.enter_context(_Calls())
        yield _SEEN


_SEEN = SimpleNamespace(waits=0)


class _Calls(TorchFunctionMode):
    """Python's calls: what is asked for on the device is asked for at its place."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = {**(kwargs or {})}
        if func in (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor):
            return _from_data(func, args, kwargs)
        if func in (Tensor.__getitem__, Tensor.__setitem__):  # data in brackets
            place = args[1] if isinstance(args[1], tuple) else (args[1],)
            place = tuple(torch.tensor(x) if isinstance(x, list | range) else x for x in place)
            new = (x if isinstance(x, Tensor) else torch.tensor(x) for x in args[2:])
            args = (args[0], place, *new)
        if func is Tensor.to and len(args) > 1:
            args = (args[0], _placed(args[1]), *args[2:])
        if func in CASTING and torch.is_autocast_enabled(DeviceTensor.kind):
            half = torch.get_autocast_dtype(DeviceTensor.kind)
            args, kwargs = tree_map_only(
                DeviceTensor, lambda x: x.to(half) if x.is_floating_point() else x, (args, kwargs)
            )
        if "device" in kwargs:
            kwargs["device"] = _placed(kwargs["device"])
        args = [_placed(each) if isinstance(each, torch.device) else each for each in args]
        return func(*args, **kwargs)


class _Operators(TorchDispatchMode):
    """Operators of which no tensor is on the device; they may make one there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _placed(device):
    """The place of the device where it is meant, by its name, too."""
    if isinstance(device, str) and device.partition(":")[0] == DeviceTensor.kind:
        return PLACE
    return PLACE if getattr(device, "type", None) == DeviceTensor.kind else device


def _from_data(func, args, kwargs):
    """A tensor of Python's numbers, made on the CPU and moved."""
    if func is Tensor.new_tensor:
        like, *args = args
        kwargs = {"dtype": like.dtype, "device": like.device, **kwargs}
        func = torch.tensor
    device = _placed(kwargs.pop("device", None))
    if device == PLACE:
        return func(*args, **kwargs, device="cpu").to(PLACE)
    return func(*args, **kwargs, **({} if device is None else {"device": device}))


def _run(func, args, kwargs):
    """An operator's result, on the device if an argument is, or if it is asked for there."""
    given = [each for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)]
    outer = {id(each.held): each for each in given if isinstance(each, DeviceTensor)}
    asked = kwargs.get("device")
    if not outer and asked != PLACE:
        return func(*args, **kwargs)
    if func.namespace != "aten":  # ours: what it is made of is looked at
        with _Operators(), _Calls():
            return torch._library.custom_ops.OPDEFS[func.name()]._init_fn(*args, **kwargs)
    if torch.is_inference_mode_enabled() and func._can_decompose():
        with _Operators():
            return func.decompose(*args, **kwargs)
    _refuse(func, args, kwargs)
    _SEEN.waits += _waits(func, args, given, asked)
    if asked == PLACE:
        kwargs = {**kwargs, "device": torch.device("cpu")}
        kwargs.pop("pin_memory", None)
    held_args, held_kwargs = tree_map_only(DeviceTensor, lambda each: each.held, (args, kwargs))
    if func.overloadpacket is aten._fused_sdp_choice:
        return 0  # by matrix products: the others are of a device each
    result = func(*held_args, **held_kwargs)
    if func.overloadpacket in (aten.empty, aten.empty_strided, aten.empty_like, aten.new_empty):
        # what it holds is anybody's guess
        result.fill_(float("nan") if result.is_floating_point() else 99)
    if func._schema.is_mutable and not isinstance(args[0], DeviceTensor | list | tuple):
        return result  # copied to the CPU
    if asked not in (None, PLACE):
        return result

    def wrap(value):
        if not isinstance(value, Tensor):
            return value
        changed = outer.get(id(value))
        if changed is None:
            return DeviceTensor(value)
        if changed.shape != value.shape:  # as by squeeze_: so does what stands at the place
            with torch._C._DisableTorchDispatch():
                func(*args, **kwargs)
        return changed

    return tree_map(wrap, result)


def _refuse(func, args, kwargs):
    """Raise what torch raises on the device."""
    packet, schema, kind = func.overloadpacket, func._schema, DeviceTensor.kind
    if kind == "mps" and schema.name.removeprefix("aten::") in _not_on_mps():
        raise NotImplementedError(
            f"The operator '{schema.name}' is not currently implemented for the MPS device."
        )
    into = args[0].dtype if packet is aten.copy_ else kwargs.get("dtype")
    copied = packet in (aten._to_copy, aten.copy_) and isinstance(args[-1], DeviceTensor)
    if kind == "mps" and copied and into == torch.float64:
        # of torch 2.14 it is worse: nothing is copied (pytorch/pytorch issue 197715)
        raise TypeError("Undefined type Double: cast to float64 on the CPU, after the copy")
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != kind:
        raise RuntimeError(
            f"Expected a '{kind}' device type for generator but found '{generator.device.type}'"
        )
    every = (*args, kwargs)
    if packet is aten.copy_ or not any(isinstance(each, DeviceTensor) for each in tree_iter(every)):
        return
    for number, argument in enumerate(every):
        if number in ANYWHERE.get(packet, ()):
            continue
        number_by_number = torch.Tag.pointwise in func.tags or number in NUMBERS.get(packet, ())
        changed = schema.is_mutable and number == 0
        for each in tree_iter(argument):
            elsewhere = isinstance(each, Tensor) and not isinstance(each, DeviceTensor)
            alone = elsewhere and each.dim() == 0 and number_by_number and not changed
            if elsewhere and not alone:
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but found at least two "
                    f"devices, {kind}:0 and cpu! ({func})"
                )


def _waits(func, args, given, asked):
    """Whether the host waits for what comes back of the device."""
    packet = func.overloadpacket
    by_mask = packet in (aten.index, aten.index_put, aten.index_put_) and any(
        each is not None and each.dtype == torch.bool for each in args[1]
    )
    back = packet is aten.copy_ and not isinstance(given[0], DeviceTensor)
    return packet in WAITING or by_mask or back or (asked not in (None, PLACE))


@cache
def _not_on_mps():
    """The operators that this version of torch has on the CPU and not on MPS, by name."""
    import torchgen
    from torchgen.gen import parse_native_yaml
    from torchgen.model import DispatchKey

    folder = Path(torchgen.__file__).parent / "packaged/ATen/native"
    parsed = parse_native_yaml(str(folder / "native_functions.yaml"), str(folder / "tags.yaml"))
    cpu, mps = (parsed.backend_indices[key] for key in (DispatchKey.CPU, DispatchKey.MPS))
    named = {each.func.name: each for each in parsed.native_functions}

    def names(index):
        """Those with a kernel, their own or that of the variant they are made from."""
        return {
            str(each.func.name.name)
            for each in parsed.native_functions
            if each.has_composite_kernel
            or index.has_kernel(named.get(each.structured_delegate, each))
        }

    return names(cpu) - names(mps) - {"_fused_sdp_choice"}
