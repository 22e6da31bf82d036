// Counts to colours. Masked pixels have a colour of their own.

const VIRIDIS = ["440154", "472c7a", "3b518b", "2c718e", "21908d", "27ad81", "5cc863", "aadc32", "fde725"];
const CIVIDIS = ["00224e", "123570", "3b496c", "575d6d", "707173", "8a8678", "a59c74", "c3b369", "fee838"];
const GREY = ["ffffff", "000000"];

// `marks`: colours of what is drawn over the image; `mask`: of pixels without a value.
export const MAPS = {
  Viridis: { stops: VIRIDIS, mask: [112, 118, 128], marks: { peak: "#ffffff", saturated: "#ff9e3d", ring: "#8fd3ff", halo: "#000000b0" } },
  Cividis: { stops: CIVIDIS, mask: [150, 60, 40], marks: { peak: "#ffffff", saturated: "#ff9e3d", ring: "#9fd8ff", halo: "#000000b0" } },
  Grey: { stops: GREY, mask: [150, 176, 205], marks: { peak: "#0060a8", saturated: "#c04a00", ring: "#8a5a00", halo: "#ffffffc0" } },
};

const channels = hex => [0, 2, 4].map(at => parseInt(hex.slice(at, at + 2), 16));

export function colourAt(name, share) {
  const stops = MAPS[name].stops, at = Math.max(0, Math.min(share, 1)) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2), a = channels(stops[low]), b = channels(stops[low + 1]);
  return a.map((value, n) => Math.round(value + (at - low) * (b[n] - value)));
}

export const css = rgb => `rgb(${rgb.join()})`;

// The share of the colour scale at which a count lies.
export const shareOf = (value, most, log) => (log ? Math.log1p(value) / Math.log1p(most) : value / most);

// A table of 65536 pixels as ImageData has them, by count; the last one is masked.
export function table(name, most, log, showMask) {
  const steps = Array.from({ length: 256 }, (_, n) => colourAt(name, n / 255));
  const packed = ([r, g, b]) => (255 << 24 | b << 16 | g << 8 | r) >>> 0;
  const colours = steps.map(packed), lookup = new Uint32Array(65536).fill(colours[255]);
  for (let value = 0; value < Math.min(65535, most); value++) lookup[value] = colours[Math.round(255 * shareOf(value, most, log))];
  lookup[65535] = showMask ? packed(MAPS[name].mask) : colours[0];
  return lookup;
}
