// What a pixel counts by its own radius, from the arcs beside it: see analyzer.arcs, whose arithmetic this is, step by
// step.
#pragma once
#include "reduce_common.cuh"

struct Place { double x, y; };

// x and y from the beam of a pixel, by the panel that another one lies on.
DEVICE Place position(const double* panel, int row, int column) {
    const double i = column - panel[2], j = row - panel[0];
    const double x = panel[4] + i * panel[7] + j * panel[10];
    const double y = panel[5] + i * panel[8] + j * panel[11];
    const double z = panel[6] + i * panel[9] + j * panel[12];
    const double along = 1.0 / (1.0 + z * panel[13]);
    return Place{x * along, y * along};
}

// The first panel that holds a pixel; the last one holds all.
DEVICE const double* panel_of(const Reduction& r, int row, int column) {
    for (int p = 0; p < r.panels_here - 1; ++p) {
        const double* panel = r.panels + p * PANEL_NUMBERS;
        if (panel[0] <= row && row < panel[1] && panel[2] <= column && column < panel[3]) return panel;
    }
    return r.panels + (r.panels_here - 1) * PANEL_NUMBERS;
}

// Of parts of the arcs, and of all that hold no other spot, by bins of radius: photons, pixels, their radii added up.
struct Arcs { double parts[ARC_PARTS][ARC_BINS + 1][3], profile[ARC_BINS][3]; };

DEVICE bool count_arcs(const Image& image, int row, int column, const double* panel, Arcs& arcs) {
    const Place middle = position(panel, row, column);
    const Place next_fs = position(panel, row, column + 1), next_ss = position(panel, row + 1, column);
    const double x0 = middle.x, y0 = middle.y;
    const double fs_x = next_fs.x - x0, fs_y = next_fs.y - y0, ss_x = next_ss.x - x0, ss_y = next_ss.y - y0;
    const double area = fs_x * ss_y - fs_y * ss_x, radius = sqrt(x0 * x0 + y0 * y0);
    if (radius < ARC_LEAST_RADIUS_PX || area == 0.0) return false;
    for (int part = 0; part < ARC_PARTS; ++part) {
        for (int b = 0; b <= ARC_BINS; ++b) for (int n = 0; n < 3; ++n) arcs.parts[part][b][n] = 0.0;
    }
    const double of_area = 1.0 / area, of_radius = 1.0 / radius;
    ROLLED
    for (int step = 0; step < ARC_STEPS; ++step) {
        const double t = (ARC_NEAREST_PX + step) * 0.5 * of_radius, scale = 1.0 / (1.0 + t * t);
        const double cosine = (1.0 - t * t) * scale;
        double sine = 2.0 * t * scale;
        ROLLED
        for (int side = 0; side < 2; ++side) {
            const int part = side * (ARC_PARTS / 2) + step / ARC_STEPS_A_PART;
            if (side) sine = -sine;
            const double out_x = (x0 * cosine - y0 * sine) * of_radius, out_y = (y0 * cosine + x0 * sine) * of_radius;
            ROLLED
            for (int k = -ARC_ROWS; k <= ARC_ROWS; ++k) {
                const double x = out_x * (radius + k) - x0, y = out_y * (radius + k) - y0;
                const double across = floor((x * ss_y - y * ss_x) * of_area + 0.5);
                const double down = floor((y * fs_x - x * fs_y) * of_area + 0.5);
                const double at_fs = column + across, at_ss = row + down;
                if (at_fs < panel[2] || at_fs >= panel[3] || at_ss < panel[0] || at_ss >= panel[1]) continue;
                const int j = (int)at_ss * image.columns + (int)at_fs;
                if (!counts(image, j)) continue;
                const double beyond =
                    k + out_x * (across * fs_x + down * ss_x - x) + out_y * (across * fs_y + down * ss_y - y);
                const double from_first = (beyond + (ARC_ROWS + 0.5)) * ARC_BINS_A_PIXEL;
                if (from_first < 0.0 || from_first >= ARC_BINS) continue;
                const int b = (int)from_first;
                const double photons = image.pixels[j];
                arcs.parts[part][b][0] += photons;
                arcs.parts[part][b][1] += 1.0;
                arcs.parts[part][b][2] += beyond;
                if (k < -1 || k > 1) continue;
                arcs.parts[part][ARC_BINS][0] += photons;
                arcs.parts[part][ARC_BINS][1] += 1.0;
            }
        }
    }
    return true;
}

DEVICE bool sum_parts(Arcs& arcs) {
    // No part has so many.
    double lowest = 1e300, second = 1e300;
    int known = 0;
    for (int part = 0; part < ARC_PARTS; ++part) {
        const double area = arcs.parts[part][ARC_BINS][1];
        if (area < ARC_FEWEST_OF_PART) continue;
        ++known;
        const double mean = arcs.parts[part][ARC_BINS][0] / area;
        if (mean < lowest) {
            second = lowest;
            lowest = mean;
        } else if (mean < second) {
            second = mean;
        }
    }
    if (known < ARC_FEWEST_PARTS) return false;
    for (int b = 0; b < ARC_BINS; ++b) for (int n = 0; n < 3; ++n) arcs.profile[b][n] = 0.0;
    for (int part = 0; part < ARC_PARTS; ++part) {
        const double area = arcs.parts[part][ARC_BINS][1], share = second * area;
        if (area < ARC_FEWEST_OF_PART) continue;
        if (arcs.parts[part][ARC_BINS][0] > 2.0 * share + ARC_OTHER_SPOT * sqrt(share) + ARC_OTHER_PHOTONS) continue;
        for (int b = 0; b < ARC_BINS; ++b) for (int n = 0; n < 3; ++n) arcs.profile[b][n] += arcs.parts[part][b][n];
    }
    return true;
}

DEVICE bool row_stands_out(const Arcs& arcs, double mean) {
    for (int first = 0; first < ARC_BINS; first += ARC_BINS_A_PIXEL) {
        double photons = 0.0, area = 0.0;
        for (int b = first; b < first + ARC_BINS_A_PIXEL; ++b) {
            photons += arcs.profile[b][0];
            area += arcs.profile[b][1];
        }
        if (photons - mean * area > ARC_STANDS_OUT * sqrt(mean * area) + ARC_STANDS_OUT_PHOTONS) return true;
    }
    return false;
}

DEVICE int list_points(Arcs& arcs) {
    int points = 0;
    double photons = 0.0, area = 0.0, radii = 0.0;
    for (int b = 0; b < ARC_BINS; ++b) {
        photons += arcs.profile[b][0];
        area += arcs.profile[b][1];
        radii += arcs.profile[b][2];
        if (area < ARC_FEWEST_OF_POINT) continue;
        arcs.profile[points][0] = photons / area;
        arcs.profile[points][1] = radii / area;
        ++points;
        photons = area = radii = 0.0;
    }
    return points;
}

// What is expected of each pixel within `reach` of a middle one, row by row. False, and nothing said, where no row of
// the profile stands out of the mean.
DEVICE bool expect_beside(const Reduction& r, const Image& image, int middle, double mean, int reach, double* expected) {
    Arcs arcs;
    const int row = middle / image.columns, column = middle % image.columns, side = 2 * reach + 1;
    const double* panel = panel_of(r, row, column);
    if (!count_arcs(image, row, column, panel, arcs) || !sum_parts(arcs) || !row_stands_out(arcs, mean)) return false;
    const int points = list_points(arcs);
    const Place own = position(panel, row, column);
    const double radius = sqrt(own.x * own.x + own.y * own.y);
    for (int n = 0; n < side * side; ++n) {
        const Place at = position(panel, row + n / side - reach, column + n % side - reach);
        const double beyond = sqrt(at.x * at.x + at.y * at.y) - radius;
        int p = 0;
        while (p < points - 1 && arcs.profile[p][1] < beyond) ++p;
        double value = arcs.profile[p][0];
        if (p > 0 && arcs.profile[p][1] >= beyond) {
            const double share = (beyond - arcs.profile[p - 1][1]) / (arcs.profile[p][1] - arcs.profile[p - 1][1]);
            value = arcs.profile[p - 1][0] * (1.0 - share) + arcs.profile[p][0] * share;
        }
        expected[n] = most(mean, value);
    }
    return true;
}
