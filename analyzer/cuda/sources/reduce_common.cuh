// What the kernels of the reduction share. Their one parameter is a `Reduction`, which lies on the device; it and the
// constants are written by analyzer/cuda/layout.py. A block works for frame BLOCK_Y; a frame with a fault is passed
// over.
//
// Counts and sums of counts are whole numbers, so that the order of atomics changes nothing. Where the CPU adds
// fractions in an order, one lane adds them in the same.
#pragma once
#include "prelude.cuh"
#include "reduce_layout.cuh"

// The parameter, and the frame that the block works for.
#define BEGIN_FRAME() \
    const Reduction r = *reduction; \
    const int frame = BLOCK_Y; \
    if (r.faults[frame]) return

// Runs through the bits of a word.
#define EACH(word, bit) for (uint64_t left_ = (word); left_ && ((bit) = lowest_bit(left_), true); left_ &= left_ - 1)

#ifdef CXLS_HOST
DEVICE int ones(uint64_t word) { return __builtin_popcountll(word); }
DEVICE int lowest_bit(uint64_t word) { return __builtin_ctzll(word); }
#else
DEVICE int ones(uint64_t word) { return __popcll(word); }
DEVICE int lowest_bit(uint64_t word) { return __ffsll(static_cast<long long>(word)) - 1; }
#endif

template <class T> DEVICE T least(T a, T b) { return b < a ? b : a; }
template <class T> DEVICE T most(T a, T b) { return a < b ? b : a; }
DEVICE uint32_t bits_of(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }
DEVICE float float_of(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }
DEVICE uint64_t order_of(double value) {
    // Bits whose order as whole numbers is the order of the values.
    uint64_t bits; memcpy(&bits, &value, 8);
    return bits >> 63 ? ~bits : bits | (uint64_t)1 << 63;
}
DEVICE double value_of(uint64_t order) {
    uint64_t bits = order >> 63 ? order & ~((uint64_t)1 << 63) : ~order;
    double value; memcpy(&value, &bits, 8); return value;
}

// Whether something comes before another: more of it first, of equals the earlier.
DEVICE bool before(double value, int64_t at, double other_value, int64_t other_at) {
    return (value > other_value) | ((value == other_value) & (at < other_at));
}

// A frame's part of a buffer of the slab.
template <class T> DEVICE T* of_frame(const Reduction& r, T* first, int frame) {
    return reinterpret_cast<T*>(reinterpret_cast<uint8_t*>(first) + frame * r.slab_bytes);
}
// A field of a frame's result.
template <class T> DEVICE T* of_result(const Reduction& r, int32_t offset, int frame) {
    return reinterpret_cast<T*>(r.results + frame * r.result_bytes + offset);
}

// A word of a bitmap, without what lies behind the frame's last pixel.
DEVICE uint64_t word_of(const Reduction& r, const uint64_t* bitmap, int word) {
    const int64_t behind = (word + (int64_t)1) * 64 - r.count;
    return behind > 0 ? bitmap[word] & ~(uint64_t)0 >> behind : bitmap[word];
}

// What the functions on pixels read.
struct Image {
    const uint16_t* pixels;
    const uint8_t* inside;
    int rows, columns;
};
DEVICE Image image_of(const Reduction& r, int frame) {
    return Image{r.pixels + frame * r.pixel_stride, r.inside, r.rows, r.columns};
}
DEVICE bool counts(const Image& image, int pixel) { return image.inside[pixel] && image.pixels[pixel] != NO_DATA; }

// -ln Poisson(counts; expected) for an excess, 0 otherwise.
DEVICE double surprise(const double* log_factorial, int64_t counted, double expected, double log_expected) {
    if (counted <= expected) return 0.0;
    if (counted < 65536) return expected - counted * log_expected + log_factorial[counted];
    // Stirling, with half the logarithm of 2 pi.
    double log_of_factorial = (counted + 0.5) * log(static_cast<double>(counted)) - counted + 0.9189385332046727;
    return expected - counted * log_expected + log_of_factorial;
}

// Mean counts a pixel of each bin, widened along the radius until enough photons support it. `total` and `area` hold
// AZIMUTH_CLASSES * (radial_bins + 1) sums each. Afterwards a thread may read the means of its own bins.
DEVICE void smooth(
    const double* counted, const double* pixels, int radial_bins, double* total, double* area, double* mean
) {
    const int sums = radial_bins + 1;
    SYNC();
    LANES(azimuth, AZIMUTH_CLASSES) {
        double photons = 0.0, covered = 0.0;
        total[azimuth * sums] = 0.0;
        area[azimuth * sums] = 0.0;
        // Several loads at once, for they take long; the sums are one after the other.
        for (int radial = 0; radial < radial_bins; radial += 8) {
            const int steps = least(8, radial_bins - radial);
            double more_photons[8], more_covered[8];
            UNROLLED
            for (int k = 0; k < 8; ++k) {
                more_photons[k] = k < steps ? counted[(radial + k) * AZIMUTH_CLASSES + azimuth] : 0.0;
                more_covered[k] = k < steps ? pixels[(radial + k) * AZIMUTH_CLASSES + azimuth] : 0.0;
            }
            UNROLLED
            for (int k = 0; k < 8; ++k) {
                photons += more_photons[k];
                covered += more_covered[k];
                if (k >= steps) continue;
                total[azimuth * sums + radial + k + 1] = photons;
                area[azimuth * sums + radial + k + 1] = covered;
            }
        }
    }
    SYNC();
    LANES(bin, radial_bins * AZIMUTH_CLASSES) {
        const int radial = bin / AZIMUTH_CLASSES;
        const double* photons = total + bin % AZIMUTH_CLASSES * sums;
        const double* covered = area + bin % AZIMUTH_CLASSES * sums;
        int too_short = -1, reach = 0;
        while (photons[least(radial + reach + 1, radial_bins)] - photons[most(radial - reach, 0)] < SMOOTHING_PHOTONS) {
            too_short = reach;
            reach = 2 * reach + 1;
            if (too_short >= radial_bins) break;
        }
        while (reach - too_short > 1) {
            const int middle = (too_short + reach) / 2;
            const double inner =
                photons[least(radial + middle + 1, radial_bins)] - photons[most(radial - middle, 0)];
            if (inner < SMOOTHING_PHOTONS) too_short = middle; else reach = middle;
        }
        const int low = most(radial - reach, 0), high = least(radial + reach + 1, radial_bins);
        mean[bin] = most(photons[high] - photons[low], 0.5) / most(covered[high] - covered[low], 1.0);
    }
}
