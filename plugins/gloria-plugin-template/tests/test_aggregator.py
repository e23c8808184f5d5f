import torch
from gloria_plugin_template.aggregator import MidRange


def test_half_way_between_the_lowest_and_the_highest_kept_value():
    values = torch.tensor([[3.0, 9.0, -1.0, torch.nan], [1.0, 2.0, 4.0, 8.0]], requires_grad=True)
    mask = torch.tensor([[True, True, True, False], [False] * 4])
    reduced = MidRange()(values, mask, 1)
    assert reduced.tolist() == [4.0, 0.0]  # (9 - 1) / 2; nothing is kept of the second
    reduced.sum().backward()
    assert values.grad.tolist() == [[0.0, 0.5, 0.5, 0.0], [0.0] * 4]


def test_any_axis_without_a_mask():
    values = torch.randn(3, 4, 5)
    for dim in (0, 1, 2, -1):
        expected = (values.amax(dim) + values.amin(dim)) / 2
        torch.testing.assert_close(MidRange()(values, None, dim), expected)
