"""What is known of a detector, written as the Eiger's file writer names it and as NXmx.

`streamer.files` reads the same values back, DIALS imports the file, and CrystFEL finds energy and distance where a
geometry file points. A value that is not known is left out; without distance, beam centre, pixel size or photon energy
there is no detector module and no `definition`, and DIALS does not take the file.
"""

from __future__ import annotations

from typing import Any

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from streamer.messages import HC_EV_ANGSTROM, SeriesMetadata

# With HDF5_PLUGIN_PATH set, as CrystFEL's readers need it, HDF5 finds a filter there that it cannot write with.
hdf5plugin.register("bshuf", force=True)

DETECTOR = "/entry/instrument/detector"
DISTANCE, PHOTON_ENERGY, PIXEL_MASK = (
    f"{DETECTOR}/detector_distance",
    f"{DETECTOR}/detectorSpecific/photon_energy",
    f"{DETECTOR}/pixel_mask",
)


def nexus_group(parent: h5py.Group, name: str, nexus_class: str) -> h5py.Group:
    """The group of this name, made where it is not there, with its NeXus class."""
    group = parent.require_group(name)
    group.attrs["NX_class"] = nexus_class
    return group


def write_instrument(
    file: h5py.File,
    metadata: SeriesMetadata,
    *,
    images: int,
    shape: tuple[int, int],
    dtype: np.dtype[Any],
    mask: NDArray[np.uint32] | None,
) -> None:
    """Write /entry/instrument and /entry/sample of a series of stills: so many images, (ss, fs), of this type.

    mask (ss, fs) is nonzero where a pixel is bad; those of the metadata are not used.
    """
    entry = nexus_group(file, "entry", "NXentry")
    nexus_group(entry, "instrument", "NXinstrument")
    group = nexus_group(entry, "instrument/detector", "NXdetector")
    bits = 8 * np.dtype(dtype).itemsize
    for name, value, units in (
        ("description", metadata.detector_description, None),
        ("detector_number", metadata.detector_serial, None),
        ("x_pixel_size", metadata.pixel_size_x_m, "m"),
        ("y_pixel_size", metadata.pixel_size_y_m, "m"),
        ("detector_distance", metadata.camera_length_m, "m"),
        ("beam_center_x", metadata.beam_center_x_px, "pixel"),
        ("beam_center_y", metadata.beam_center_y_px, "pixel"),
        ("count_time", metadata.count_time_s, "s"),
        ("frame_time", metadata.frame_time_s, "s"),
        ("sensor_material", metadata.sensor_material, None),
        ("sensor_thickness", metadata.sensor_thickness_m, "m"),
        ("bit_depth_image", bits, None),
        ("bit_depth_readout", bits, None),  # DIALS masks the top of it
        ("threshold_energy", next(iter(metadata.threshold_energy_eV.values()), None), "eV"),
        ("saturation_value", metadata.saturation_value, None),
        ("underload_value", 0, None),
    ):
        if value is not None:
            group[name] = value
            if units is not None:
                group[name].attrs["units"] = units
    specific = nexus_group(group, "detectorSpecific", "NXcollection")
    for name, value in (
        ("nimages", images),
        ("ntrigger", 1),
        ("photon_energy", metadata.photon_energy_eV),
        ("countrate_correction_count_cutoff", metadata.saturation_value),
        ("data_collection_date", metadata.arm_date),
        ("x_pixels_in_detector", shape[1]),
        ("y_pixels_in_detector", shape[0]),
    ):
        if value is not None:
            specific[name] = value
    if mask is not None:
        group.create_dataset("pixel_mask", data=mask, chunks=mask.shape, **hdf5plugin.Bitshuffle(cname="lz4"))
        specific["pixel_mask"] = group["pixel_mask"]  # a hard link: one copy under both names
    if metadata.photon_energy_eV is not None:
        nexus_group(entry, "instrument/beam", "NXbeam")
        entry["instrument/beam/incident_wavelength"] = HC_EV_ANGSTROM / metadata.photon_energy_eV
        entry["instrument/beam/incident_wavelength"].attrs["units"] = "angstrom"
    nexus_group(entry, "sample", "NXsample")  # without depends_on: stills
    entry["sample/goniometer/omega_range_average"] = 0.0
    if _write_module(group, metadata, shape) and metadata.photon_energy_eV is not None:
        entry["definition"] = "NXmx"


def _write_module(group: h5py.Group, metadata: SeriesMetadata, shape: tuple[int, int]) -> bool:
    """The panel as one NXdetector_module of NXdetector `group`; False where too little is known.

    NeXus' axes: z along the beam, y up, x to the left looking along the beam. fs runs along -x and ss along -y, as in
    an Eiger seen from the sample; the module's origin is the outer corner of its first pixel, so that edge-based beam
    centres enter as they are.
    """
    distance, pixel_x, pixel_y = metadata.camera_length_m, metadata.pixel_size_x_m, metadata.pixel_size_y_m
    center_x, center_y = metadata.beam_center_x_px, metadata.beam_center_y_px
    if distance is None or pixel_x is None or pixel_y is None or center_x is None or center_y is None:
        return False
    transformations = nexus_group(group, "transformations", "NXtransformations")
    module = nexus_group(group, "module", "NXdetector_module")
    module["data_origin"] = np.zeros(2, dtype=np.int64)
    module["data_size"] = np.array(shape, dtype=np.int64)  # ss, fs
    along_z, along_y, placed = (f"{transformations.name}/translation_{axis}" for axis in "zyx")
    for parent, name, value, vector, depends_on in (
        (transformations, "translation_z", distance, (0.0, 0.0, 1.0), "."),
        (transformations, "translation_y", center_y * pixel_y, (0.0, 1.0, 0.0), along_z),
        (transformations, "translation_x", center_x * pixel_x, (1.0, 0.0, 0.0), along_y),
        (module, "fast_pixel_direction", pixel_x, (-1.0, 0.0, 0.0), placed),
        (module, "slow_pixel_direction", pixel_y, (0.0, -1.0, 0.0), placed),
    ):
        parent[name] = value
        parent[name].attrs.update(
            {"units": "m", "transformation_type": "translation", "vector": vector, "depends_on": depends_on}
        )
    group["depends_on"] = placed
    return True
