// Spots and pixels without data left out of the profiles, and the rest of a frame's result: see analyzer.kernels
// leave_out_spots and diffuse_areas, analyzer.parameters.profile.
#include "reduce_common.cuh"

KERNEL(reduce_leave_out, 128, const Reduction* reduction) {
    BEGIN_FRAME();
    const Image image = image_of(r, frame);
    const int32_t* claims = of_frame(r, r.claims, frame);
    const int32_t* most_alone = of_frame(r, r.most_alone, frame);
    const int32_t* most_around = of_frame(r, r.most_around, frame);
    uint64_t* photons = of_frame(r, r.spot_photons, frame);
    uint32_t* pixels = of_frame(r, r.spot_pixels, frame);
    uint32_t* areas = of_frame(r, r.left_out, frame);
    uint64_t* diffuse = of_frame(r, r.diffuse, frame);
    const int total = (int)of_frame(r, r.counters, frame)[CLAIMS];
    for (int from = BLOCK_X * 128; from < total; from += SPREAD * 128) {
        LANES(k, least(128, total - from)) {
            const int j = claims[from + k];
            if (!counts(image, j)) continue;
            const int place = r.place[j], bin = place / QUADRANTS;
            const uint64_t value = image.pixels[j];
            atomic_add(&photons[bin], value);
            atomic_add(&pixels[bin], (uint32_t)1);
            atomic_add(&areas[(image.inside[j] - 1) * r.places + place], (uint32_t)1);
            bool kept = (int)value <= most_alone[bin];
            if (image.inside[j] == 2 && most_around[bin] >= 0) {
                int sum = 0;
                kept = true;
                for (int p = 0; p < 9; ++p) {
                    const int around = image.pixels[j + (p / 3 - 1) * r.columns + p % 3 - 1];
                    kept = kept && around != NO_DATA;
                    sum += around;
                }
                kept = kept && sum <= most_around[bin];
            }
            if (kept && value) {
                // Modulo 2^64, so this takes away.
                atomic_add(&diffuse[2 * place], (uint64_t)0 - value);
                atomic_add(&diffuse[2 * place + 1], (uint64_t)0 - value * value);
            }
        }
    }
}

// The 64 bits of a bitmap from one on, which may be before the first or behind the last.
DEVICE uint64_t bits_from(const Reduction& r, const uint64_t* bitmap, int64_t first) {
    const int64_t word = first >> 6;
    const int shift = (int)(first & 63);
    const uint64_t low = word >= 0 && word < r.words ? word_of(r, bitmap, (int)word) >> shift : 0;
    if (!shift) return low;
    return low | (word + 1 >= 0 && word + 1 < r.words ? word_of(r, bitmap, (int)word + 1) << (64 - shift) : 0);
}

// Pixels without data, and those whose 3 x 3 holds one. Only pixels that have all eight neighbours are blinded, so that
// the end of a row needs no care.
KERNEL(reduce_leave_out_blank, 256, const Reduction* reduction) {
    BEGIN_FRAME();
    const uint64_t* blank = r.blank + frame * r.word_stride;
    const uint32_t* claimed = of_frame(r, r.claimed, frame);
    const int32_t* most_around = of_frame(r, r.most_around, frame);
    uint32_t* areas = of_frame(r, r.left_out, frame);
    const int first = BLOCK_X * COUNTED_WORDS;
    LANES(k, least(COUNTED_WORDS, r.words - first)) {
        const int word = first + k;
        const uint64_t own = word_of(r, blank, word);
        uint64_t around = 0;
        for (int down = -1; down <= 1; ++down) {
            const int64_t at = word * (int64_t)64 + down * r.columns;
            around |= bits_from(r, blank, at - 1) | bits_from(r, blank, at) | bits_from(r, blank, at + 1);
        }
        int bit;
        EACH(own, bit) {
            const int i = word * 64 + bit;
            if (r.inside[i]) atomic_add(&areas[(r.inside[i] - 1) * r.places + r.place[i]], (uint32_t)1);
        }
        EACH(around & ~own, bit) {
            const int i = word * 64 + bit;
            if (i >= r.count || r.inside[i] != 2 || claimed[i / 32] >> i % 32 & 1) continue;
            if (most_around[r.place[i] / QUADRANTS] >= 0) atomic_add(&areas[r.places + r.place[i]], (uint32_t)1);
        }
    }
}

// Chance of a Poisson number of `counted` or fewer; 0 for fewer than none.
DEVICE double at_most(int counted, double mean) {
    if (counted < 0) return 0.0;
    double term = exp(-mean), total = term;
    for (int n = 1; n <= counted; ++n) {
        term *= mean / n;
        total += term;
    }
    return least(total, 1.0);
}

// How many pixels the kept photons of each place stand for, the profile, the first columns of the zones, and totals.
KERNEL(reduce_finish, 256, const Reduction* reduction) {
    SHARED double total[AZIMUTH_CLASSES * (SHARED_RADII + 1)], area[AZIMUTH_CLASSES * (SHARED_RADII + 1)];
    SHARED double sums[2][PARTS];
    BEGIN_FRAME();
    const bool here = r.radial_bins <= SHARED_RADII;
    const uint64_t* photons = of_frame(r, r.photons, frame);
    const uint64_t* spot_photons = of_frame(r, r.spot_photons, frame);
    const uint32_t* spot_pixels = of_frame(r, r.spot_pixels, frame);
    const uint32_t* lost = of_frame(r, r.lost, frame);
    const double* background = of_frame(r, r.background, frame);
    const uint32_t* left_out = of_frame(r, r.left_out, frame);
    const uint64_t* diffuse = of_frame(r, r.diffuse, frame);
    const int32_t* most_alone = of_frame(r, r.most_alone, frame);
    const int32_t* most_around = of_frame(r, r.most_around, frame);
    double* mean = of_frame(r, r.kept_mean, frame);
    double* counted = of_frame(r, r.kept_counts, frame);
    double* covered = of_frame(r, r.kept_area, frame);
    double* pixels = of_frame(r, r.diffuse_pixels, frame);
    double* pairs = of_frame(r, r.pairs, frame);
    double* out_photons = of_result<double>(r, r.result_photons, frame);
    double* out_pixels = of_result<double>(r, r.result_pixels, frame);
    double* out_background = of_result<double>(r, r.result_background, frame);
    LANES(b, r.bins) {
        mean[b] = background[b];
        out_photons[b] = (double)(photons[b] - spot_photons[b]);
        out_pixels[b] = r.bin_pixels[b] - lost[b] - spot_pixels[b];
        out_background[b] = background[b];
    }
    for (int turn = 0; turn < 3; ++turn) {
        LANES(b, r.bins) {
            const bool whole = most_alone[b] == KEPT_WHOLE, same = most_around[b] < 0;
            const double alone = whole ? 1.0 : at_most(most_alone[b] - 1, mean[b]);
            const double around = same ? alone : at_most(most_around[b] - 1, 9.0 * mean[b]);
            double sum = 0.0, stands_for = 0.0;
            for (int at = QUADRANTS * b; at < QUADRANTS * (b + 1); ++at) {
                const double first = r.place_pixels[at] - left_out[at];
                const double second = r.place_pixels[r.places + at] - left_out[r.places + at];
                pixels[at] = first * alone + second * around;
                sum += (double)diffuse[2 * at];
                stands_for += pixels[at];
            }
            counted[b] = sum;
            covered[b] = stands_for;
            if (turn < 2) continue;
            const double two = whole ? 1.0 : at_most(most_alone[b] - 2, mean[b]);
            const double both = same ? two : at_most(most_around[b] - 2, 9.0 * mean[b]);
            double expected = 0.0;
            for (int at = QUADRANTS * b; at < QUADRANTS * (b + 1); ++at) {
                const double first = r.place_pixels[at] - left_out[at];
                const double second = r.place_pixels[r.places + at] - left_out[r.places + at];
                expected += mean[b] * mean[b] * (first * two + second * both);
            }
            pairs[b] = expected;
        }
        if (turn < 2) {
            smooth(counted, covered, r.radial_bins, here ? total : of_frame(r, r.sums_counts, frame),
                   here ? area : of_frame(r, r.sums_area, frame), mean);
        }
    }
    SYNC();
    float* profile = of_result<float>(r, r.result_profile, frame);
    LANES(n, r.sector_bins) {
        double sum[3] = {0.0, 0.0, 0.0};
        for (int k = r.sector_first[n]; k < r.sector_first[n + 1]; ++k) {
            const int at = r.sector_places[k];
            sum[0] += (double)diffuse[2 * at];
            sum[1] += (double)diffuse[2 * at + 1];
            sum[2] += pixels[at];
        }
        for (int row = 0; row < 3; ++row) profile[row * r.sector_bins + n] = (float)sum[row];
    }
    float* zones = of_result<float>(r, r.result_zones, frame);
    LANES(zone, ZONES) {
        double all = 0.0, outside = 0.0, valid = 0.0, expected = 0.0;
        for (int b = r.zone_first[zone]; b < r.zone_first[zone + 1]; ++b) {
            all += (double)photons[b];
            outside += out_photons[b];
            valid += out_pixels[b];
            expected += background[b] * r.bin_pixels[b];
        }
        float* columns = zones + zone * ZONE_COLUMNS;
        columns[0] = (float)all;
        columns[1] = (float)outside;
        columns[2] = (float)valid;
        columns[3] = (float)expected;
    }
    LANES(part, PARTS) {
        double expected = 0.0, twice = 0.0;
        for (int b = part; b < r.bins; b += PARTS) {
            expected += background[b] * r.bin_pixels[b];
            twice += pairs[b];
        }
        sums[0][part] = expected;
        sums[1][part] = twice;
    }
    SYNC();
    ONE_LANE {
        double expected = 0.0, twice = 0.0;
        for (int part = 0; part < PARTS; ++part) { expected += sums[0][part]; twice += sums[1][part]; }
        const uint64_t* totals = of_frame(r, r.totals, frame);
        const uint32_t* counters = of_frame(r, r.counters, frame);
        Header* header = of_result<Header>(r, 0, frame);
        header->total_photons = (int64_t)totals[0];
        header->counting_pixels = (int64_t)totals[1];
        header->saturated_pixels = (int64_t)totals[2];
        header->at_limit = (int64_t)totals[3];
        header->background_photons = expected;
        header->pairs = twice;
        header->peaks = (int32_t)counters[PEAKS];
        header->candidates = (int32_t)counters[CANDIDATES];
        header->claims = (int32_t)counters[CLAIMS];
        header->spots = (int32_t)counters[SPOTS];
    }
}
