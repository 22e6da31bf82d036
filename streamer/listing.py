"""Unpack an image and list the pixels that counted, in one go.

Most pixels of a frame at a compact source are zero. Bitshuffle lays the pixels out as planes of bits: the planes of a
block or-ed together say which pixels counted, and-ed together which carry no data (all ones), 64 pixels a word. So
after LZ4 only what counted, and what differs from the frame before, is touched: the frame is never swept over, neither
to write it nor to search it. Any other packing is unpacked whole and swept.

Format: see ``streamer.decoding``. In a block of n elements, bit k of byte g of plane j is bit j of element 8 g + k.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba import types

from streamer import decoding
from streamer.buffers import touched
from streamer.instructions import bits_set, call_lz4, compiled, lowest_bit
from streamer.messages import Algorithm, ImageData, UndecodableImage
from streamer.validity import sentinel

_BLOCK_BYTES = 8192
_WORD = 64
_SPARE = 8
"""Places of a list that may be written beyond its end."""

_DENSE = 0.3
"""Packed bytes a pixel from which a frame is unpacked whole and searched: so many pixels count that it is cheaper."""
_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_WORDS = types.Array(types.uint64, 1, "C")
_LIST = types.Array(types.int32, 1, "C")
_COUNTS = types.Array(types.int64, 1, "C")


@numba.njit(nogil=True, cache=True)
def _combine(planes: Any, words: int, element_bits: int, valid: Any, bare: Any, lit: Any, masks: Any) -> None:
    """Masks of a block's words: which valid pixels counted, which of them more than once, which lack data.

    Then those that lack data now or before but not both, and the invalid ones that counted.
    """
    counted, many, lacking, turned, hidden = masks[0], masks[1], masks[2], masks[3], masks[4]
    lowest: Any = planes[:words]
    many[:words] = 0
    lacking[:words] = lowest
    for plane in range(1, element_bits):
        row = planes[plane * words : (plane + 1) * words]
        for w in range(words):
            many[w] |= row[w]
            lacking[w] &= row[w]
    for w in range(words):
        light = (lowest[w] | many[w]) & ~lacking[w]
        counted[w] = light & valid[w]
        hidden[w] = light & ~valid[w]
        many[w] &= counted[w]
        turned[w] = lacking[w] ^ bare[w]
        lacking[w] &= valid[w]
        lit[w] = counted[w] | lacking[w]


@numba.njit(nogil=True, cache=True)
def _list_words(
    planes: Any, words: int, first: int, element_bytes: int, valid: Any, bare: Any, lit: Any, pixels: Any, index: Any,
    value: Any, hidden_index: Any, counts: Any, masks: Any, order: Any,
) -> None:  # fmt: skip
    """Pixels of ``words`` words from the word ``first`` on, out of their planes of as many words each."""
    one, four = np.uint64(1), np.uint64(4)
    valid, bare, lit = valid[first : first + words], bare[first : first + words], lit[first : first + words]
    _combine(planes, words, 8 * element_bytes, valid, bare, lit, masks)
    counted, many, lacking, turned, hidden = masks[0], masks[1], masks[2], masks[3], masks[4]
    found, lost, concealed = counts[0], counts[1], counts[2]
    listed, some, odd = found, 0, np.uint64(0)
    for w in range(words):
        # Without a branch: which words are empty cannot be foreseen.
        order[some] = w
        some += counted[w] != 0
        odd |= turned[w] | hidden[w] | lacking[w]
    for n in range(some):
        word = np.uint64(order[n])
        start, left = (np.uint64(first) + word) * np.uint64(_WORD), counted[word]
        here = np.uint64(found)
        found += np.int64(bits_set(left))
        at = here
        while left:
            # Four at a time, whether there are as many or not: what is too much is written over.
            for k in range(4):
                index[at + np.uint64(k)] = start + lowest_bit(left)
                value[at + np.uint64(k)] = 1
                left &= left - one
            at += four
        bright = many[word]
        while bright:
            lowest = lowest_bit(bright)
            before = bits_set(counted[word] & ((one << lowest) - one))
            value[here + before] = _value(planes, words, word, lowest, element_bytes)
            bright &= bright - one
    for place in range(listed, found):
        pixels[np.uint64(index[place])] = value[place]
    if odd:
        for w in range(words):
            start = np.uint64(first + w) * np.uint64(_WORD)
            left = lacking[w]
            while left:
                lost += 1
                index[index.size - lost] = start + lowest_bit(left)
                left &= left - one
            left = turned[w]
            bare[w] ^= left
            # Gaps between modules, which never have data, are written but once.
            left |= hidden[w]
            while left:
                lowest = lowest_bit(left)
                number = _value(planes, words, w, lowest, element_bytes)
                pixels[start + lowest] = number
                if (hidden[w] >> lowest) & one:
                    hidden_index[concealed] = start + lowest
                    concealed += 1
                left &= left - one
    counts[0], counts[1], counts[2] = found, lost, concealed


@numba.njit(nogil=True, cache=True, inline="always")
def _value(planes: Any, words: int, w: Any, bit: Any, element_bytes: int) -> Any:
    """The counts of one pixel of a word."""
    number = np.uint64(0)
    for plane in range(8 * element_bytes):
        number |= ((planes[np.uint64(plane * words) + w] >> bit) & np.uint64(1)) << np.uint64(plane)
    return number


@numba.njit(nogil=True, cache=True)
def _widen(planes: Any, row: int, tail: Any, element_bytes: int, words: int, ragged: Any) -> None:
    """Planes of ``row`` bytes each laid out as whole words, with the bits of the ``tail``'s elements after them."""
    packed, as_bytes = planes.view(np.uint8), ragged.view(np.uint8)
    ragged[: 8 * element_bytes * words] = np.uint64(0)
    for plane in range(8 * element_bytes):
        for byte in range(row):
            as_bytes[8 * plane * words + byte] = packed[plane * row + byte]
    for n in range(tail.size // element_bytes):
        place = 8 * row + n
        for byte in range(element_bytes):
            for bit in range(8):
                word = np.uint64((tail[n * element_bytes + byte] >> bit) & 1)
                ragged[(8 * byte + bit) * words + place // _WORD] |= word << np.uint64(place % _WORD)


@compiled(
    _BYTES, types.intp, types.int64, types.int64, _WORDS, _WORDS, types.Array(types.uint64, 2, "C"), _LIST, _WORDS,
    _WORDS, _WORDS, None, _LIST, None, _LIST, _COUNTS, returns=types.int64,
)  # fmt: skip
def _list_blocks(
    payload: Any, lz4: int, elements: int, block_elements: int, planes: Any, ragged: Any, masks: Any, order: Any,
    valid: Any, bare: Any, lit: Any, pixels: Any, index: Any, value: Any, hidden: Any, counts: Any,
) -> int:  # fmt: skip
    """Unpack and list every block of a payload whose lengths were walked; 0, or -1 - (number of the bad block).

    ``pixels`` are those of the frame before, and so are the lists and the bitmap ``bare`` of what has no data there;
    they agree whatever happens. ``index`` and ``value`` become what counted, ``counts[0]`` of them, in ascending order;
    the last ``counts[1]`` of ``index`` the valid pixels without data, descending; ``hidden`` the invalid ones that
    counted, ``counts[2]`` of them. ``lit``: see ``Listing``.
    """
    element_bytes = pixels.itemsize
    for n in range(counts[0]):
        pixels[np.uint64(index[n])] = 0
    for n in range(counts[2]):
        pixels[np.uint64(hidden[n])] = 0
    counts[:] = 0
    position, whole = np.int64(0), elements - elements % 8
    for block, first in enumerate(range(0, elements, block_elements)):
        here = max(min(block_elements, whole - first), 0)
        words, used = here // _WORD, planes
        if here:
            length, decoded = decoding.big_endian_u32(payload, position), here * element_bytes
            source = payload.ctypes.data + position + 4
            if call_lz4(lz4, source, planes.ctypes.data, np.int32(length), np.int32(decoded)) != decoded:
                return -1 - block
            position += 4 + length
        tail = elements - first - here
        if here < block_elements and (tail or here % _WORD):
            # The last packed pixels share words with those that are not packed.
            words, used = (here + tail + _WORD - 1) // _WORD, ragged
            _widen(planes, here // 8, payload[position:], element_bytes, words, ragged)
        _list_words(
            used,
            words,
            first // _WORD,
            element_bytes,
            valid,
            bare,
            lit,
            pixels,
            index,
            value,
            hidden,
            counts,
            masks,
            order,
        )
    return 0


@compiled(_WORDS, None, types.int64, _WORDS, _WORDS, _LIST, None, _COUNTS, returns=types.int64)
def _list_pixels(words: Any, padded: Any, top: int, valid: Any, lit: Any, index: Any, value: Any, counts: Any) -> int:
    """As ``_list_blocks`` lists, from pixels that are there: ``words`` is the same memory as ``padded``."""
    per_word = 8 // padded.itemsize
    found, lost, one = 0, 0, np.uint64(1)
    lit[:] = 0
    for w in range(words.size):
        if words[w] == 0:
            continue
        for k in range(per_word):
            i = w * per_word + k
            number = padded[i]
            bit = one << np.uint64(i % _WORD)
            if number == 0 or not valid[i // _WORD] & bit:
                continue
            lit[i // _WORD] |= bit
            if number == top:
                lost += 1
                index[index.size - lost] = i
                continue
            index[found], value[found] = i, number
            found += 1
    counts[0], counts[1] = found, lost
    return 0


class Listing:
    """The pixels of one frame after the other, in one buffer, and the list of those that counted.

    ``pixels`` (ss, fs) is the frame. After ``unpack`` or ``search``: ``index`` (found,) int32 are the flat indices of
    the valid pixels that counted, ascending, ``value`` (found,) their counts; ``blank`` (lost,) int32 the valid
    pixels without data; ``lit`` a bit for each pixel, 64 a word and one word more, set where one of either is. They are
    views, valid until the next frame. ``valid`` (ss, fs) is not 0 where pixels are valid.
    """

    def __init__(self, valid: npt.NDArray[np.uint8], dtype: np.dtype[Any]) -> None:
        count = valid.size
        self.dtype = dtype
        # Rounded up to whole 64-bit words; the tail stays zero.
        self._words = touched(-(-count * dtype.itemsize // 8), np.uint64)
        self._padded = self._words.view(dtype)
        self.flat = self._padded[:count]
        self.pixels = self.flat.reshape(valid.shape)
        self._valid = bitmap(valid.reshape(-1) != 0)
        self._bare = np.zeros_like(self._valid)
        self.lit = np.zeros(len(self._valid) + 1, np.uint64)
        self._known = True
        self._index, self._value = touched(count + _SPARE, np.int32), touched(count + _SPARE, dtype)
        self._hidden = np.empty(np.count_nonzero(valid == 0), np.int32)
        self._counts = np.zeros(3, np.int64)
        most = _BLOCK_BYTES // _WORD
        self._planes, self._ragged = np.empty(_BLOCK_BYTES // 8, np.uint64), np.empty(_BLOCK_BYTES // 8, np.uint64)
        self._masks, self._order = touched((5, most), np.uint64), touched(most, np.int32)

    @property
    def index(self) -> npt.NDArray[np.int32]:
        return self._index[: self._counts[0]]

    @property
    def value(self) -> npt.NDArray[Any]:
        return self._value[: self._counts[0]]

    @property
    def blank(self) -> npt.NDArray[np.int32]:
        return self._index[len(self._index) - self._counts[1] :]

    def unpack(self, image: ImageData) -> None:
        """Decode an image into ``pixels`` and list it. Raises as ``decoding.decode`` does."""
        if image.pixels != self.flat.size:
            raise ValueError(f"the buffer holds {self.flat.size} pixels, the image {image.pixels}")
        blocks = self._blocks(image)
        if blocks is None:
            # A frame that fails half way leaves pixels that no list knows of.
            self._known = False
            decoding.decode(image, self.pixels)
            self.search()
            return
        body, block = blocks
        if not self._known:
            self._words[:] = self._bare[:] = 0
            self._counts[:] = 0
            self._known = True
        bad = _list_blocks(
            body, decoding.LZ4_ADDRESS, self.flat.size, block, self._planes, self._ragged, self._masks, self._order,
            self._valid, self._bare, self.lit, self._padded, self._index, self._value, self._hidden, self._counts,
        )  # fmt: skip
        if bad:
            raise UndecodableImage("bad_block", f"block {-1 - bad} does not decode")

    def search(self) -> None:
        """List what is in ``pixels``, however it came there."""
        self._known = False
        top = sentinel(self.dtype)
        _list_pixels(self._words, self._padded, top, self._valid, self.lit, self._index, self._value, self._counts)

    def _blocks(self, image: ImageData) -> tuple[npt.NDArray[np.uint8], int] | None:
        """The blocks of an image and the elements of one, where its planes are worth reading; raises as ``unpack``."""
        sparse = len(image.data) < _DENSE * image.pixels
        alike = image.dtype.itemsize == image.element_bytes == self.dtype.itemsize and image.dtype.byteorder != ">"
        if decoding.LZ4_ADDRESS == 0 or image.algorithm != Algorithm.BSLZ4 or not (sparse and alike):
            return None
        decoding.check_size(image)
        body, block_bytes = decoding.walked_bslz4(image)
        block = block_bytes // image.element_bytes
        return (body, block) if block_bytes <= _BLOCK_BYTES and block % _WORD == 0 else None


def bitmap(marked: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """A bit for each element, the first the lowest, in whole 64-bit words."""
    packed = np.packbits(marked, bitorder="little")
    return np.concatenate([packed, np.zeros(-len(packed) % 8, np.uint8)]).view("<u8").astype(np.uint64)
