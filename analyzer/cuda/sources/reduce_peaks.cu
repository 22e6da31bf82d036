// Evidence for a spot at each candidate, and one peak for each spot: see analyzer.kernels find_peaks, analyzer.spots.
#include "reduce_arcs.cuh"
#include "reduce_common.cuh"

// The larger of the bin's mean and that of a ring around: on streaks and ring edges the ring decides.
DEVICE double local_background(const Image& image, int row, int column, double mean) {
    const double limit = mean + 3.0 * sqrt(mean) + 1.0;
    double photons = RING_PRIOR_PIXELS * mean, area = RING_PRIOR_PIXELS;
    for (int y = most(0, row - RING_OUTER); y < least(image.rows, row + RING_OUTER + 1); ++y) {
        for (int x = most(0, column - RING_OUTER); x < least(image.columns, column + RING_OUTER + 1); ++x) {
            const int down = y < row ? row - y : y - row, across = x < column ? column - x : x - column;
            const int j = y * image.columns + x;
            if (most(down, across) < RING_INNER || !counts(image, j) || image.pixels[j] > limit) continue;
            area += 1.0;
            photons += image.pixels[j];
        }
    }
    if (photons - mean * area < 3.0 * sqrt(mean * area)) return mean;
    return most(mean, photons / area);
}

// Less than any.
#define NO_EVIDENCE (-1e300)

// By distance from the middle of a window: pixels with data, their counts, and how many counted.
struct Window { double pixels[DISTANCES], photons[DISTANCES], lit[DISTANCES]; };

// False where a pixel beside the middle has no data.
DEVICE bool count_window(const Image& image, int row, int column, Window& window) {
    for (int c = 0; c < DISTANCES; ++c) window.pixels[c] = window.photons[c] = window.lit[c] = 0.0;
    for (int y = most(0, row - REACH); y < least(image.rows, row + REACH + 1); ++y) {
        for (int x = most(0, column - REACH); x < least(image.columns, column + REACH + 1); ++x) {
            const int j = y * image.columns + x;
            if (!counts(image, j)) {
                if (y >= row - 1 && y <= row + 1 && x >= column - 1 && x <= column + 1) return false;
                continue;
            }
            const int c = DISTANCE_OF[(y - row + REACH) * (2 * REACH + 1) + x - column + REACH];
            window.pixels[c] += 1.0;
            window.photons[c] += image.pixels[j];
            window.lit[c] += image.pixels[j] > 0;
        }
    }
    return true;
}

// Logarithms of the weighted likelihood ratios of the discs.
DEVICE void disc_exponents(const Window& window, double mean, double* exponents) {
    const double by_chance = -expm1(-mean);
    for (int k = 0; k < CHANCES; ++k) {
        const double of_lit = log(LIT_CHANCES[k] / by_chance), of_dark = log1p(-LIT_CHANCES[k]) + mean;
        for (int disc = 0; disc < DISCS; ++disc) {
            double bright = 0.0, dark = 0.0;
            for (int c = 0; c < DISTANCES; ++c) {
                if (!IN_DISC[disc * DISTANCES + c]) continue;
                bright += window.lit[c];
                dark += window.pixels[c] - window.lit[c];
            }
            exponents[k * DISCS + disc] = DISC_LOG_WEIGHT + bright * of_lit + dark * of_dark;
        }
    }
}

// Logarithm of the sum of exponentials.
DEVICE double log_of_sum(const double* exponents) {
    double largest = exponents[0], total = 0.0;
    for (int n = 1; n < EXPONENTS; ++n) largest = most(largest, exponents[n]);
    for (int n = 0; n < EXPONENTS; ++n) {
        if (exponents[n] > largest - NEGLIGIBLE) total += exp(exponents[n] - largest);
    }
    return largest + log(total);
}

// Log-likelihood ratio of a spot in the middle of a window against the mean alone, in nats.
DEVICE double window_evidence(const Window& window, double mean) {
    // Logarithms of the weighted likelihood ratios of all that a spot may be.
    double exponents[EXPONENTS];
    for (int shape = 0; shape < SHAPES; ++shape) {
        double seen = 0.0;
        for (int c = 0; c < DISTANCES; ++c) seen += window.pixels[c] * SHARES[shape * DISTANCES + c];
        for (int k = 0; k < SPOT_PHOTONS; ++k) {
            double exponent = LOG_WEIGHT - PHOTONS[k] * seen;
            for (int c = 0; c < DISTANCES; ++c) {
                if (window.photons[c] == 0.0) continue;
                exponent += window.photons[c] * log1p(PHOTONS[k] * SHARES[shape * DISTANCES + c] / mean);
            }
            exponents[shape * SPOT_PHOTONS + k] = exponent;
        }
    }
    disc_exponents(window, mean, exponents + SHAPES * SPOT_PHOTONS);
    return log_of_sum(exponents);
}

// The same against what is expected of each pixel of the 3 x 3; the window is for discs.
DEVICE double evidence_beside(const Image& image, int middle, const double* expected, const Window& window) {
    double brightest = 0.0, light = 0.0, background = 0.0;
    int value[9];
    for (int n = 0; n < 9; ++n) {
        const int y = middle / image.columns + n / 3 - 1, x = middle % image.columns + n % 3 - 1;
        // Beyond the image there is nothing to say.
        value[n] = -1;
        if (y < 0 || y >= image.rows || x < 0 || x >= image.columns) continue;
        value[n] = image.pixels[y * image.columns + x];
        brightest = most(brightest, expected[n]);
        background += expected[n];
        light += value[n];
    }
    if (light - background < sqrt(background) + PROFILE_KNOWS * background) return NO_EVIDENCE;
    const double stronger = most(1.0, sqrt(brightest));
    double exponents[EXPONENTS];
    for (int e = 0; e < SHAPES * SPOT_PHOTONS; ++e) {
        const double photons = stronger * PHOTONS[e % SPOT_PHOTONS];
        const double* shares = SHARES + e / SPOT_PHOTONS * DISTANCES;
        double exponent = LOG_WEIGHT;
        for (int n = 0; n < 9; ++n) {
            if (value[n] < 0) continue;
            const double share =
                photons * shares[DISTANCE_OF[(n / 3 - 1 + REACH) * (2 * REACH + 1) + n % 3 - 1 + REACH]];
            exponent -= share;
            if (value[n]) exponent += value[n] * log1p(share / expected[n]);
        }
        exponents[e] = exponent;
    }
    disc_exponents(window, brightest, exponents + SHAPES * SPOT_PHOTONS);
    for (int k = 0; k < CHANCES; ++k) {
        if (LIT_CHANCES[k] > -expm1(-brightest)) continue;
        for (int disc = 0; disc < DISCS; ++disc) exponents[SHAPES * SPOT_PHOTONS + k * DISCS + disc] = NO_EVIDENCE;
    }
    return log_of_sum(exponents);
}

// The evidence for a spot at a candidate, less where its own radius counts as much beside it; and whether arcs say so.
DEVICE double judged(const Reduction& r, const Image& image, const Spot& spot, bool& beside) {
    const int pixel = spot.pixel;
    double expected[9];
    beside = expect_beside(r, image, pixel, spot.mean, 1, expected);
    if (!beside) return spot.evidence;
    Window window;
    count_window(image, pixel / image.columns, pixel % image.columns, window);
    return least(spot.evidence, evidence_beside(image, pixel, expected, window));
}

// Photons over the background in the window around a pixel, whatever spot they belong to.
DEVICE double net_around(const Image& image, int row, int column, double local) {
    double net = 0.0;
    for (int y = most(0, row - WINDOW_REACH); y < least(image.rows, row + WINDOW_REACH + 1); ++y) {
        for (int x = most(0, column - WINDOW_REACH); x < least(image.columns, column + WINDOW_REACH + 1); ++x) {
            if (counts(image, y * image.columns + x)) net += image.pixels[y * image.columns + x] - local;
        }
    }
    return net;
}

// The candidates that may become peaks, with all that does not depend on the peaks before them.
KERNEL(reduce_spot_evidence, 64, const Reduction* reduction) {
    BEGIN_FRAME();
    const Image image = image_of(r, frame);
    uint32_t* counters = of_frame(r, r.counters, frame);
    const int32_t* candidates = of_frame(r, r.candidates, frame);
    const double* background = of_frame(r, r.background, frame);
    Spot* spots = of_frame(r, r.spots, frame);
    const int total = (int)counters[CANDIDATES];
    for (int from = BLOCK_X * 64; from < total; from += SPREAD * 64) {
        LANES(k, least(64, total - from)) {
            const int i = candidates[from + k], row = i / r.columns, column = i % r.columns;
            const double mean = background[r.place[i] / QUADRANTS];
            Window window;
            if (!count_window(image, row, column, window)) continue;
            double evidence = window_evidence(window, mean);
            if (evidence <= r.lowest_evidence) continue;
            const double local = local_background(image, row, column, mean);
            if (local > mean) {
                evidence = window_evidence(window, local);
                if (evidence <= r.lowest_evidence) continue;
            }
            Spot& spot = spots[atomic_add(&counters[SPOTS], (uint32_t)1)];
            spot.evidence = evidence;
            spot.mean = mean;
            spot.local = local;
            spot.around = net_around(image, row, column, local);
            spot.pixel = i;
            spot.beside = 0;
        }
    }
}

// Whether one of the peaks is none by what its own radius counts: then all candidates are judged so, and peaks picked
// again. Else nothing is done here, nor by what follows.
KERNEL(reduce_look_beside, 64, const Reduction* reduction) {
    BEGIN_FRAME();
    const Image image = image_of(r, frame);
    uint32_t* counters = of_frame(r, r.counters, frame);
    const Spot* spots = of_frame(r, r.spots, frame);
    const int32_t* picked = of_frame(r, r.picked, frame);
    const int total = (int)counters[PEAKS];
    const double lowest = r.peak_threshold - log1p(total / SURE_PEAKS_FOR_AS_MANY);
    for (int from = BLOCK_X * 64; from < total; from += SPREAD * 64) {
        LANES(k, least(64, total - from)) {
            const Spot& spot = spots[picked[from + k]];
            bool beside;
            const double evidence = judged(r, image, spot, beside);
            if (evidence < spot.evidence && evidence <= lowest) atomic_or(&counters[AGAIN], (uint32_t)1);
        }
    }
}

KERNEL(reduce_judge_beside, 64, const Reduction* reduction) {
    BEGIN_FRAME();
    const Image image = image_of(r, frame);
    const uint32_t* counters = of_frame(r, r.counters, frame);
    if (!counters[AGAIN]) return;
    Spot* spots = of_frame(r, r.spots, frame);
    const int total = (int)counters[SPOTS], claims = (int)counters[CLAIMS];
    for (int from = BLOCK_X * 64; from < total; from += SPREAD * 64) {
        LANES(k, least(64, total - from)) {
            bool beside;
            spots[from + k].evidence = judged(r, image, spots[from + k], beside);
            spots[from + k].beside = beside;
        }
    }
    uint32_t* claimed = of_frame(r, r.claimed, frame);
    const int32_t* listed = of_frame(r, r.claims, frame);
    for (int from = BLOCK_X * 64; from < claims; from += SPREAD * 64) {
        // All pixels with a bit in the word were claimed, so that others may wipe it too.
        LANES(k, least(64, claims - from)) atomic_and(&claimed[listed[from + k] / 32], (uint32_t)0);
    }
}

// The order in which candidates are looked at: most evidence first, of equals the earlier pixel. `again`: see
// reduce_look_beside.
KERNEL(reduce_order, 128, const Reduction* reduction, int again) {
    SHARED double evidence[128];
    SHARED int32_t pixel[128], rank[128];
    BEGIN_FRAME();
    const Spot* spots = of_frame(r, r.spots, frame);
    int32_t* order = of_frame(r, r.order, frame);
    const uint32_t* counters = of_frame(r, r.counters, frame);
    if (again && !counters[AGAIN]) return;
    const int total = (int)counters[SPOTS];
    for (int from = BLOCK_X * 128; from < total; from += SPREAD * 128) {
        LANES(k, 128) rank[k] = 0;
        for (int other = 0; other < total; other += 128) {
            const int others = least(128, total - other);
            SYNC();
            LANES(k, others) {
                evidence[k] = spots[other + k].evidence;
                pixel[k] = spots[other + k].pixel;
            }
            SYNC();
            LANES(k, least(128, total - from)) {
                const double own = spots[from + k].evidence;
                const int64_t at = spots[from + k].pixel;
                int first = 0;
                for (int n = 0; n < others; ++n) first += before(evidence[n], pixel[n], own, at);
                rank[k] += first;
            }
        }
        LANES(k, least(128, total - from)) order[rank[k]] = from + k;
    }
}

// What the background lets a pixel of a spot be.
#define NO_LIMIT 1e300
struct Limits { double counts, lit; };

// Whether a pixel counted more than the limit, or is one of more than so many that counted in its 3 x 3.
DEVICE bool belongs(const Image& image, int pixel, const Limits& limits) {
    if (image.pixels[pixel] == 0 || image.pixels[pixel] > limits.counts) return image.pixels[pixel] > limits.counts;
    const int row = pixel / image.columns, column = pixel % image.columns;
    int lit = 0;
    for (int y = most(0, row - 1); y < least(image.rows, row + 2); ++y) {
        for (int x = most(0, column - 1); x < least(image.columns, column + 2); ++x) {
            const int j = y * image.columns + x;
            lit += counts(image, j) && image.pixels[j] > 0;
        }
    }
    return lit > limits.lit;
}

// Marks of pixels that belong to a spot, one bit each, and the list of them.
struct Claims { uint32_t* marks; int32_t* listed; int count; };

DEVICE bool is_claimed(const Claims& claims, int pixel) { return claims.marks[pixel / 32] >> pixel % 32 & 1; }
DEVICE void claim(Claims& claims, int at, int pixel) {
    if (at >= MOST_CLAIMS) return;
    atomic_or(&claims.marks[pixel / 32], (uint32_t)1 << pixel % 32);
    claims.listed[at] = pixel;
}

// Whether a pixel beside this one is masked or has no data.
DEVICE bool touches(const Image& image, int pixel) {
    const int row = pixel / image.columns, column = pixel % image.columns;
    for (int y = most(0, row - 1); y < least(image.rows, row + 2); ++y) {
        for (int x = most(0, column - 1); x < least(image.columns, column + 2); ++x) {
            if (!counts(image, y * image.columns + x)) return true;
        }
    }
    return false;
}

// A block's shared memory for one peak after the other.
struct Work {
    uint64_t mask;
    int32_t turn[25];
    int32_t rim;
    int32_t value[128], down[128], across[128];
    double net, gross, sum_down, sum_across;
    // Of a peak whose background is that beside it: what is expected of its 5 x 5.
    double expected[25];
    int32_t low_down, high_down, low_across, high_across, saturated;
};

// Claims what belongs to the spot around `start`, in the order in which one walk through it would: first the disc, then
// around each claimed pixel that belongs, in the order of claims, the 3 x 3 of each neighbour that may lead down from
// it.
DEVICE void claim_spot(const Image& image, int start, const Limits& limits, Claims& claims, Work& work) {
    const int first = claims.count, row = start / image.columns, column = start % image.columns;
    const int side = 2 * SEPARATION + 1;
    ONE_LANE work.mask = 0;
    SYNC();
    LANES(p, side * side) {
        const int down = p / side - SEPARATION, across = p % side - SEPARATION, y = row + down, x = column + across;
        if (down * down + across * across > 15 || y < 0 || y >= image.rows || x < 0 || x >= image.columns) continue;
        if (!is_claimed(claims, y * image.columns + x)) atomic_or(&work.mask, (uint64_t)1 << p);
    }
    SYNC();
    const uint64_t disc = work.mask;
    LANES(p, side * side) {
        if (!(disc >> p & 1)) continue;
        const int y = row + p / side - SEPARATION, x = column + p % side - SEPARATION;
        claim(claims, first + ones(disc & (((uint64_t)1 << p) - 1)), y * image.columns + x);
    }
    claims.count = least(first + ones(disc), MOST_CLAIMS);
    SYNC();
    for (int n = first; n < claims.count && n - first < SPOT_PIXELS;) {
        const int end = least(least(claims.count, first + SPOT_PIXELS), n + 64);
        ONE_LANE work.mask = 0;
        SYNC();
        LANES(k, end - n) {
            const int j = claims.listed[n + k];
            if (counts(image, j) && belongs(image, j, limits)) atomic_or(&work.mask, (uint64_t)1 << k);
        }
        SYNC();
        const uint64_t leading = work.mask;
        SYNC();
        int k;
        EACH(leading, k) {
            const int j = claims.listed[n + k], y0 = j / image.columns, x0 = j % image.columns;
            const double value = image.pixels[j], ceiling = value + 2.0 * sqrt(value);
            ONE_LANE work.mask = 0;
            SYNC();
            LANES(p, 9) {
                const int y = y0 + p / 3 - 1, x = x0 + p % 3 - 1;
                if (y < 0 || y >= image.rows || x < 0 || x >= image.columns) continue;
                const int around = y * image.columns + x;
                if (!counts(image, around) || image.pixels[around] > ceiling) continue;
                if (belongs(image, around, limits)) atomic_or(&work.mask, (uint64_t)1 << p);
            }
            SYNC();
            const uint64_t lower = work.mask;
            // When each pixel of the 5 x 5 is first come to, if it is and is not claimed.
            LANES(p, 25) {
                const int y = y0 + p / 5 - 2, x = x0 + p % 5 - 2;
                work.turn[p] = -1;
                if (y < 0 || y >= image.rows || x < 0 || x >= image.columns) continue;
                if (is_claimed(claims, y * image.columns + x)) continue;
                for (int a = 8; a >= 0; --a) {
                    const int down = p / 5 - 1 - a / 3, across = p % 5 - 1 - a % 3;
                    if (!(lower >> a & 1) || down < -1 || down > 1 || across < -1 || across > 1) continue;
                    work.turn[p] = a * 9 + (down + 1) * 3 + across + 1;
                }
            }
            SYNC();
            LANES(p, 25) {
                if (work.turn[p] < 0) continue;
                int rank = 0;
                for (int q = 0; q < 25; ++q) rank += work.turn[q] >= 0 && work.turn[q] < work.turn[p];
                claim(claims, claims.count + rank, (y0 + p / 5 - 2) * image.columns + x0 + p % 5 - 2);
            }
            int fresh = 0;
            for (int q = 0; q < 25; ++q) fresh += work.turn[q] >= 0;
            claims.count = least(claims.count + fresh, MOST_CLAIMS);
        }
        n = end;
    }
}

// The fields of a peak from what was added up around a pixel.
DEVICE void place_peak(int row, int column, const Work& work, PeakFields& peak) {
    const double net = work.net;
    // Where little is left of much background, noise must not carry the centroid out of the pixels it is made of.
    peak.ss = (float)(row + least(most(work.sum_down / net, (double)work.low_down), (double)work.high_down));
    peak.fs = (float)(column + least(most(work.sum_across / net, (double)work.low_across), (double)work.high_across));
    peak.intensity = (float)net;
    peak.snr = (float)(net / sqrt(work.gross));
    peak.saturated = (uint8_t)work.saturated;
}

// Centroid, net photons and their ratio to noise over the listed pixels within reach of the middle one. False, and the
// peak as it was, when nothing is left over the background, or fewer photons than `fewest`. Between two calls the
// threads have to meet.
DEVICE bool measure(
    const Image& image, int middle, const int32_t* listed, int size, int saturation, double local, int reach,
    double fewest, Work& work, PeakFields& peak
) {
    const int row = middle / image.columns, column = middle % image.columns;
    ONE_LANE {
        work.net = work.gross = work.sum_down = work.sum_across = 0.0;
        work.low_down = work.high_down = work.low_across = work.high_across = work.saturated = 0;
    }
    for (int from = 0; from < size; from += 128) {
        SYNC();
        LANES(k, least(128, size - from)) {
            const int j = listed[from + k], y = j / image.columns - row, x = j % image.columns - column;
            const bool near = y >= -reach && y <= reach && x >= -reach && x <= reach;
            work.value[k] = near && counts(image, j) ? image.pixels[j] : -1;
            work.down[k] = y;
            work.across[k] = x;
        }
        SYNC();
        ONE_LANE for (int k = 0; k < least(128, size - from); ++k) {
            const int value = work.value[k], y = work.down[k], x = work.across[k];
            if (value < 0) continue;
            work.low_down = least(work.low_down, y);
            work.high_down = most(work.high_down, y);
            work.low_across = least(work.low_across, x);
            work.high_across = most(work.high_across, x);
            work.gross += value;
            work.net += value - local;
            work.sum_down += (value - local) * y;
            work.sum_across += (value - local) * x;
            if (value >= saturation) work.saturated = 1;
        }
    }
    SYNC();
    if (work.net <= 0.0 || work.net < fewest) return false;
    place_peak(row, column, work, peak);
    return true;
}

// As measure, over the listed pixels of the 5 x 5, each of which has its own background. False also where most of the
// light around is another peak's.
DEVICE bool measure_beside(
    const Image& image, int middle, const int32_t* listed, int size, int saturation, Work& work, PeakFields& peak
) {
    const int row = middle / image.columns, column = middle % image.columns, side = 2 * WINDOW_REACH + 1;
    ONE_LANE {
        double around = 0.0;
        for (int n = 0; n < side * side; ++n) {
            const int y = row + n / side - WINDOW_REACH, x = column + n % side - WINDOW_REACH;
            if (y < 0 || y >= image.rows || x < 0 || x >= image.columns || !counts(image, y * image.columns + x)) {
                continue;
            }
            around += image.pixels[y * image.columns + x] - work.expected[n];
        }
        work.net = work.gross = work.sum_down = work.sum_across = 0.0;
        work.low_down = work.high_down = work.low_across = work.high_across = work.saturated = 0;
        for (int k = 0; k < size; ++k) {
            const int j = listed[k], y = j / image.columns - row, x = j % image.columns - column;
            if (y < -WINDOW_REACH || y > WINDOW_REACH || x < -WINDOW_REACH || x > WINDOW_REACH) continue;
            if (!counts(image, j)) continue;
            work.low_down = least(work.low_down, y);
            work.high_down = most(work.high_down, y);
            work.low_across = least(work.low_across, x);
            work.high_across = most(work.high_across, x);
            const int value = image.pixels[j];
            const double over = value - work.expected[(y + WINDOW_REACH) * side + x + WINDOW_REACH];
            work.gross += value;
            work.net += over;
            work.sum_down += over * y;
            work.sum_across += over * x;
            if (value >= saturation) work.saturated = 1;
        }
        work.rim = work.net <= 0.0 || work.net < OWN_SHARE * around;
    }
    SYNC();
    if (work.rim) return false;
    place_peak(row, column, work, peak);
    return true;
}

// Claims the spot at a candidate and measures it. False where it makes no peak.
DEVICE bool make_peak(
    const Reduction& r, const Image& image, const Spot& spot, Claims& claims, Work& work, PeakFields& peak
) {
    const int pixel = spot.pixel, row = pixel / r.columns, column = pixel % r.columns;
    const double share = -expm1(-spot.mean);
    const bool beside = spot.beside != 0;
    // On a ring, whose own pixels stand out of the mean, a spot is its disc.
    const Limits limits = {
        beside ? NO_LIMIT : spot.mean + 3.0 * sqrt(spot.mean) + 1.0,
        beside ? NO_LIMIT : 9.0 * share + 3.0 * sqrt(9.0 * share * (1.0 - share)) + 2.0,
    };
    const int32_t* listed = claims.listed + claims.count;
    const int first = claims.count;
    if (beside) {
        SYNC();
        ONE_LANE expect_beside(r, image, pixel, spot.mean, WINDOW_REACH, work.expected);
    }
    claim_spot(image, pixel, limits, claims, work);
    const int size = claims.count - first;
    if (beside) {
        if (!measure_beside(image, pixel, listed, size, r.saturation, work, peak)) return false;
        SYNC();
    } else {
        if (!measure(image, pixel, listed, size, r.saturation, spot.local, WINDOW_REACH, 0.0, work, peak)) return false;
        if (peak.intensity < OWN_SHARE * spot.around) return false;
    }
    // Where a pixel of it that touches what is masked is far brighter, the spot stands there and this is its tail.
    const double bright = TAIL_CONTRAST * image.pixels[pixel];
    ONE_LANE work.rim = 0;
    SYNC();
    LANES(n, size) {
        const int j = listed[n], y = j / r.columns - row, x = j % r.columns - column;
        if (y < -WINDOW_REACH || y > WINDOW_REACH || x < -WINDOW_REACH || x > WINDOW_REACH) continue;
        if (counts(image, j) && image.pixels[j] > bright && touches(image, j)) atomic_max(&work.rim, (int32_t)1);
    }
    SYNC();
    if (work.rim) return false;
    if (!beside && (peak.intensity >= WHOLE_FROM_PHOTONS || size > SMALLEST_SPOT_PIXELS)) {
        const double fewest = WHOLE_KEEPS * peak.intensity;
        measure(image, pixel, listed, size, r.saturation, spot.local, r.columns, fewest, work, peak);
    }
    peak.surprise = (float)spot.evidence;
    return true;
}

// A record of 21 bytes, at any address.
DEVICE void write_peak(uint8_t* record, const PeakFields& peak) {
    const float fields[5] = {peak.fs, peak.ss, peak.intensity, peak.snr, peak.surprise};
    for (int n = 0; n < 5; ++n) {
        const uint32_t bits = bits_of(fields[n]);
        for (int byte = 0; byte < 4; ++byte) record[4 * n + byte] = (uint8_t)(bits >> 8 * byte);
    }
    record[20] = peak.saturated;
}

// One peak for each spot among the candidates. What is one after the other is the spots; the pixels of each are worked
// on together.
KERNEL(reduce_peaks, 128, const Reduction* reduction, int again) {
    SHARED Work work;
    SHARED Spot held[64];
    BEGIN_FRAME();
    const Image image = image_of(r, frame);
    uint32_t* counters = of_frame(r, r.counters, frame);
    const Spot* spots = of_frame(r, r.spots, frame);
    const int32_t* order = of_frame(r, r.order, frame);
    if (again && !counters[AGAIN]) return;
    int32_t* picked = of_frame(r, r.picked, frame);
    uint8_t* peaks = of_result<uint8_t>(r, r.result_peaks, frame);
    Claims claims = {of_frame(r, r.claimed, frame), of_frame(r, r.claims, frame), 0};
    const int total = (int)counters[SPOTS];
    int found = 0;
    double enough = r.peak_threshold;
    bool over = false;
    for (int from = 0; from < total && !over; from += 64) {
        const int size = least(64, total - from);
        SYNC();
        LANES(n, size) held[n] = spots[order[from + n]];
        for (int k = 0; k < size; ++k) {
            // Those that no spot has claimed, from here on.
            ONE_LANE work.mask = 0;
            SYNC();
            LANES(n, size) {
                if (n >= k && !is_claimed(claims, held[n].pixel)) atomic_or(&work.mask, (uint64_t)1 << n);
            }
            SYNC();
            const uint64_t open = work.mask;
            SYNC();
            // A claimed one says what is enough, too; those that are passed over have less evidence than the first.
            if (held[k].evidence > r.peak_threshold) {
                enough = r.peak_threshold - log1p((found + 1) / SURE_PEAKS_FOR_AS_MANY);
            }
            over = held[open ? lowest_bit(open) : k].evidence <= enough || found >= MOST_PEAKS;
            if (!open || over) break;
            k = lowest_bit(open);
            PeakFields peak;
            if (!make_peak(r, image, held[k], claims, work, peak)) continue;
            ONE_LANE {
                write_peak(peaks + found * PEAK_BYTES, peak);
                picked[found] = order[from + k];
            }
            ++found;
        }
    }
    ONE_LANE {
        counters[PEAKS] = found;
        // What is left out of profiles is what was claimed at first.
        if (!again) counters[CLAIMS] = claims.count;
    }
}

// Of each peak its brightest pixel, whether nothing but background is around that, and whether it is the only one in
// the 3 x 3 that counted: see analyzer.kernels describe_peaks.
KERNEL(reduce_peak_places, 64, const Reduction* reduction) {
    BEGIN_FRAME();
    const Image image = image_of(r, frame);
    const double* background = of_frame(r, r.background, frame);
    const uint8_t* peaks = of_result<uint8_t>(r, r.result_peaks, frame);
    int32_t* pixels = of_result<int32_t>(r, r.result_peak_pixels, frame);
    uint8_t* flags = of_result<uint8_t>(r, r.result_peak_flags, frame);
    const int total = (int)of_frame(r, r.counters, frame)[PEAKS];
    for (int from = BLOCK_X * 64; from < total; from += SPREAD * 64) {
        LANES(k, least(64, total - from)) {
            const uint8_t* record = peaks + (from + k) * PEAK_BYTES;
            int at[2];
            for (int axis = 0; axis < 2; ++axis) {
                uint32_t bits = 0;
                for (int byte = 0; byte < 4; ++byte) bits |= (uint32_t)record[4 * axis + byte] << 8 * byte;
                at[axis] = (int)rint((double)float_of(bits));
            }
            int brightest = 0, highest = -2, nonzero = 0;
            for (int p = 0; p < 9; ++p) {
                const int y = at[1] + p / 3 - 1, x = at[0] + p % 3 - 1;
                const bool there = y >= 0 && y < r.rows && x >= 0 && x < r.columns;
                const int j = there ? y * r.columns + x : 0;
                const int value = there && counts(image, j) ? image.pixels[j] : -1;
                nonzero += there && image.inside[j] && image.pixels[j];
                if (value > highest) { highest = value; brightest = j; }
            }
            const int row = brightest / r.columns, column = brightest % r.columns;
            int64_t light = 0;
            int others = 0;
            for (int p = 0; p < 9; ++p) {
                const int y = row + p / 3 - 1, x = column + p % 3 - 1;
                if (p == 4 || y < 0 || y >= r.rows || x < 0 || x >= r.columns) continue;
                if (!counts(image, y * r.columns + x)) continue;
                light += image.pixels[y * r.columns + x];
                others += 1;
            }
            const double expected = background[r.place[brightest] / QUADRANTS] * others;
            pixels[from + k] = brightest;
            flags[from + k] = (uint8_t)((light <= expected + 3.1 * sqrt(expected) + 1.0 ? LONE : 0) |
                                        (nonzero <= 1 ? SINGLE_PIXEL : 0));
        }
    }
}
