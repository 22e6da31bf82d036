// Totals, photons and pixels by bin, and the background: see analyzer.kernels tally and estimate_background.
#include "reduce_common.cuh"

// Zero what the other kernels add to.
KERNEL(reduce_clear, 256, const Reduction* reduction) {
    BEGIN_FRAME();
    uint64_t* words = of_frame(r, r.zeroed, frame);
    const int64_t first = static_cast<int64_t>(BLOCK_X) * CLEARED_WORDS;
    LANES(k, CLEARED_WORDS) if (first + k < r.zeroed_words) words[first + k] = 0;
}

// Photons, counting pixels and pixels without data of each bin; totals.
KERNEL(reduce_count, 256, const Reduction* reduction) {
    SHARED uint32_t photons[SHARED_BINS], occupied[SHARED_BINS], lost[SHARED_BINS], total[4];
    BEGIN_FRAME();
    const uint16_t* pixels = r.pixels + frame * r.pixel_stride;
    const uint64_t* lit = r.lit + frame * r.word_stride;
    const uint64_t* blank = r.blank + frame * r.word_stride;
    uint64_t* all_photons = of_frame(r, r.photons, frame);
    uint32_t* all_occupied = of_frame(r, r.occupied, frame);
    uint32_t* all_lost = of_frame(r, r.lost, frame);
    const bool here = r.bins <= SHARED_BINS;
    LANES(b, here ? r.bins : 0) { photons[b] = 0; occupied[b] = 0; lost[b] = 0; }
    LANES(k, 4) total[k] = 0;
    SYNC();
    const int first = BLOCK_X * COUNTED_WORDS;
    // Pixels of a word follow each other, mostly in one bin: one addition for each bin they pass through.
    LANES(k, least(COUNTED_WORDS, r.words - first)) {
        const int word = first + k;
        uint32_t sum = 0, pixels_lit = 0, saturated = 0, at_limit = 0, all = 0;
        int bin = -1, bit;
        EACH(word_of(r, lit, word), bit) {
            const int i = word * 64 + bit, b = r.place[i] / QUADRANTS;
            if (b != bin) {
                if (bin >= 0) {
                    if (here) { atomic_add(&photons[bin], sum); atomic_add(&occupied[bin], pixels_lit); }
                    else { atomic_add(&all_photons[bin], (uint64_t)sum); atomic_add(&all_occupied[bin], pixels_lit); }
                }
                bin = b; sum = 0; pixels_lit = 0;
            }
            const uint32_t value = pixels[i];
            sum += value;
            all += value;
            pixels_lit += 1;
            saturated += value >= (uint32_t)r.saturation;
            at_limit += value >= MOST_COUNTS;
        }
        if (bin >= 0) {
            if (here) { atomic_add(&photons[bin], sum); atomic_add(&occupied[bin], pixels_lit); }
            else { atomic_add(&all_photons[bin], (uint64_t)sum); atomic_add(&all_occupied[bin], pixels_lit); }
            atomic_add(&total[0], all);
            atomic_add(&total[1], (uint32_t)ones(word_of(r, lit, word)));
            if (saturated) atomic_add(&total[2], saturated);
            if (at_limit) atomic_add(&total[3], at_limit);
        }
        EACH(word_of(r, blank, word), bit) {
            const int b = r.place[word * 64 + bit] / QUADRANTS;
            atomic_add(here ? &lost[b] : &all_lost[b], (uint32_t)1);
        }
    }
    SYNC();
    LANES(b, here ? r.bins : 0) {
        if (occupied[b]) {
            atomic_add(&all_photons[b], (uint64_t)photons[b]);
            atomic_add(&all_occupied[b], occupied[b]);
        }
        if (lost[b]) atomic_add(&all_lost[b], lost[b]);
    }
    uint64_t* totals = of_frame(r, r.totals, frame);
    LANES(k, 4) if (total[k]) atomic_add(&totals[k], (uint64_t)total[k]);
}

// What a bin's background decides about its pixels.
DEVICE void judge(const Reduction& r, int frame, int bin, double mean) {
    const double highest = mean + 5.0 * sqrt(mean) + 3.0;
    of_frame(r, r.most_kept, frame)[bin] = highest < 65535.0 ? (uint32_t)highest : 65535u;
    const double log_mean = log(mean);
    of_frame(r, r.log_background, frame)[bin] = log_mean;
    const int64_t row = (int64_t)((log_mean + LOG_9 - LOG_LOWEST) / LOG_STEP + 0.5);
    of_frame(r, r.table_row, frame)[bin] = (int32_t)(row < 0 ? 0 : row < TABLE_ROWS ? row : TABLE_ROWS);
    int low = 0, high = ALONE_MEANS;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (r.alone_means[middle] < mean) low = middle + 1; else high = middle;
    }
    of_frame(r, r.most_alone, frame)[bin] = low + 1 > ALONE_MEANS ? KEPT_WHOLE : low + 1;
    int around = 0;
    while (around < AROUND_MEANS && r.around_means[around] < mean) ++around;
    of_frame(r, r.most_around, frame)[bin] = mean > FAINTEST_BRIGHT ? -1 : around + 1;
}

// Turn 0: the first guess, from how many pixels counted at all. Turns 1 and 2: the mean without outliers.
KERNEL(reduce_smooth, 256, const Reduction* reduction, int turn) {
    SHARED double total[AZIMUTH_CLASSES * (SHARED_RADII + 1)], area[AZIMUTH_CLASSES * (SHARED_RADII + 1)];
    BEGIN_FRAME();
    double* counted = of_frame(r, r.kept_counts, frame);
    double* pixels = of_frame(r, r.kept_area, frame);
    double* mean = of_frame(r, r.background, frame);
    const bool here = r.radial_bins <= SHARED_RADII;
    const uint64_t* photons = of_frame(r, r.photons, frame);
    const uint32_t* occupied = of_frame(r, r.occupied, frame);
    const uint32_t* lost = of_frame(r, r.lost, frame);
    const int64_t part = (turn - 1) * (int64_t)r.bins;
    LANES(b, r.bins) {
        const double valid = r.bin_pixels[b] - lost[b];
        if (turn == 0) {
            const double share = valid > 0.0 ? occupied[b] / valid : 0.0;
            counted[b] = share < 0.8 ? -log1p(-share) * valid : (double)photons[b];
            pixels[b] = valid;
        } else {
            counted[b] = (double)of_frame(r, r.clipped, frame)[part + b];
            pixels[b] = valid - of_frame(r, r.outliers, frame)[part + b];
        }
    }
    smooth(counted, pixels, r.radial_bins, here ? total : of_frame(r, r.sums_counts, frame),
           here ? area : of_frame(r, r.sums_area, frame), mean);
    LANES(b, r.bins) judge(r, frame, b, mean[b]);
}

// Photons of the pixels that are no outliers of the background so far, and how many are, by bin.
KERNEL(reduce_clip, 256, const Reduction* reduction, int turn) {
    SHARED uint32_t clipped[SHARED_BINS], outliers[SHARED_BINS], highest[SHARED_BINS];
    BEGIN_FRAME();
    const uint16_t* pixels = r.pixels + frame * r.pixel_stride;
    const uint64_t* lit = r.lit + frame * r.word_stride;
    uint64_t* all_clipped = of_frame(r, r.clipped, frame) + (turn - 1) * (int64_t)r.bins;
    uint32_t* all_outliers = of_frame(r, r.outliers, frame) + (turn - 1) * (int64_t)r.bins;
    const uint32_t* all_highest = of_frame(r, r.most_kept, frame);
    const bool here = r.bins <= SHARED_BINS;
    LANES(b, here ? r.bins : 0) { clipped[b] = 0; outliers[b] = 0; highest[b] = all_highest[b]; }
    SYNC();
    const int first = BLOCK_X * COUNTED_WORDS;
    LANES(k, least(COUNTED_WORDS, r.words - first)) {
        const int word = first + k;
        uint32_t sum = 0, out = 0, limit = 0;
        int bin = -1, bit;
        EACH(word_of(r, lit, word), bit) {
            const int i = word * 64 + bit, b = r.place[i] / QUADRANTS;
            if (b != bin) {
                if (sum && here) atomic_add(&clipped[bin], sum);
                if (sum && !here) atomic_add(&all_clipped[bin], (uint64_t)sum);
                if (out) atomic_add(here ? &outliers[bin] : &all_outliers[bin], out);
                bin = b; sum = 0; out = 0;
                limit = here ? highest[b] : all_highest[b];
            }
            const uint32_t value = pixels[i];
            if (value <= limit) sum += value; else out += 1;
        }
        if (sum && here) atomic_add(&clipped[bin], sum);
        if (sum && !here) atomic_add(&all_clipped[bin], (uint64_t)sum);
        if (out) atomic_add(here ? &outliers[bin] : &all_outliers[bin], out);
    }
    SYNC();
    LANES(b, here ? r.bins : 0) {
        if (clipped[b]) atomic_add(&all_clipped[b], (uint64_t)clipped[b]);
        if (outliers[b]) atomic_add(&all_outliers[b], outliers[b]);
    }
}

// Over all frames: where a pixel has ever counted, and the background summed, frame after frame.
KERNEL(reduce_note, 256, const Reduction* reduction, int frames) {
    const Reduction r = *reduction;
    const int first = BLOCK_X * 256;
    LANES(k, least(256, r.words - first)) {
        uint64_t seen = 0;
        for (int frame = 0; frame < frames; ++frame) {
            if (!r.faults[frame]) seen |= word_of(r, r.lit + frame * r.word_stride, first + k);
        }
        r.seen[first + k] |= seen;
    }
    if (BLOCK_X) return;
    LANES(b, r.bins) {
        double expected = r.expected[b];
        for (int frame = 0; frame < frames; ++frame) {
            if (!r.faults[frame]) expected += of_frame(r, r.background, frame)[b];
        }
        r.expected[b] = expected;
    }
}
