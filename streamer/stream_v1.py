"""Stream v1 ("legacy"): JSON and binary parts in one ZeroMQ multipart, in and out.

Source: SIMPLON API reference 1.8, stream interface; encodings as real detectors send them.
A header may come as several messages (some simulators send the configuration apart), so a
lone configuration is a message of its own; joining it to its header is the tracker's work.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from streamer import bounds
from streamer.bounds import is_count, is_id
from streamer.messages import (
    HC_EV_ANGSTROM,
    Algorithm,
    Buffer,
    ConfigMessage,
    Defect,
    EndMessage,
    ImageData,
    ImageMessage,
    InvalidMessage,
    Message,
    SeriesMetadata,
    StartMessage,
)
from streamer.validity import series_validity

CHANNEL = "threshold_1"
"""Stream v1 carries one image a message, the first threshold's."""

MAX_JSON_BYTES = 4 << 20
_DTYPES = {"uint8": "u1", "uint16": "u2", "uint32": "u4"}
_ENCODING = re.compile(r"(?:bs(8|16|32))?(?:-?(lz4))?([<>])")
_decode_json = msgspec.json.Decoder().decode
_encode_json = msgspec.json.Encoder(order="sorted").encode


def parse(parts: Sequence[Buffer]) -> Message:
    """Turn one multipart message into a typed message that holds views of its parts.

    Raises ``InvalidMessage`` when it names neither an image nor a start, configuration or
    end. An image whose ids can be read always comes back, with a defect where it is broken.
    """
    head = _json(parts[0], "the first part")
    kind = head.get("htype")
    if kind is None:
        if "nimages" in head or "x_pixels_in_detector" in head:
            return ConfigMessage(metadata_from_config(head))
        raise InvalidMessage("unknown_type", "stream v1 message without htype")
    if not isinstance(kind, str):
        raise InvalidMessage("unknown_type", "stream v1 htype is not text")
    series_id = head.get("series")
    if not is_count(series_id):
        reason = "missing_field" if series_id is None else "bad_value"
        raise InvalidMessage(reason, f"stream v1 {kind[:40]!r} without a series number")
    if kind.startswith("dimage-"):
        image_id = head.get("frame")
        if not is_id(image_id):
            reason = "missing_field" if image_id is None else "bad_value"
            raise InvalidMessage(reason, "stream v1 image without a frame number")
        return _image(series_id, image_id, parts)
    if kind.startswith("dheader-"):
        return _header(series_id, head, parts)
    if kind.startswith("dseries_end-"):
        return EndMessage(series_id)
    raise InvalidMessage("unknown_type", f"stream v1 htype {kind[:40]!r}")


def _json(part: Buffer, what: str) -> dict[str, Any]:
    if len(part) > MAX_JSON_BYTES:
        raise InvalidMessage("too_large", f"stream v1: {what} has {len(part)} bytes of JSON")
    try:
        value = _decode_json(part)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError) as error:
        raise InvalidMessage("malformed", f"stream v1: {what} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidMessage("malformed", f"stream v1: {what} is not a JSON object")
    return value


def _image(series_id: int, image_id: int, parts: Sequence[Buffer]) -> ImageMessage:
    if len(parts) < 3:
        defect = Defect("missing_data", f"{len(parts)} of at least 3 parts")
        return ImageMessage(series_id, image_id, defect=defect)
    try:
        layout = _json(parts[1], "the second part")
    except InvalidMessage as error:
        return ImageMessage(series_id, image_id, defect=Defect("bad_header", str(error)))
    try:
        times = _json(parts[3], "the fourth part") if len(parts) > 3 else {}
    except InvalidMessage:
        times = {}  # times that cannot be read cost the image nothing else
    start, stop, exposure = (_seconds(times.get(key)) for key in ("start_time", "stop_time", "real_time"))
    return ImageMessage(
        series_id,
        image_id,
        {CHANNEL: _image_data(layout, parts[2])},
        start_time_s=start,
        stop_time_s=stop,
        exposure_s=exposure,
        user_data=_appendix(parts[4]) if len(parts) > 4 else None,
    )


def _image_data(layout: Mapping[str, Any], blob: Buffer) -> ImageData | Defect:
    shape, kind, encoding = layout.get("shape"), layout.get("type"), layout.get("encoding")
    if not (isinstance(shape, list) and 2 <= len(shape) <= 8 and all(is_count(n) and n for n in shape)):
        return Defect("bad_header", f"shape {_short(shape)} is not [width, height]")
    if any(n != 1 for n in shape[2:]):
        return Defect("bad_header", f"shape {_short(shape)} has more than two dimensions")
    if bounds.image_shape(shape[1], shape[0]) is None:
        return Defect("size_mismatch", f"an image of {shape[0]} x {shape[1]} pixels is too large")
    if not isinstance(kind, str) or kind not in _DTYPES:
        return Defect("unknown_dtype", f"pixels of type {_short(kind)}; uint8, uint16 or uint32 are known")
    match = _ENCODING.fullmatch(encoding) if isinstance(encoding, str) else None
    if match is None or (match[1] and not match[2]):
        return Defect("unknown_algorithm", f"encoding {_short(encoding)} is not known")
    size = layout.get("size")
    if size is not None and size != len(blob):
        return Defect("size_mismatch", f"{_short(size)} bytes announced, {len(blob)} received")
    dtype = np.dtype(match[3] + _DTYPES[kind])
    if match[1]:
        algorithm, element = Algorithm.BSLZ4, int(match[1]) // 8
    else:
        algorithm, element = (Algorithm.LZ4_BLOCK if match[2] else Algorithm.RAW), dtype.itemsize
    return ImageData(blob, (shape[1], shape[0]), dtype, algorithm, element)


def _short(value: Any) -> str:
    """A value for a sentence. Numbers of many digits are not spelled out: that alone can take seconds."""
    if isinstance(value, int) and not is_id(value):
        return "a number beyond 64 bits"
    if isinstance(value, (list, dict)):
        return f"[{', '.join(_short(member) for member in value[:3])}]" if isinstance(value, list) else "a map"
    return repr(value[:40] if isinstance(value, str) else value)


def _seconds(value: Any) -> float | None:
    nanoseconds = bounds.number(value, (0.0, bounds.CLOCK_S[1] * 1e9))
    return None if nanoseconds is None else nanoseconds / 1e9


def _appendix(part: Buffer) -> Any:
    """An appendix as JSON where it is JSON, else as text; ``None`` when empty or too large."""
    if not 0 < len(part) <= bounds.MAX_PLAIN_TEXT:
        return None
    try:
        return bounds.plain(_decode_json(part))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError):
        return str(part, "utf-8", "replace")


def _header(series_id: int, head: Mapping[str, Any], parts: Sequence[Buffer]) -> StartMessage:
    detail = head.get("header_detail")
    metadata, complete, rest = SeriesMetadata(), detail == "none", list(parts[1:])
    if rest and detail != "none":
        metadata, complete, rest = metadata_from_config(_json(rest[0], "the configuration")), True, rest[1:]
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    problems: list[str] = []
    while len(rest) >= 2 and (name := _array_name(rest[0])) is not None:
        array = _array(_json(rest[0], name), rest[1])
        if isinstance(array, str):
            problems.append(f"{name} left out: {array}")
        elif name == "pixelmask" and metadata.shape not in (None, array.shape):
            problems.append(f"{name} left out: {array.shape} in a series of {metadata.shape}")
        elif array.size:
            arrays[name] = array
        rest = rest[2:]
    if len(rest) > 1:
        problems.append(f"{len(rest)} parts of the header are not known")
    return StartMessage(
        series_id,
        metadata.with_changes(
            flatfields={CHANNEL: arrays["flatfield"]} if "flatfield" in arrays else {},
            masks={CHANNEL: arrays["pixelmask"]} if "pixelmask" in arrays else {},
            countrate_table=arrays.get("countrate_table"),
            user_data=_appendix(rest[0]) if len(rest) == 1 else None,
            problems=tuple(problems[:4]),
        ),
        complete=complete,
    )


def _array_name(part: Buffer) -> str | None:
    """The array that a sub-header announces, the ``d`` before its name being optional."""
    if not 0 < len(part) <= 4096:
        return None
    try:
        value = _decode_json(part)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError):
        return None
    kind = value.get("htype") if isinstance(value, dict) else None
    for name in ("flatfield", "pixelmask", "countrate_table"):
        if isinstance(kind, str) and kind.removeprefix("d").startswith(name):
            return name
    return None


def _array(layout: Mapping[str, Any], blob: Buffer) -> np.ndarray[Any, Any] | str:
    """The array of a sub-header and its blob, empty where the detector left it so; else what is wrong."""
    if not len(blob):
        return np.empty((0, 0), "<u4")
    shape, kind = layout.get("shape"), layout.get("type")
    if kind not in ("float32", "uint32"):
        return f"type {_short(kind)}"
    if not (isinstance(shape, list) and len(shape) == 2 and all(is_count(n) for n in shape)):
        return f"shape {_short(shape)}"
    if shape[0] * shape[1] * 4 != len(blob):
        return f"{len(blob)} bytes do not fill {shape} of {kind}"
    # The sub-header says [x, y]; the blob is rows first.
    return np.frombuffer(blob, "<f4" if kind == "float32" else "<u4").reshape(shape[1], shape[0]).copy()


def metadata_from_config(config: Mapping[str, Any]) -> SeriesMetadata:
    """Series metadata from the flat detector configuration of a v1 header or a SIMPLON dump."""

    def number(key: str, allowed: bounds.Range) -> float | None:
        return bounds.number(config.get(key), allowed)

    def text(key: str) -> str | None:
        return bounds.text(config.get(key))

    energy = number("photon_energy", bounds.ENERGY_EV) or number("incident_energy", bounds.ENERGY_EV)
    if energy is None and (wavelength := number("wavelength", bounds.WAVELENGTH_A)) is not None:
        energy = HC_EV_ANGSTROM / wavelength
    triggers, per_trigger = (bounds.positive_count(config.get(key)) for key in ("ntrigger", "nimages"))
    # In external or internal enable mode one trigger is one image, whatever nimages says.
    enable_mode = config.get("trigger_mode") in ("inte", "exte")
    images = triggers if enable_mode else (triggers or 1) * per_trigger if per_trigger else None
    depth = config.get("bit_depth_image")
    threshold = number("threshold_energy", bounds.ENERGY_EV)
    center_x, center_y = bounds.beam_center(config.get("beam_center_x"), config.get("beam_center_y"))
    return SeriesMetadata(
        number_of_images=bounds.positive_count(images),
        shape=bounds.image_shape(config.get("y_pixels_in_detector"), config.get("x_pixels_in_detector")),
        dtype=np.dtype(f"uint{int(depth)}") if depth in (8, 16, 32) else None,
        channels=(CHANNEL,),
        beam_center_x_px=center_x,
        beam_center_y_px=center_y,
        camera_length_m=number("detector_distance", bounds.CAMERA_LENGTH_M),
        photon_energy_eV=energy,
        threshold_energy_eV={CHANNEL: threshold} if threshold else {},
        pixel_size_x_m=number("x_pixel_size", bounds.PIXEL_SIZE_M),
        pixel_size_y_m=number("y_pixel_size", bounds.PIXEL_SIZE_M),
        count_time_s=number("count_time", bounds.DURATION_S),
        frame_time_s=number("frame_time", bounds.DURATION_S),
        saturation_value=bounds.positive_count(config.get("countrate_correction_count_cutoff"), bounds.MAX_SATURATION),
        sensor_material=text("sensor_material"),
        sensor_thickness_m=number("sensor_thickness", bounds.THICKNESS_M),
        detector_description=text("description"),
        detector_serial=text("detector_number"),
        arm_date=text("data_collection_date"),
        raw=bounds.plain_items(config.items()),
    )


# --- encoding -------------------------------------------------------------------------


def encode_start(
    series_id: int,
    metadata: SeriesMetadata,
    *,
    header_detail: str = "basic",
    config: Mapping[str, Any] | None = None,
) -> list[bytes]:
    """A header of 1 (none), 2 (basic) or 8 or 9 parts (all, with an appendix if there is user data).

    ``config`` adds keys to the detector configuration or replaces them. How triggers make up
    the number of images and how images are packed is taken from ``metadata.raw`` where it
    agrees, else one internal trigger and ``bslz4``.
    """
    head = {"header_detail": header_detail, "htype": "dheader-1.0", "series": series_id}
    parts = [_encode_json(head)]
    if header_detail == "none":
        return parts
    parts.append(_encode_json(_config(metadata) | dict(config or {})))
    if header_detail == "all":
        rows, columns = metadata.shape or (0, 0)
        flatfield = metadata.flatfields.get(CHANNEL, np.ones((rows, columns), "<f4"))
        mask = metadata.masks.get(CHANNEL)
        if mask is None:
            # What none is said of; a detector says so of the gaps between its modules.
            mask = series_validity(metadata, (rows, columns), CHANNEL).valid == 0
        table = metadata.countrate_table
        if table is None or table.shape[1] != 2:
            table = np.array([[0, 0], [1, 1]])
        parts += _array_parts("dflatfield-1.0", flatfield.astype("<f4"), "float32")
        parts += _array_parts("dpixelmask-1.0", mask.astype("<u4"), "uint32")
        parts += _array_parts("dcountrate_table-1.0", table.astype("<f4"), "float32")
        if metadata.user_data is not None:
            parts.append(_appendix_bytes(metadata.user_data))
    return parts


def _array_parts(kind: str, array: np.ndarray[Any, Any], type_name: str) -> list[bytes]:
    layout = {"htype": kind, "shape": [array.shape[1], array.shape[0]], "type": type_name}
    return [_encode_json(layout), np.ascontiguousarray(array).tobytes()]


def _appendix_bytes(user_data: Any) -> bytes:
    """Text as it is, unless it would be read as JSON; anything else as JSON."""
    if isinstance(user_data, str) and _appendix(plain := user_data.encode()) == user_data:
        return plain
    return _encode_json(user_data)


def _config(meta: SeriesMetadata) -> dict[str, Any]:
    rows, columns = meta.shape or (0, 0)
    energy = meta.photon_energy_eV or 0.0
    triggers, per_trigger, mode = 1, meta.number_of_images or 0, "ints"
    said = metadata_from_config(meta.raw)
    if said.number_of_images is not None and said.number_of_images == meta.number_of_images:
        triggers, per_trigger = meta.raw.get("ntrigger", 1), meta.raw.get("nimages", 1)
        mode = bounds.text(meta.raw.get("trigger_mode")) or mode
    return {
        "auto_summation": True,
        "beam_center_x": meta.beam_center_x_px or 0.0,
        "beam_center_y": meta.beam_center_y_px or 0.0,
        "bit_depth_image": 8 * (meta.dtype or np.dtype("u2")).itemsize,
        "chi_increment": 0.0,
        "chi_start": 0.0,
        "compression": bounds.text(meta.raw.get("compression")) or "bslz4",
        "count_time": meta.count_time_s or 0.0,
        "countrate_correction_applied": False,
        "countrate_correction_count_cutoff": meta.saturation_value or 0,
        "data_collection_date": meta.arm_date or "",
        "description": meta.detector_description or "",
        "detector_distance": meta.camera_length_m or 0.0,
        "detector_number": meta.detector_serial or "",
        "detector_translation": [0.0, 0.0, meta.camera_length_m or 0.0],
        "flatfield_correction_applied": False,
        "frame_time": meta.frame_time_s or 0.0,
        "kappa_increment": 0.0,
        "kappa_start": 0.0,
        "nimages": per_trigger,
        "ntrigger": triggers,
        "number_of_excluded_pixels": 0,
        "omega_increment": 0.0,
        "omega_start": 0.0,
        "phi_increment": 0.0,
        "phi_start": 0.0,
        "photon_energy": energy,
        "pixel_mask_applied": True,
        "roi_mode": "disabled",
        "sensor_material": meta.sensor_material or "Si",
        "sensor_thickness": meta.sensor_thickness_m or 0.0,
        "software_version": "1.8.0",
        "threshold_energy": meta.threshold_energy_eV.get(CHANNEL, 0.0),
        "trigger_mode": mode,
        "two_theta_increment": 0.0,
        "two_theta_start": 0.0,
        "virtual_pixel_correction_applied": False,
        "wavelength": HC_EV_ANGSTROM / energy if energy else 0.0,
        "x_pixel_size": meta.pixel_size_x_m or 0.0,
        "x_pixels_in_detector": columns,
        "y_pixel_size": meta.pixel_size_y_m or 0.0,
        "y_pixels_in_detector": rows,
    }


def encode_image(message: ImageMessage, *, digest: str = "0" * 32) -> list[Buffer]:
    """An image in 4 parts, or 5 with user data; the packed pixels go out as they are.

    ``digest`` is the header's ``hash``: any 32 hexadecimal digits, as receivers only refuse
    an empty one. Raises ``ValueError`` for an image that stream v1 cannot carry.
    """
    image = next(iter(message.channels.values()), Defect("missing_data", "no image"))
    if isinstance(image, Defect):
        raise ValueError(f"an image with a defect cannot be sent: {image.text}")
    data = image.data
    order = ">" if image.dtype.byteorder == ">" else "<"
    if image.algorithm == Algorithm.RAW:
        encoding = order
    elif image.algorithm == Algorithm.BSLZ4:
        encoding = f"bs{8 * image.element_bytes}-lz4{order}"
    elif image.algorithm == Algorithm.LZ4_BLOCK:
        encoding = f"lz4{order}"
    elif image.algorithm == Algorithm.LZ4_HDF5 and _is_single_block(image):
        # Filter 32004 with one block is a bare LZ4 block behind 16 bytes.
        encoding, data = f"lz4{order}", memoryview(image.data)[16:]
    else:
        raise ValueError(f"stream v1 has no encoding for {image.algorithm}")
    head = {"frame": message.image_id, "hash": digest, "htype": "dimage-1.0", "series": message.series_id}
    layout = {
        "encoding": encoding,
        "htype": "dimage_d-1.0",
        "shape": [image.shape[1], image.shape[0]],
        "size": len(data),
        "type": image.dtype.name,
    }
    times = {
        "htype": "dconfig-1.0",
        "real_time": round((message.exposure_s or 0.0) * 1e9),
        "start_time": round((message.start_time_s or 0.0) * 1e9),
        "stop_time": round((message.stop_time_s or 0.0) * 1e9),
    }
    parts: list[Buffer] = [_encode_json(head), _encode_json(layout), data, _encode_json(times)]
    if message.user_data is not None:
        parts.append(_appendix_bytes(message.user_data))
    return parts


def _is_single_block(image: ImageData) -> bool:
    head = bytes(image.data[:16])
    total, block, packed = (int.from_bytes(head[a:b], "big") for a, b in ((0, 8), (8, 12), (12, 16)))
    return total == block == image.decoded_bytes and packed != block and packed == len(image.data) - 16


def encode_end(series_id: int) -> list[bytes]:
    """The end of a series."""
    return [_encode_json({"htype": "dseries_end-1.0", "series": series_id})]
