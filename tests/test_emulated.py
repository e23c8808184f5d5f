"""The emulated accelerator: what a device does, with the CPU's numbers, and what it refuses."""

import copy

import pytest
import torch
from emulated import emulated
from torch import nn
from torch.nn import functional


@pytest.fixture(params=["mps", "cuda", "xpu"])
def kind(request):
    with emulated(request.param):
        yield request.param


def test_tensors_say_where_they_are(kind):
    made = torch.zeros(2, 3, device=kind)
    moved = torch.zeros(2, 3).to(kind)
    for each in (made, moved, moved[0], moved + 1, torch.tensor([1.0], device=kind), made.T):
        assert each.device == torch.device(kind, 0)
        assert (each.is_cpu, each.is_cuda) == (False, kind == "cuda")
    assert moved.new_ones(2).device == moved.new_tensor([1]).device == moved.device
    assert torch.arange(3, device=moved.device).tolist() == [0, 1, 2]
    assert moved.cpu().device == torch.zeros(1).to(moved.cpu()).device == torch.device("cpu")
    assert torch.accelerator.current_accelerator().type == kind


@pytest.mark.parametrize(
    "mix",
    [
        lambda here, there: here + there,
        lambda here, there: there @ here,
        lambda here, there: torch.stack([here[0], there[0]]),
        lambda here, there: torch.cat([there, torch.zeros(())[None, None].expand(1, 3)]),
        lambda here, there: here.add_(there.sum()),
        lambda here, there: here.sum().add_(there.sum()),  # its result is on the device
        lambda here, there: here[there.argmax(1)],
        lambda here, there: there.gather(1, here.long()),
        lambda here, there: functional.cross_entropy(there, torch.zeros(3).long()),
        lambda here, there: functional.embedding(here.long(), there),
        lambda here, there: nn.Linear(3, 2)(there),
    ],
)
def test_tensors_of_two_devices_are_refused(kind, mix):
    with pytest.raises(RuntimeError, match=f"at least two devices, {kind}:0 and cpu"):
        mix(torch.ones(3, 3), torch.ones(3, 3, device=kind))


def test_numbers_of_the_cpu_and_its_indices_are_taken(kind):
    there = torch.arange(6.0).to(kind).reshape(2, 3)
    assert (there * torch.tensor(2.0)).tolist() == [[0, 2, 4], [6, 8, 10]]
    assert torch.where(there > 4, torch.tensor(0.0), there).sum().item() == 10
    assert there[torch.tensor([1])].tolist() == there[[1]].tolist() == [[3, 4, 5]]
    there[torch.tensor([True, False])] = 7.0
    there[1, 0] = torch.tensor(9.0)
    assert there.tolist() == [[7, 7, 7], [9, 4, 5]]
    here = torch.zeros(2, 3)
    assert here.copy_(there).tolist() == there.tolist()


def test_numpy_and_the_generator_of_the_cpu_are_refused(kind):
    with pytest.raises(TypeError, match=r"can't convert .* device type tensor to numpy"):
        torch.zeros(2, device=kind).numpy()
    with pytest.raises(RuntimeError, match=f"Expected a '{kind}' device type for generator"):
        torch.rand(2, device=kind, generator=torch.Generator())


@pytest.mark.parametrize(
    "widen",
    [
        lambda there: there.double(),
        lambda there: there.to("cpu", torch.float64),
        lambda there: torch.zeros(2, dtype=torch.float64).copy_(there),
        lambda there: torch.zeros(2, dtype=torch.float64).to(there.device),
        lambda there: torch.tensor([1.0], dtype=torch.float64, device=there.device),
        lambda there: there.sum(dtype=torch.float64),
        lambda there: torch.mul(there.long(), torch.tensor(0.5, dtype=torch.float64)),
        lambda there: there.new_zeros(1, dtype=torch.complex128),
    ],
)
def test_float64_is_refused_on_mps_alone(widen):
    with emulated("mps"), pytest.raises(TypeError, match="float64"):
        widen(torch.ones(2, device="mps"))
    with emulated("cuda"):
        widen(torch.ones(2, device="cuda"))


def test_float64_of_what_is_on_the_cpu_or_goes_to_float32_is_fine_on_mps():
    with emulated("mps"):
        there = torch.ones(2, device="mps")
        assert there.cpu().double().sum() == 2
        assert torch.ones(2, dtype=torch.float64).to(there).dtype == torch.float32
        assert (there * torch.tensor(0.5, dtype=torch.float64)).dtype == torch.float32


def test_what_mps_has_no_kernel_for_is_refused():
    with emulated("mps"), pytest.raises(NotImplementedError, match="take"):
        torch.ones(2, device="mps").take(torch.zeros(1, device="mps").long())


def test_waits_are_counted(kind):
    with emulated(kind) as device:
        there = torch.arange(4.0, device=kind)
        (there * 2).sum()[None].expand(3).to(there)
        assert device.waits == 0
        there.cpu(), there.tolist(), there[0].item(), bool(there.any())
        assert device.waits == 4
        there[there > 1], there.nonzero(), there.unique(), torch.zeros(4).copy_(there)
        assert device.waits == 8


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_trains_as_the_cpu_does(kind, precision):
    here = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1)),
        nn.Linear(144, 2),
    )
    there = copy.deepcopy(here).to(kind)
    there.load_state_dict(here.state_dict())
    assert {each.device.type for each in there.state_dict().values()} == {kind}
    for model, device in ((here, "cpu"), (there, kind)):
        torch.manual_seed(0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for _ in range(3):
            with torch.autocast(device, precision, enabled=precision is not None):
                made = model(torch.rand(5, 1, 8, 8).to(device))
            optimizer.zero_grad()
            made.float().square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        assert made.dtype == (precision or torch.float32)
    for name, value in copy.deepcopy(there).cpu().state_dict().items():
        torch.testing.assert_close(value, here.state_dict()[name], rtol=0, atol=0)
