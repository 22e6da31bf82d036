// The header of the page and the numbers beside the image.

import { $, element, refill, say, sayQuantity } from "./dom.js";
import { clock, count, left, milliseconds, percent, rate, withSigma } from "./format.js";

const SOURCES = { bragg: ["Bragg spots", "hits"], all: ["water", "frames"], misses: ["water", "misses"] };

function header(status) {
  const run = status.run, series = status.series_id == null ? "no series yet" : `series ${status.series_id}`;
  say("runName", run ? `Run ${run.number ?? `since ${clock(run.began_at, false)}`}${run.sample ? ` · ${run.sample}` : ""}` : "");
  say("seriesName", `${series} · model ${status.bundle}${status.mask ? ` · mask ${status.mask}${status.mask_unfit ? " (not used: another shape)" : ""}` : ""}`);
  $("identity").title = run?.notes ? run.notes : "";
  document.title = `${percent(status.hit_ratio["100"], 0)} hits${run?.number == null ? "" : ` · run ${run.number}`} · CXLS`;
}

function rates(status) {
  const hits = status.hit_ratio, speed = status.rates ?? {};
  say("hitRate", percent(hits["100"]));
  say("hitRateMore", `last 1000: ${percent(hits["1000"])} · ${rate(speed.hits_hz)} hits/s`);
  sayQuantity("speed", [rate(speed.analysed_hz), "/s"]);
  say("speedMore", `${milliseconds(speed.latency_p99_s)} p99 · ${count(status.queue_frames)} waiting`);
}

// Of a reason for both the part that speaks of this one; one for everything stands as it is.
function why(id, value, reason, quantity) {
  const hidden = value == null && reason;
  say(id, hidden ? reason.split("; ").find(part => part.startsWith(`${quantity} known`)) ?? reason : "from the data alone");
  $(id).classList.toggle("reason", Boolean(hidden));
}

function parameters(status) {
  const found = status.estimate ?? {}, given = status.header ?? {}, wrong = new Set((found.mismatches ?? []).map(each => each.quantity));
  const scaled = (value, factor) => (value == null ? null : value * factor);
  sayQuantity("energy", withSigma(scaled(found.photon_energy_eV, 1e-3), scaled(found.photon_energy_sigma_eV, 1e-3), "keV", 2));
  sayQuantity("cameraLength", withSigma(scaled(found.camera_length_m, 1e3), scaled(found.camera_length_sigma_m, 1e3), "mm", 1));
  const [from, of] = SOURCES[found.source] ?? ["the data", "frames"];
  const contradicted = found.bragg?.disagreement;
  say("basis", contradicted ?? (found.frames && found.source ? `from ${from} of ${count(found.frames)} ${of}` : ""));
  $("basis").classList.toggle("reason", Boolean(contradicted));
  why("energyWhy", found.photon_energy_eV, found.estimate_reason, "photon energy");
  why("lengthWhy", found.camera_length_m, found.estimate_reason, "camera length");
  say("energyMore", `header ${given.photon_energy_eV ? `${(given.photon_energy_eV / 1e3).toFixed(3)} keV` : "says none"}`);
  say("lengthMore", `header ${given.camera_length_m ? `${(1e3 * given.camera_length_m).toFixed(1)} mm` : "says none"}`);
  sayQuantity("ratio", withSigma(scaled(found.camera_length_over_energy_m_per_eV, 1e6), scaled(found.camera_length_over_energy_sigma_m_per_eV, 1e6), "mm/keV", 1));
  const shift = found.beam_center_shift_px;
  say("shift", shift ? `beam off by ${shift.map(value => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(1)}`).join(", ")} ± ${Math.max(...found.beam_center_sigma_px).toFixed(1)} px` : found.estimate_reason ?? "");
  $("shift").classList.toggle("reason", !shift); // a sentence, over several lines
  const mark = (tile, ...quantities) => $(tile).classList.toggle("wrong", quantities.some(quantity => wrong.has(quantity)));
  mark("energyTile", "photon_energy");
  mark("lengthTile", "camera_length");
  mark("beamTile", "beam_center", "camera_length_or_photon_energy");
}

function collected(targets) {
  const counted = Object.entries(targets ?? {}).filter(([, target]) => target);
  $("collected").hidden = !counted.length;
  refill($("collected"), counted, () => counted.map(([name, { target, collected, rate_hz, left_s }]) => {
    const done = target ? collected / target : null;
    const text = target ? `${count(collected)} of ${count(target)}` : count(collected);
    const more = target && collected >= target ? "reached" : target ? `${left(left_s)} left` : "no target set";
    const bar = element("progress", { max: "1", value: String(Math.min(1, done ?? 0)), "aria-label": `${name} collected` });
    return element("div", { class: "target" }, element("b", {}, name === "hits" ? "Hits" : "Indexed"), element("span", { class: "amount" }, text), bar,
      element("span", {}, `${rate(rate_hz)} /s`), element("span", { class: "left" }, more));
  }));
}

export function show(status) {
  header(status);
  rates(status);
  parameters(status);
  collected(status.targets);
}
