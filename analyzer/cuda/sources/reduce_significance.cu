// The significance map, evidence by zone, diffuse light by place, levels, the strongest cells, candidates for peaks:
// see analyzer.kernels map_significance, weigh_cells and list_strongest.
#include "reduce_common.cuh"

// How much a pixel that counted, and the best of 2 x 2 and 3 x 3 around it, stand out; what supports it.
struct Look { double one, wide, support; int64_t nine; };

DEVICE Look look_at(const Reduction& r, const Image& image, int pixel, int64_t value, double mean, double log_mean) {
    Look look = {0.0, 0.0, 0.0, -1};
    // In bright water a pixel below the mean is not the middle of a spot.
    if (mean > 0.3 && value <= mean) return look;
    look.one = surprise(r.log_factorial, value, mean, log_mean);
    if (image.inside[pixel] != 2) return look;
    const uint16_t* up = image.pixels + pixel - image.columns;
    const uint16_t* at = image.pixels + pixel;
    const uint16_t* down = image.pixels + pixel + image.columns;
    const int64_t a0 = up[-1], a1 = up[0], a2 = up[1], a3 = at[-1], a5 = at[1];
    const int64_t a6 = down[-1], a7 = down[0], a8 = down[1];
    const int64_t highest = most(most(most(a0, a1), most(a2, a3)), most(most(a5, a6), most(a7, a8)));
    if (highest == NO_DATA) return look;
    const int64_t four = value + most(most(a0 + a1 + a3, a1 + a2 + a5), most(a3 + a6 + a7, a5 + a7 + a8));
    look.nine = value + a0 + a1 + a2 + a3 + a5 + a6 + a7 + a8;
    look.wide = most(surprise(r.log_factorial, four, 4.0 * mean, log_mean + LOG_4),
                     surprise(r.log_factorial, look.nine, 9.0 * mean, log_mean + LOG_9));
    if (highest <= value) {
        look.support = surprise(r.log_factorial, look.nine - value, 8.0 * mean, log_mean + LOG_8);
    }
    return look;
}

// A block has a row of cells, whose pixels follow each other in the frame.
KERNEL(reduce_significance, 256, const Reduction* reduction) {
    SHARED uint16_t listed[PIECE_WORDS * 64];
    SHARED uint32_t listed_count[1];
    SHARED uint32_t cell_counts[MOST_CELLS_ACROSS], highest[3][MOST_CELLS_ACROSS], levels[SCALES * LEVELS * ZONES];
    BEGIN_FRAME();
    const Image image = image_of(r, frame);
    const uint64_t* lit = r.lit + frame * r.word_stride;
    const double* background = of_frame(r, r.background, frame);
    const double* log_background = of_frame(r, r.log_background, frame);
    const int32_t* most_alone = of_frame(r, r.most_alone, frame);
    const int32_t* most_around = of_frame(r, r.most_around, frame);
    const int32_t* table_row = of_frame(r, r.table_row, frame);
    uint64_t* diffuse = of_frame(r, r.diffuse, frame);
    uint32_t* windows = of_frame(r, r.windows, frame);
    uint32_t* counters = of_frame(r, r.counters, frame);
    int32_t* candidates = of_frame(r, r.candidates, frame);
    const int first_row = BLOCK_X * CELL;
    const int first = first_row * r.columns, end = least(first_row + CELL, r.rows) * r.columns;
    LANES(c, r.cells_across) {
        cell_counts[c] = 0;
        for (int scale = 0; scale < 3; ++scale) highest[scale][c] = 0;
    }
    LANES(k, SCALES * LEVELS * ZONES) levels[k] = 0;
    for (int start = first / 64; start * 64 < end; start += PIECE_WORDS) {
        ONE_LANE listed_count[0] = 0;
        SYNC();
        LANES(k, PIECE_WORDS) {
            const int from = (start + k) * 64;
            if (from < end) {
                uint64_t word = lit[start + k];
                if (from < first) word &= ~(uint64_t)0 << (first - from);
                if (end - from < 64) word &= ~(uint64_t)0 >> (64 - (end - from));
                uint32_t at = word ? atomic_add(&listed_count[0], (uint32_t)ones(word)) : 0;
                int bit;
                EACH(word, bit) listed[at++] = (uint16_t)(k * 64 + bit);
            }
        }
        SYNC();
        LANES(n, (int)listed_count[0]) {
            const int i = start * 64 + listed[n], place = r.place[i], bin = place / QUADRANTS;
            const int64_t value = image.pixels[i];
            const int cell = (i % r.columns) / CELL;
            atomic_add(&cell_counts[cell], (uint32_t)value);
            const Look look = look_at(r, image, i, value, background[bin], log_background[bin]);
            const bool alone = image.inside[i] != 2 || most_around[bin] < 0;
            if (alone ? value <= most_alone[bin] : look.nine >= 0 && look.nine <= most_around[bin]) {
                atomic_add(&diffuse[2 * place], (uint64_t)value);
                atomic_add(&diffuse[2 * place + 1], (uint64_t)(value * value));
            }
            if (look.nine >= 0 && table_row[bin] < TABLE_ROWS) {
                atomic_add(&windows[bin * TABLE_COUNTS + least(look.nine, (int64_t)TABLE_COUNTS - 1)], (uint32_t)1);
            }
            // Bits of floats that are not negative are in the order of the floats.
            if (look.one > 0.0) atomic_max(&highest[0][cell], bits_of((float)look.one));
            if (look.wide > 0.0) atomic_max(&highest[1][cell], bits_of((float)look.wide));
            if (look.support > 0.0) atomic_max(&highest[2][cell], bits_of((float)look.support));
            if (most(look.one, look.wide) > CANDIDATE_NATS) {
                const uint32_t at = atomic_add(&counters[CANDIDATES], (uint32_t)1);
                if (at < MOST_CANDIDATES) candidates[at] = i;
            }
        }
        SYNC();
    }
    float* significance = of_frame(r, r.significance, frame);
    double* strength = of_frame(r, r.strength, frame);
    const int cells = r.cells_down * r.cells_across;
    LANES(c, r.cells_across) {
        const int cell = BLOCK_X * r.cells_across + c;
        const int64_t counted = cell_counts[c];
        const double expected = background[r.cell_bin[cell]] * r.cell_pixels[cell];
        const bool excess = counted > 1 && counted > expected;
        const double log_expected = log_background[r.cell_bin[cell]] + r.log_cell_pixels[cell];
        float value = excess ? (float)surprise(r.log_factorial, counted, expected, log_expected) : 0.0f;
        double strong = 1.0;
        for (int scale = 0; scale < SCALES; ++scale) {
            if (scale) value = float_of(highest[scale - 1][c]);
            significance[scale * cells + cell] = value;
            strong *= 1.0 + value;
            for (int level = 0; level < LEVELS && value >= r.levels[level]; ++level) {
                atomic_add(&levels[(r.cell_zone[cell] * SCALES + scale) * LEVELS + level], (uint32_t)1);
            }
        }
        strength[cell] = strong;
    }
    // 32 cells a word, rows of cells padded to whole words.
    uint32_t* lit_cells = of_result<uint32_t>(r, r.result_lit_cells, frame) + BLOCK_X * r.lit_cell_words;
    LANES(w, r.lit_cell_words) {
        uint32_t word = 0;
        const int cells_here = least(32, r.cells_across - 32 * w);
        for (int c = 0; c < cells_here; ++c) word |= (uint32_t)(highest[0][32 * w + c] > 0) << c;
        lit_cells[w] = word;
    }
    SYNC();
    uint32_t* all_levels = of_frame(r, r.level_counts, frame);
    LANES(k, SCALES * LEVELS * ZONES) if (levels[k]) atomic_add(&all_levels[k], levels[k]);
}

// What the windows of a zone say together, and its levels.
KERNEL(reduce_evidence, 128, const Reduction* reduction) {
    SHARED double said[RATES][TABLE_COUNTS];
    BEGIN_FRAME();
    const int zone = BLOCK_X;
    const uint32_t* windows = of_frame(r, r.windows, frame);
    const int32_t* table_row = of_frame(r, r.table_row, frame);
    float* out = of_result<float>(r, r.result_zones, frame) + zone * ZONE_COLUMNS;
    LANES(n, TABLE_COUNTS) {
        for (int rate = 0; rate < RATES; ++rate) said[rate][n] = 0.0;
        for (int bin = r.zone_first[zone]; bin < r.zone_first[zone + 1]; ++bin) {
            const uint32_t times = windows[bin * TABLE_COUNTS + n];
            if (!times) continue;
            for (int rate = 0; rate < RATES; ++rate) {
                const float each = r.evidence_table[(rate * TABLE_ROWS + table_row[bin]) * TABLE_COUNTS + n];
                said[rate][n] += (double)each * times;
            }
        }
    }
    SYNC();
    LANES(rate, RATES) {
        double sum = 0.0;
        for (int n = 0; n < TABLE_COUNTS; ++n) sum += said[rate][n];
        out[LIGHT + rate] = (float)sum;
    }
    const uint32_t* levels = of_frame(r, r.level_counts, frame) + zone * SCALES * LEVELS;
    LANES(k, SCALES * LEVELS) out[FIRST_LEVEL + k] = (float)levels[k];
}

// The strongest cells. Each lane of many finds the strongest of its share; whatever is no weaker than the weakest of as
// many of those as are asked for is looked at.
KERNEL(reduce_strongest, 1024, const Reduction* reduction) {
    SHARED double best[SHARES_OF_CELLS];
    SHARED int32_t best_cell[SHARES_OF_CELLS];
    SHARED double weakest[1];
    SHARED int32_t weakest_cell[1], chosen[STRONGEST];
    SHARED uint32_t counted[2];
    BEGIN_FRAME();
    const double* strength = of_frame(r, r.strength, frame);
    const float* significance = of_frame(r, r.significance, frame);
    const double* background = of_frame(r, r.background, frame);
    int32_t* listed = of_frame(r, r.strong_cells, frame);
    float* out = of_result<float>(r, r.result_cells, frame);
    const int cells = r.cells_down * r.cells_across;
    ONE_LANE { weakest[0] = 1.0; weakest_cell[0] = -1; counted[0] = 0; counted[1] = 0; }
    LANES(k, SHARES_OF_CELLS) {
        double value = 0.0;
        int which = cells;
        for (int cell = k; cell < cells; cell += SHARES_OF_CELLS) {
            if (strength[cell] > value) { value = strength[cell]; which = cell; }
        }
        best[k] = value;
        best_cell[k] = which;
    }
    LANES(k, STRONGEST * CELL_COLUMNS) out[k] = 0.0f;
    SYNC();
    LANES(k, least(cells, SHARES_OF_CELLS)) {
        int rank = 0;
        for (int other = 0; other < least(cells, SHARES_OF_CELLS); ++other) {
            rank += before(best[other], best_cell[other], best[k], best_cell[k]);
        }
        if (rank == STRONGEST - 1 && best[k] > 1.0) { weakest[0] = best[k]; weakest_cell[0] = best_cell[k]; }
    }
    SYNC();
    LANES(cell, cells) {
        const double value = strength[cell];
        if (value > 1.0 && !before(weakest[0], weakest_cell[0], value, cell)) {
            listed[atomic_add(&counted[0], (uint32_t)1)] = cell;
        }
    }
    SYNC();
    LANES(k, (int)counted[0]) {
        const int cell = listed[k];
        const double value = strength[cell];
        int rank = 0;
        for (int other = 0; other < (int)counted[0]; ++other) {
            rank += before(strength[listed[other]], listed[other], value, cell);
        }
        if (rank < STRONGEST) { chosen[rank] = cell; atomic_add(&counted[1], (uint32_t)1); }
    }
    SYNC();
    const int found = (int)counted[1];
    LANES(n, found) {
        const int cell = chosen[n], row = cell / r.cells_across, column = cell % r.cells_across;
        float* each = out + n * CELL_COLUMNS;
        for (int scale = 0; scale < SCALES; ++scale) each[scale] = significance[scale * cells + cell];
        const double expected = background[r.cell_bin[cell]] * r.cell_pixels[cell];
        const double valid = r.cell_valid[cell];
        int64_t nearest = 0;
        for (int other = 0; other < found; ++other) {
            if (other == n) continue;
            const int64_t down = chosen[other] / r.cells_across - row, across = chosen[other] % r.cells_across - column;
            const int64_t apart = down * down + across * across;
            nearest = nearest == 0 ? apart : least(nearest, apart);
        }
        each[SCALES] = (float)r.cell_radius_m[cell];
        each[SCALES + 1] = r.cell_valid[cell];
        each[SCALES + 2] = (float)(expected / most(valid * (CELL * CELL), 1.0));
        each[SCALES + 3] = (float)sqrt((double)nearest);
    }
}

// The list of candidates when it is full, as it comes about pixel after pixel: whenever it is, those that stand out
// more than half of them are kept, and more is asked for from then on.
KERNEL(reduce_overflow, 256, const Reduction* reduction) {
    SHARED uint16_t listed[OVERFLOW_WORDS * 64];
    SHARED double best[OVERFLOW_WORDS * 64];
    SHARED uint32_t offset[OVERFLOW_WORDS + 1], histogram[256];
    SHARED uint64_t flags[4], selected[2];
    SHARED double best_of_cut[256];
    SHARED int32_t pixel_of_cut[256];
    SHARED uint32_t rank[1], kept[1], next[1];
    BEGIN_FRAME();
    uint32_t* counters = of_frame(r, r.counters, frame);
    if (counters[CANDIDATES] < MOST_CANDIDATES) return;
    const Image image = image_of(r, frame);
    const uint64_t* lit = r.lit + frame * r.word_stride;
    const double* background = of_frame(r, r.background, frame);
    const double* log_background = of_frame(r, r.log_background, frame);
    int32_t* candidates = of_frame(r, r.candidates, frame);
    double* scores = of_frame(r, r.scores, frame);
    double threshold = CANDIDATE_NATS;
    ONE_LANE kept[0] = 0;
    for (int start = 0; start < r.words; start += OVERFLOW_WORDS) {
        const int words = least(OVERFLOW_WORDS, r.words - start);
        LANES(k, words) offset[k + 1] = ones(word_of(r, lit, start + k));
        ONE_LANE { offset[0] = 0; next[0] = 0; }
        SYNC();
        ONE_LANE for (int k = 0; k < words; ++k) offset[k + 1] += offset[k];
        SYNC();
        LANES(k, words) {
            uint32_t at = offset[k];
            int bit;
            EACH(word_of(r, lit, start + k), bit) listed[at++] = (uint16_t)(k * 64 + bit);
        }
        SYNC();
        const int total = (int)offset[words];
        LANES(n, total) {
            const int i = start * 64 + listed[n], bin = r.place[i] / QUADRANTS;
            const Look look = look_at(r, image, i, image.pixels[i], background[bin], log_background[bin]);
            best[n] = most(look.one, look.wide);
        }
        SYNC();
        bool more = true;
        while (more) {
            ONE_LANE {
                uint32_t n = next[0], size = kept[0];
                for (; n < (uint32_t)total && size < MOST_CANDIDATES; ++n) {
                    if (best[n] <= threshold) continue;
                    const int i = start * 64 + listed[n];
                    candidates[size] = i;
                    // Ties go to the brighter pixel.
                    scores[size++] = -(best[n] + 1e-3 * least((int)image.pixels[i], 1000));
                }
                next[0] = n;
                kept[0] = size;
            }
            SYNC();
            more = kept[0] == MOST_CANDIDATES;
            SYNC();
            if (!more) continue;
            // The two in the middle, a byte of their ordered bits after the other, the highest first.
            for (int half = 0; half < 2; ++half) {
                ONE_LANE { selected[half] = 0; rank[0] = MOST_CANDIDATES / 2 - 1 + half; }
                for (int shift = 56; shift >= 0; shift -= 8) {
                    LANES(k, 256) histogram[k] = 0;
                    SYNC();
                    LANES(n, MOST_CANDIDATES) {
                        const uint64_t order = order_of(scores[n]);
                        if (shift == 56 || (order ^ selected[half]) >> (shift + 8) == 0) {
                            atomic_add(&histogram[order >> shift & 255], (uint32_t)1);
                        }
                    }
                    SYNC();
                    ONE_LANE {
                        uint32_t before_it = 0;
                        int digit = 0;
                        while (before_it + histogram[digit] <= rank[0]) before_it += histogram[digit++];
                        rank[0] -= before_it;
                        selected[half] |= (uint64_t)digit << shift;
                    }
                    SYNC();
                }
            }
            threshold = -((value_of(selected[0]) + value_of(selected[1])) / 2);
            ONE_LANE kept[0] = 0;
            for (int from = 0; from < MOST_CANDIDATES; from += 256) {
                SYNC();
                LANES(k, 4) flags[k] = 0;
                SYNC();
                LANES(n, 256) {
                    best_of_cut[n] = scores[from + n];
                    pixel_of_cut[n] = candidates[from + n];
                    if (-best_of_cut[n] > threshold) atomic_or(&flags[n / 64], (uint64_t)1 << n % 64);
                }
                SYNC();
                LANES(n, 256) {
                    if (!(flags[n / 64] >> n % 64 & 1)) continue;
                    uint32_t at = kept[0] + ones(flags[n / 64] & (((uint64_t)1 << n % 64) - 1));
                    for (int k = 0; k < n / 64; ++k) at += ones(flags[k]);
                    candidates[at] = pixel_of_cut[n];
                    scores[at] = best_of_cut[n];
                }
                SYNC();
                ONE_LANE for (int k = 0; k < 4; ++k) kept[0] += ones(flags[k]);
            }
            SYNC();
        }
    }
    SYNC();
    ONE_LANE counters[CANDIDATES] = kept[0];
}
