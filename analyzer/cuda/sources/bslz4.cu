// Packed frames to pixels: LZ4, un-bitshuffle, narrowing to 16 bits, and which valid pixels have light or no data.
//
// A unit of a frame is one block of bitshuffle-LZ4 (HDF5 filter 32008), or as many pixels that are not packed; the
// pixels behind the last block, fewer than eight, are a unit of their own. A unit is decoded by one warp, in shared
// memory. Written from the descriptions of the formats of LZ4 blocks and of bitshuffle. A block is refused where the
// reference decoder of LZ4 refuses it, and where a match has distance 0.
//
// Whatever the bytes are, nothing is read outside the batch and nothing written outside the unit's own pixels.
#include "prelude.cuh"

#define WARP 32
// Bytes of a block at most. Together with the window it lets 24 blocks share the 228 KiB of an SM of compute capability
// 9.0, of which each takes 1 KiB more.
#define ROOM 8192
#define WINDOW 512
#define NO_DATA 0xFFFFu
#define MOST_COUNTS 0xFFFEu
#define ERROR_TOP 0x7FFFFFFF

enum Packing { UNUSED = 0, BSLZ4 = 1, PLAIN = 2 };

// One frame of a batch, as the host describes it (analyzer/cuda/staging.py).
struct Frame {
    uint64_t table;         // where its table of blocks starts in the batch, bytes; a multiple of 8
    uint64_t source;        // where its packed bytes start in the batch
    uint32_t source_bytes;
    int32_t blocks;         // of the table, or units of plain pixels
    int32_t block_elements; // a multiple of 8
    int32_t packing;
};

// One block: where its LZ4 bytes start in the frame's packed bytes, and how many they are.
struct Block { uint32_t start, bytes; };

// The packed bytes of a block, read through a window in shared memory that moves along.
struct Input {
    const uint8_t* batch;
    uint64_t batch_bytes;
    uint64_t start;
    Wide* window;
    int first;              // of the block's bytes, the one at the window's start; may lie before the block
};

DEVICE void move_window(Input& in, int position) {
    in.first = position - static_cast<int>((in.start + position) & 15);
    uint64_t from = in.start + in.first;
    SYNC_WARP();
    ROLLED LANES(i, WINDOW / 16) {
        if (from + 16 * i < in.batch_bytes) in.window[i] = load<Wide>(in.batch + from + 16 * i);
    }
    SYNC_WARP();
}

DEVICE int next_byte(Input& in, int& position) {
    if (position - in.first >= WINDOW) move_window(in, position);
    return reinterpret_cast<const uint8_t*>(in.window)[position++ - in.first];
}

// A length that a token begins; -1 where it goes on past `stop`.
DEVICE int whole_length(Input& in, int& position, int stop, int length) {
    if (length < 15) return length;
    for (;;) {
        if (position >= stop) return -1;
        int more = next_byte(in, position);
        length += more;
        if (more != 255) return length;
    }
}

// What follows writes behind the `at` bytes that `out` holds; `out` itself lies at a multiple of 16.

// Bytes that do not overlap with where they go.
DEVICE void copy_bytes(uint8_t* out, int at, const uint8_t* from, int bytes) {
    uint8_t* to = out + at;
    if (bytes <= WARP) {
        ROLLED LANES(i, bytes) to[i] = from[i];
        return;
    }
    int head = -at & 3, words = (bytes - head) / 4;
    ROLLED LANES(i, words) store<uint32_t>(to + head + 4 * i, load_anywhere(from + head + 4 * i));
    ROLLED LANES(i, bytes - 4 * words) {
        int k = i < head ? i : i + 4 * words;
        to[k] = from[k];
    }
}

// The last 1, 2 or 4 bytes again and again.
DEVICE void fill_bytes(uint8_t* out, int at, int distance, int bytes) {
    uint8_t* to = out + at;
    uint32_t pattern = 0;
    UNROLLED
    for (int k = 0; k < 4; ++k) pattern |= static_cast<uint32_t>((to - distance)[k & (distance - 1)]) << (8 * k);
    if (bytes <= WARP) {
        ROLLED LANES(i, bytes) to[i] = static_cast<uint8_t>(pattern >> (8 * (i & 3)));
        return;
    }
    int head = -at & 15, wides = (bytes - head) / 16, turn = 8 * (head & 3);
    uint32_t word = turn ? pattern >> turn | pattern << (32 - turn) : pattern;
    Wide wide = {word, word, word, word};
    ROLLED LANES(i, wides) store<Wide>(to + head + 16 * i, wide);
    ROLLED LANES(i, bytes - 16 * wides) {
        int k = i < head ? i : i + 16 * wides;
        to[k] = static_cast<uint8_t>(pattern >> (8 * (k & 3)));
    }
}

// A match: `bytes` bytes from `distance` before, which may reach into what is being written.
DEVICE void copy_match(uint8_t* out, int at, int distance, int bytes) {
    const uint8_t* from = out + at - distance;
    if (distance >= bytes) {
        copy_bytes(out, at, from, bytes);
    } else if (distance == 1 || distance == 2 || distance == 4) {
        fill_bytes(out, at, distance, bytes);
    } else if (bytes <= WARP) {
        ROLLED LANES(i, bytes) out[at + i] = from[static_cast<uint32_t>(i) % static_cast<uint32_t>(distance)];
    } else {
        // Every turn copies all there is of the repeated bytes, so that it never meets what it writes.
        for (int done = 0; done < bytes;) {
            int part = distance + done < bytes - done ? distance + done : bytes - done;
            copy_bytes(out, at + done, from, part);
            done += part;
            SYNC_WARP();
        }
    }
}

// Whether the LZ4 block of `bytes` bytes fills the `room` bytes at `out` exactly. Every lane follows the same way.
DEVICE bool decode_lz4(Input in, int bytes, uint8_t* out, int room) {
    int position = 0, filled = 0;
    move_window(in, 0);
    while (position < bytes) {
        int token = next_byte(in, position);
        int literals = whole_length(in, position, bytes, token >> 4);
        if (literals < 0) return false;
        // The format: the last 5 bytes are literals, and no match starts in the last 12. So what passes here is within
        // the block and its room.
        bool last = literals > room - 12 - filled || literals > bytes - 8 - position;
        if (last && (literals != bytes - position || literals != room - filled)) return false;
        while (literals > 0) {
            if (position - in.first >= WINDOW) move_window(in, position);
            int start = position - in.first, part = literals < WINDOW - start ? literals : WINDOW - start;
            copy_bytes(out, filled, reinterpret_cast<const uint8_t*>(in.window) + start, part);
            literals -= part;
            position += part;
            filled += part;
        }
        if (last) {
            SYNC_WARP();
            return true;
        }
        int distance = next_byte(in, position);
        distance |= next_byte(in, position) << 8;
        int length = whole_length(in, position, bytes - 4, token & 15);
        if (length < 0) return false;
        length += 4;
        if (distance == 0 || distance > filled || length > room - 5 - filled) return false;
        // This one is enough: what a match reads was written before it, and no literal is written where a match reads.
        SYNC_WARP();
        copy_match(out, filled, distance, length);
        filled += length;
    }
    return false;
}

// Bit k of byte j becomes bit j of byte k; bytes 0 to 3 in `low`, 4 to 7 in `high`.
DEVICE void transpose_bits(uint32_t& low, uint32_t& high) {
    uint32_t t = (low ^ (low >> 7)) & 0x00AA00AAu;
    low ^= t ^ (t << 7);
    t = (high ^ (high >> 7)) & 0x00AA00AAu;
    high ^= t ^ (t << 7);
    t = (low ^ (low >> 14)) & 0x0000CCCCu;
    low ^= t ^ (t << 14);
    t = (high ^ (high >> 14)) & 0x0000CCCCu;
    high ^= t ^ (t << 14);
    t = (low ^ (high << 4)) & 0xF0F0F0F0u;
    low ^= t;
    high ^= t >> 4;
}

// 0xFF in byte k where bit k of the four is set.
DEVICE uint32_t bits_to_bytes(uint32_t bits) { return (((bits & 15) * 0x00204081u) & 0x01010101u) * 255u; }

// One byte of each of four bit planes of `groups` bytes.
DEVICE uint32_t gather_planes(const uint8_t* planes, int groups) {
    uint32_t first = choose_bytes(planes[0], planes[groups], 0x40);
    return choose_bytes(first, choose_bytes(planes[2 * groups], planes[3 * groups], 0x40), 0x5410);
}

// Four 16-bit values, two to a word, of their four low and four high bytes.
DEVICE uint32_t first_two(uint32_t low, uint32_t high) { return choose_bytes(low, high, 0x5140); }
DEVICE uint32_t last_two(uint32_t low, uint32_t high) { return choose_bytes(low, high, 0x7362); }

DEVICE uint32_t fold_or(uint32_t a, uint32_t b) { a |= b; a |= a >> 16; return (a | a >> 8) & 0xFF; }
DEVICE uint32_t fold_and(uint32_t a, uint32_t b) { a &= b; a &= a >> 16; return a & a >> 8 & 0xFF; }

// Where the pixels of a unit go, and their bits; eight pixels to a byte.
struct Output { uint16_t* pixels; const uint8_t* valid; uint8_t* lit; uint8_t* blank; };

// Un-bitshuffle `groups` groups of eight elements of ELEMENT bytes: bit b of all lies in the bytes from b * groups on.
template <int ELEMENT>
DEVICE void write_shuffled(const uint8_t* planes, int groups, Output out) {
    ROLLED LANES(g, groups) {
        uint32_t low0 = gather_planes(planes + g, groups), low1 = gather_planes(planes + 4 * groups + g, groups);
        uint32_t high0 = 0, high1 = 0;
        uint32_t any = fold_or(low0, low1), all = fold_and(low0, low1), above = 0;
        if (ELEMENT > 1) {
            high0 = gather_planes(planes + 8 * groups + g, groups);
            high1 = gather_planes(planes + 12 * groups + g, groups);
            any |= fold_or(high0, high1);
            all &= fold_and(high0, high1);
        }
        if (ELEMENT == 4) {
            above = all;
            UNROLLED
            for (int k = 16; k < 32; ++k) {
                uint32_t plane = planes[k * groups + g];
                above |= plane;
                all &= plane;
            }
            any |= above;
        }
        transpose_bits(low0, low1);
        if (high0 | high1) transpose_bits(high0, high1);
        if (ELEMENT == 1 && all) {
            high0 = bits_to_bytes(all);
            high1 = bits_to_bytes(all >> 4);
        }
        if (ELEMENT == 4 && above) {
            uint32_t most = above & ~all;
            low0 = (low0 | bits_to_bytes(above)) & ~(bits_to_bytes(most) & 0x01010101u);
            low1 = (low1 | bits_to_bytes(above >> 4)) & ~(bits_to_bytes(most >> 4) & 0x01010101u);
            high0 |= bits_to_bytes(above);
            high1 |= bits_to_bytes(above >> 4);
        }
        Wide eight = {first_two(low0, high0), last_two(low0, high0), first_two(low1, high1), last_two(low1, high1)};
        store<Wide>(out.pixels + 8 * g, eight);
        uint32_t valid = out.valid[g];
        out.lit[g] = static_cast<uint8_t>(any & ~all & valid);
        out.blank[g] = static_cast<uint8_t>(all & valid);
    }
}

// `elements` little-endian elements as they are, from any address; the last group may be short.
template <int ELEMENT>
DEVICE void write_plain(const uint8_t* from, int elements, Output out) {
    ROLLED LANES(g, (elements + 7) / 8) {
        int count = elements - 8 * g < 8 ? elements - 8 * g : 8;
        uint32_t lit = 0, blank = 0, words[4] = {0, 0, 0, 0};
        UNROLLED
        for (int k = 0; k < 8; ++k) {
            uint32_t value = 0;
            UNROLLED
            for (int byte = 0; byte < ELEMENT; ++byte) {
                if (k < count) value |= static_cast<uint32_t>(from[(8 * g + k) * ELEMENT + byte]) << (8 * byte);
            }
            bool without = value == 0xFFFFFFFFu >> (32 - 8 * ELEMENT);
            value = without ? NO_DATA : value > MOST_COUNTS ? MOST_COUNTS : value;
            lit |= static_cast<uint32_t>(value != 0 && !without) << k;
            blank |= static_cast<uint32_t>(without) << k;
            words[k / 2] |= value << (16 * (k & 1));
            if (count < 8 && k < count) out.pixels[8 * g + k] = static_cast<uint16_t>(value);
        }
        if (count == 8) {
            Wide eight = {words[0], words[1], words[2], words[3]};
            store<Wide>(out.pixels + 8 * g, eight);
        }
        out.lit[g] = static_cast<uint8_t>(lit & out.valid[g]);
        out.blank[g] = static_cast<uint8_t>(blank & out.valid[g]);
    }
}

// Whether unit `unit` of a frame of `pixels` pixels was decoded; one that the frame does not have is.
template <int ELEMENT>
DEVICE bool decode_unit(const uint8_t* batch, uint64_t batch_bytes, const Frame& frame, int unit, int64_t pixels,
                        Output frame_out, uint8_t* planes, Wide* window) {
    if (frame.packing == UNUSED || unit > frame.blocks) return true;
    if (frame.source > batch_bytes || frame.source_bytes > batch_bytes - frame.source) return false;
    if (frame.block_elements <= 0 || frame.block_elements % 8 || frame.block_elements > ROOM / ELEMENT) return false;
    const uint8_t* source = batch + frame.source;
    int64_t left_over = frame.packing == BSLZ4 ? pixels % 8 : 0, whole = pixels - left_over;
    bool behind = unit == frame.blocks;
    int64_t first = behind ? whole : static_cast<int64_t>(unit) * frame.block_elements;
    Output out = {frame_out.pixels + first, frame_out.valid + first / 8, frame_out.lit + first / 8,
                  frame_out.blank + first / 8};
    if (behind) {
        if (frame.source_bytes < left_over * ELEMENT) return false;
        write_plain<ELEMENT>(source + frame.source_bytes - left_over * ELEMENT, static_cast<int>(left_over), out);
        return true;
    }
    if (first >= whole) return false;
    int elements = static_cast<int>(whole - first < frame.block_elements ? whole - first : frame.block_elements);
    if (frame.packing == PLAIN) {
        if ((first + elements) * ELEMENT > frame.source_bytes) return false;
        write_plain<ELEMENT>(source + first * ELEMENT, elements, out);
        return true;
    }
    uint64_t entry = frame.table + unit * sizeof(Block);
    if (entry % 8 || entry > batch_bytes - sizeof(Block)) return false;
    uint64_t both = load<uint64_t>(batch + entry);
    uint32_t start = static_cast<uint32_t>(both), bytes = static_cast<uint32_t>(both >> 32), room = elements * ELEMENT;
    if (start > frame.source_bytes || bytes > frame.source_bytes - start) return false;
    // No block that decodes to so many bytes is longer.
    if (bytes > room + room / 255 + 16) return false;
    Input in = {batch, batch_bytes, frame.source + start, window, 0};
    if (!decode_lz4(in, static_cast<int>(bytes), planes, static_cast<int>(room))) return false;
    write_shuffled<ELEMENT>(planes, elements / 8, out);
    return true;
}

// Block x decodes unit x of frame y. The frames of `out` are `stride` pixels apart, a multiple of 64; those of `lit`
// (valid pixels with light) and `blank` (valid pixels without data) as many bits. What lies behind a frame's pixels is
// not written. A bad unit leaves ERROR_TOP less its number in the frame's error word; the first one stays.
template <int ELEMENT>
DEVICE void decode(int unit, int number, const uint8_t* batch, uint64_t batch_bytes, int32_t* errors, int64_t pixels,
                   int64_t stride, const uint8_t* valid, uint16_t* out, uint8_t* lit, uint8_t* blank, uint8_t* planes,
                   Wide* window) {
    Frame frame = reinterpret_cast<const Frame*>(batch)[number];
    Output at = {out + number * stride, valid, lit + number * (stride / 8), blank + number * (stride / 8)};
    if (!decode_unit<ELEMENT>(batch, batch_bytes, frame, unit, pixels, at, planes, window)) {
        ONE_LANE atomic_max(errors + number, ERROR_TOP - unit);
    }
}


KERNEL(bslz4_u8, WARP, const uint8_t* batch, uint64_t batch_bytes, int32_t* errors, int64_t pixels, int64_t stride,
       const uint8_t* valid, uint16_t* out, uint8_t* lit, uint8_t* blank) {
    SHARED Wide planes[ROOM / 16];
    SHARED Wide window[WINDOW / 16];
    decode<1>(BLOCK_X, BLOCK_Y, batch, batch_bytes, errors, pixels, stride, valid, out, lit, blank,
              reinterpret_cast<uint8_t*>(planes), window);
}

KERNEL(bslz4_u16, WARP, const uint8_t* batch, uint64_t batch_bytes, int32_t* errors, int64_t pixels, int64_t stride,
       const uint8_t* valid, uint16_t* out, uint8_t* lit, uint8_t* blank) {
    SHARED Wide planes[ROOM / 16];
    SHARED Wide window[WINDOW / 16];
    decode<2>(BLOCK_X, BLOCK_Y, batch, batch_bytes, errors, pixels, stride, valid, out, lit, blank,
              reinterpret_cast<uint8_t*>(planes), window);
}

KERNEL(bslz4_u32, WARP, const uint8_t* batch, uint64_t batch_bytes, int32_t* errors, int64_t pixels, int64_t stride,
       const uint8_t* valid, uint16_t* out, uint8_t* lit, uint8_t* blank) {
    SHARED Wide planes[ROOM / 16];
    SHARED Wide window[WINDOW / 16];
    decode<4>(BLOCK_X, BLOCK_Y, batch, batch_bytes, errors, pixels, stride, valid, out, lit, blank,
              reinterpret_cast<uint8_t*>(planes), window);
}
