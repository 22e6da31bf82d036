// Where a pixel is in reciprocal space: a flat detector at a right angle to the beam.

const EV_ANGSTROM = 12398.42;
const SPACINGS = [100, 50, 30, 20, 15, 10, 8, 7, 6, 5, 4, 3.5, 3, 2.5, 2.2, 2, 1.8, 1.6, 1.5, 1.4, 1.3, 1.2, 1.1, 1, 0.9, 0.8];

// The beam as a pixel index (0 in the middle of the first pixel), where the header counts from the detector's corner.
export function centre(geometry) {
  if (!geometry || geometry.beam_center_x_px == null || geometry.beam_center_y_px == null) return null;
  return [geometry.beam_center_x_px - 0.5, geometry.beam_center_y_px - 0.5];
}

const known = geometry =>
  centre(geometry) && geometry.camera_length_m > 0 && geometry.photon_energy_eV > 0 && geometry.pixel_size_m > 0;

// q in 1/angstrom and d in angstrom of a pixel, or null.
export function resolutionAt(geometry, fs, ss) {
  if (!known(geometry)) return null;
  const [x, y] = centre(geometry), radius_m = Math.hypot(fs - x, ss - y) * geometry.pixel_size_m;
  const q = 4 * Math.PI * geometry.photon_energy_eV / EV_ANGSTROM * Math.sin(Math.atan2(radius_m, geometry.camera_length_m) / 2);
  return { q, d: 2 * Math.PI / q };
}

// Radius in pixels at which a spacing in angstrom scatters, or null beyond 90 degrees.
export function radiusOf(geometry, d) {
  const sine = EV_ANGSTROM / geometry.photon_energy_eV / (2 * d);
  if (sine >= Math.SQRT1_2) return null;
  return geometry.camera_length_m * Math.tan(2 * Math.asin(sine)) / geometry.pixel_size_m;
}

// Rings of round spacings, no two nearer than `apart` pixels, none beyond `farthest`.
export function rings(geometry, farthest, apart) {
  if (!known(geometry)) return [];
  const found = [];
  let last = 0;
  for (const d of SPACINGS) {
    const radius = radiusOf(geometry, d);
    if (radius == null || radius > farthest) break;
    if (radius - last >= apart) {
      found.push({ d, radius });
      last = radius;
    }
  }
  return found;
}
