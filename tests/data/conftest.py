"""Small files in the formats of real data sets."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def write_rows():
    """Write a CSV file, header first."""

    def write_rows(path, *rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        return path

    return write_rows


@pytest.fixture
def write_image():
    """Write a grayscale file of 20 x 10 pixels, or the given ones."""

    def write_image(path, pixels=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        if pixels is None:
            pixels = np.random.default_rng(len(str(path))).integers(0, 256, (20, 10), np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write_image


@pytest.fixture
def write_dicom():
    """Write a radiograph as DICOM; keywords are its elements."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    def write_dicom(path, pixels, *, bits=8, **elements):
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = SecondaryCaptureImageStorage
        dataset.SOPInstanceUID = generate_uid()
        dataset.Modality = "CR"
        if pixels is not None:
            deep = bits > 8
            dataset.Rows, dataset.Columns = pixels.shape
            dataset.SamplesPerPixel = 1
            dataset.PhotometricInterpretation = "MONOCHROME2"
            dataset.BitsAllocated = 16 if deep else 8
            dataset.BitsStored, dataset.HighBit = bits, bits - 1
            dataset.PixelRepresentation = int(pixels.min() < 0)
            dataset["PixelData"] = pydicom.DataElement("PixelData", "OW" if deep else "OB", b"")
            kind = ("<i2" if pixels.min() < 0 else "<u2") if deep else "u1"
            dataset.PixelData = pixels.astype(kind).tobytes()
        for name, value in elements.items():
            setattr(dataset, name, value)
        dataset.save_as(path, enforce_file_format=True)
        return path

    return write_dicom
