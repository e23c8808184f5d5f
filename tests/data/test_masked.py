"""Images with masks: phantoms, and how any are stacked."""

import numpy as np
import pytest
import torch

from gloria.data import MaskedImage, PhantomMasks, draw_share
from gloria.data.masked import stack_masked
from gloria.data.phantom import FINDINGS, PhantomDataset
from gloria.errors import DataError, DtypeError, OptionError, ShapeError

ITEMS = list(PhantomDataset("train", count=40, size=32))
CLASSES = ("pneumothorax", "edema")


def test_masks_and_labels_are_those_of_the_classes():
    data = PhantomMasks(ITEMS, CLASSES)
    assert len(data) == len(data.ids) == len(data.patients) == 40
    for number, item in enumerate(ITEMS):
        image, mask = data[number]
        assert torch.equal(image[0] * 255, torch.from_numpy(item.image).float())
        assert mask.shape == (2, 32, 32)
        for c, name in enumerate(CLASSES):
            column = FINDINGS.index(name)
            assert np.array_equal(mask[c].numpy(), item.masks[column])
            assert data.labels[number, c] == item.labels[column]


def test_selected_are_the_named_ones_in_their_order():
    data = PhantomMasks(ITEMS, CLASSES)
    few = data.select(["00007", "00003"]).select(["00003"])
    assert few.ids == ["00003"]
    assert few.classes == CLASSES
    assert torch.equal(few[0].image, data[3].image)
    assert np.array_equal(few.labels, data.labels[[3]])
    share = draw_share(data.ids, data.labels, 0.25, seed=0, patients=data.patients)
    assert data.select(share).ids == share
    assert len(share) == 10
    with pytest.raises(DataError, match="1 of 1 ids are not in this data set; first: 00003"):
        data.select(["00007"]).select(["00003"])


def test_classes_must_be_findings():
    with pytest.raises(OptionError, match=r"a class must be one of 'atelectasis'.*got 'Pneumonia'"):
        PhantomMasks(ITEMS, ["Pneumonia"])
    with pytest.raises(OptionError, match="at least one finding"):
        PhantomMasks(ITEMS, [])


def test_stacks_masks_with_and_without_a_class_axis():
    image, mask = torch.rand(3, 4, 5), torch.rand(4, 5) > 0.5
    images, masks = stack_masked([MaskedImage(image, mask), MaskedImage(image, mask[None])])
    assert images.shape == (2, 3, 4, 5)
    assert torch.equal(masks, mask.expand(2, 1, 4, 5))


def test_bad_masks():
    image, mask = torch.rand(1, 4, 5), torch.rand(1, 4, 5) > 0.5
    with pytest.raises(DtypeError, match=r"a mask must be boolean, .*; got torch\.uint8"):
        stack_masked([MaskedImage(image, mask.byte())])
    with pytest.raises(ShapeError, match=r"of its image \(1, 4, 5\); got \(1, 5, 4\)"):
        stack_masked([MaskedImage(image, mask.mT)])
    with pytest.raises(DataError, match="an image has no mask"):
        stack_masked([MaskedImage(image, mask[:0])])
    with pytest.raises(DataError, match="masks of one batch must have one shape"):
        stack_masked([MaskedImage(image, mask), MaskedImage(image, mask.expand(2, 4, 5))])
    with pytest.raises(DataError, match="images of one batch must have one shape"):
        stack_masked([MaskedImage(image, mask), MaskedImage(image.mT, mask.mT)])
