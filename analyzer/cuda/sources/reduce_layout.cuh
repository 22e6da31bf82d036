// Written by python -m analyzer.cuda.layout: change that, not this.
#pragma once
#define AZIMUTH_CLASSES 3
#define QUADRANTS 4
#define CELL 8
#define NO_DATA 65535
#define MOST_COUNTS 65534
#define SHARED_BINS 2304
#define SHARED_RADII 768
#define COUNTED_WORDS 1024
#define CLEARED_WORDS 2048
#define SPREAD 32
#define PIECE_WORDS 128
#define OVERFLOW_WORDS 64
#define MOST_CELLS_ACROSS 1024
#define SHARES_OF_CELLS 1024
#define PARTS 64
#define MOST_CANDIDATES 65536
#define MOST_CLAIMS 1048576
#define MOST_PEAKS 2048
#define PEAK_BYTES 21
#define LONE 1
#define SINGLE_PIXEL 2
#define KEPT_WHOLE 2147483647
#define SMOOTHING_PHOTONS 25.0
#define LOG_4 1.3862943611198906
#define LOG_8 2.0794415416798357
#define LOG_9 2.1972245773362196
#define LOG_LOWEST (-11.512925464970229)
#define LOG_STEP 0.025
#define RATES 2
#define TABLE_ROWS 600
#define TABLE_COUNTS 128
#define ALONE_MEANS 512
#define AROUND_MEANS 31
#define FAINTEST_BRIGHT 0.3
#define CANDIDATE_NATS 9.0
#define ZONES 48
#define ZONE_COLUMNS 38
#define LIGHT 4
#define FIRST_LEVEL 6
#define SCALES 4
#define LEVELS 8
#define STRONGEST 64
#define CELL_COLUMNS 8
#define RING_INNER 5
#define RING_OUTER 7
#define RING_PRIOR_PIXELS 50.0
#define REACH 3
#define DISTANCES 10
#define SHAPES 2
#define SPOT_PHOTONS 6
#define DISCS 3
#define CHANCES 2
#define LOG_WEIGHT (-2.5902671654458267)
#define DISC_LOG_WEIGHT (-4.0943445622221)
#define EXPONENTS 18
#define NEGLIGIBLE 45.0
#define WINDOW_REACH 2
#define SEPARATION 3
#define SPOT_PIXELS 1024
#define OWN_SHARE 0.2
#define TAIL_CONTRAST 3.0
#define WHOLE_FROM_PHOTONS 30.0
#define WHOLE_KEEPS 0.9
#define SMALLEST_SPOT_PIXELS 45
#define SURE_PEAKS_FOR_AS_MANY 6.0
#define PROFILE_KNOWS 0.1
#define PANEL_NUMBERS 14
#define ARC_NEAREST_PX 5
#define ARC_STEPS 12
#define ARC_STEPS_A_PART 3
#define ARC_PARTS 8
#define ARC_ROWS 3
#define ARC_BINS 14
#define ARC_BINS_A_PIXEL 2
#define ARC_FEWEST_PARTS 3
#define ARC_FEWEST_OF_PART 4.5
#define ARC_FEWEST_OF_POINT 6.0
#define ARC_OTHER_SPOT 4.0
#define ARC_OTHER_PHOTONS 3.0
#define ARC_STANDS_OUT 3.0
#define ARC_STANDS_OUT_PHOTONS 3.0
#define ARC_LEAST_RADIUS_PX 6.0
#define CANDIDATES 0
#define SPOTS 1
#define PEAKS 2
#define CLAIMS 3
#define AGAIN 4
#ifdef CXLS_HOST
#define CONSTANT static const
#else
#define CONSTANT static __constant__ const
#endif
CONSTANT int DISTANCE_OF[49] = {
    9, 8, 7, 6, 7, 8, 9, 8, 5, 4, 3, 4, 5, 8, 7, 4, 2, 1, 2, 4, 7, 6, 3, 1, 0, 1, 3, 6, 7, 4, 2, 1, 2, 4, 7, 8, 5, 4, 3,
    4, 5, 8, 9, 8, 7, 6, 7, 8, 9
};
CONSTANT double SHARES[20] = {
    0.5222156317056357, 0.10006477108182628, 0.01917399212841341, 0.00014985602694376482, 2.8714783933952444e-05,
    4.30029808529916e-08, 1.919047619498988e-10, 3.677198633696463e-11, 5.506936872699985e-14, 7.05215152958239e-20,
    0.1962347916741948, 0.10621701252188166, 0.05749262734105257, 0.016460955246423267, 0.00890990570333913,
    0.0013808104328136925, 0.0006893092937581615, 0.00037310597810871337, 5.782200668235955e-05, 2.421320390780928e-06
};
CONSTANT double PHOTONS[6] = {
    3.0, 4.754679577383341, 7.535659294528742, 11.943215116604918, 18.928720334405796, 30.0
};
CONSTANT int IN_DISC[30] = {
    1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0
};
CONSTANT double LIT_CHANCES[2] = {
    0.5, 0.9
};
struct Spot {
    double evidence;
    double mean;
    double local;
    double around;
    int32_t pixel;
    int32_t beside;
};
struct PeakFields {
    float fs;
    float ss;
    float intensity;
    float snr;
    float surprise;
    uint8_t saturated;
};
struct Header {
    int64_t total_photons;
    int64_t counting_pixels;
    int64_t saturated_pixels;
    int64_t at_limit;
    double background_photons;
    double pairs;
    int32_t peaks;
    int32_t candidates;
    int32_t claims;
    int32_t spots;
};
// Pointers are addresses on the device; of a frame's buffers and results, those of the first frame's.
struct Reduction {
    const uint8_t* inside;
    const uint16_t* place;
    const double* bin_pixels;
    const double* place_pixels;
    const int32_t* cell_bin;
    const uint8_t* cell_zone;
    const double* cell_pixels;
    const double* log_cell_pixels;
    const float* cell_valid;
    const double* cell_radius_m;
    const int32_t* zone_first;
    const int32_t* sector_first;
    const int32_t* sector_places;
    const double* log_factorial;
    const float* evidence_table;
    const double* alone_means;
    const double* around_means;
    const double* levels;
    const double* panels;
    const uint16_t* pixels;
    const uint64_t* lit;
    const uint64_t* blank;
    const int32_t* faults;
    uint64_t* seen;
    double* expected;
    uint32_t* counters;
    uint64_t* totals;
    uint64_t* photons;
    uint32_t* occupied;
    uint32_t* lost;
    uint64_t* clipped;
    uint32_t* outliers;
    uint64_t* diffuse;
    uint32_t* windows;
    uint32_t* level_counts;
    uint64_t* spot_photons;
    uint32_t* spot_pixels;
    uint32_t* left_out;
    uint32_t* claimed;
    double* background;
    double* log_background;
    double* kept_mean;
    double* kept_counts;
    double* kept_area;
    double* pairs;
    double* diffuse_pixels;
    double* sums_counts;
    double* sums_area;
    uint32_t* most_kept;
    int32_t* most_alone;
    int32_t* most_around;
    int32_t* table_row;
    float* significance;
    double* strength;
    int32_t* strong_cells;
    int32_t* candidates;
    double* scores;
    Spot* spots;
    int32_t* order;
    int32_t* claims;
    int32_t* picked;
    uint64_t* zeroed;
    uint8_t* results;
    int64_t pixel_stride;
    int64_t word_stride;
    int64_t slab_bytes;
    int64_t result_bytes;
    int64_t zeroed_words;
    double peak_threshold;
    double lowest_evidence;
    int32_t rows;
    int32_t columns;
    int32_t count;
    int32_t words;
    int32_t bins;
    int32_t radial_bins;
    int32_t places;
    int32_t sector_bins;
    int32_t cells_down;
    int32_t cells_across;
    int32_t lit_cell_words;
    int32_t saturation;
    int32_t panels_here;
    int32_t result_photons;
    int32_t result_pixels;
    int32_t result_background;
    int32_t result_zones;
    int32_t result_cells;
    int32_t result_profile;
    int32_t result_lit_cells;
    int32_t result_peak_pixels;
    int32_t result_peak_flags;
    int32_t result_peaks;
};
